"""Several views of a study in one prompt: from a prepared corpus to sequences, reports and
generated images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages import build_stage, hidden_state_after

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.data.records import SIDES
from mavilt_pl.data.token_cache import write_tokens
from mavilt_pl.errors import UserError
from mavilt_pl.language import Stage1, Stage2
from mavilt_pl.language.module import LanguageModule
from mavilt_pl.language.sequences import pack

FRONTAL, LATERAL = [1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]
BOTH = {"frontal": FRONTAL, "lateral": LATERAL}


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty studies, half of them with a lateral."""
    folder = tmp_path_factory.mktemp("views")
    raw, out = str(folder / "raw"), str(folder / "corpus")
    command = f"phantom mimic {raw} --studies 20 --validate 12 --test 4 --size 32 --laterals 0.5"
    assert main([*command.split(), "--workers", "1"]) == 0
    command = f"prepare mimic-cxr-jpg {raw} --out {out} --size 16"
    assert main([*command.split(), "--workers", "1"]) == 0
    return folder / "corpus"


@pytest.fixture(scope="module")
def cache(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of the corpus: nine of twenty an image, each image its own."""
    corpus, out = Corpus(corpus_path), tmp_path_factory.mktemp("codes")
    codes = np.random.default_rng(0).integers(0, 20, (corpus.n_images, 9))
    write_tokens(
        out,
        corpus.fingerprint,
        "tokenizer-a",
        np.random.default_rng(1).normal(size=(20, 4)),
        3,
        len(codes),
        [codes],
    )
    return out


def batches(corpus: Path, cache: Path, **settings: Any) -> list[dict[str, Any]]:
    data = CXRDataModule(
        [str(corpus)],
        [str(cache)],
        "instructions",
        batch_size=4,
        eval_batch_size=4,
        findings=["edema"],
        **settings,
    )
    data.setup("fit")
    return [*data.val_dataloader()[0]]


def build(backbone: Path, tokens: Path, kind: type = Stage2, **settings: Any) -> LanguageModule:
    torch.manual_seed(0)
    module = build_stage(
        backbone,
        tokens,
        kind,
        max_text_tokens=48,
        **{"multi_view": True, "lambda_reg": 0.0, **settings},
    ).eval()
    torch.nn.init.normal_(module.model.grid_positions, std=0.2)
    return module


def batch(*views: dict[str, list[int]]) -> dict[str, Any]:
    studies = [
        {"text": "No effusion.", "study": f"s{i}", "questions": ()} for i in range(len(views))
    ]
    first = torch.tensor([next(iter(shown.values())) for shown in views])
    return {"codes": first, "views": [*views], "studies": studies}


def codes_in(module: LanguageModule, ids: list[int]) -> list[int]:
    v = module.model.vocabulary
    return [i - v.first_code for i in ids if v.first_code <= i < v.code_stop]


def test_the_corpus_brings_each_view_once_and_frontal_first(corpus_path: Path, cache: Path) -> None:
    corpus, seen = Corpus(corpus_path), set()
    rows = {f"{corpus[row].source}:{corpus[row].study}": row for row in corpus.rows("val")}
    codes = np.load(cache / "codes.npy")
    for found in batches(corpus_path, cache, each_view=True):
        for study, views, first, row in zip(
            found["studies"],
            found["views"],
            found["codes"],
            [s["image_row"] for s in found["studies"]],
        ):
            images = corpus.image_rows(rows[study["study"]])
            for view, shown in views.items():
                wanted = next(number for number, name in images if SIDES.get(name) == view)
                assert shown == codes[wanted].tolist()
            assert list(views) == sorted(views)
            assert first.tolist() == next(iter(views.values())) == codes[row].tolist()
            assert "views" not in study
            seen.add(tuple(views))
    # studies with both, and studies that lack one
    assert ("frontal", "lateral") in seen
    assert len(seen) > 1


def test_without_it_a_batch_is_what_it_was(corpus_path: Path, cache: Path) -> None:
    one, several = (batches(corpus_path, cache, each_view=each) for each in (False, True))
    assert all("views" not in found for found in one)
    assert all(torch.equal(a["codes"], b["codes"]) for a, b in zip(one, several))


def test_a_one_view_model_has_the_ids_it_had(llama: Path, tokens: Path) -> None:
    one, several = build(llama, tokens, multi_view=False), build(llama, tokens)
    assert several.model.vocabulary.num_rows == one.model.vocabulary.num_rows + 2
    assert several.model.vocabulary.first_code == one.model.vocabulary.first_code
    assert several.model.code_logits(torch.zeros(32)).shape == (20,)
    v = one.model.vocabulary
    begin, image, image_end = map(v.special_token_id, ("<begin>", "<image>", "</image>"))
    codes = [v.first_code + 3, v.first_code + 4]
    assert one.prompts.image_prefix([3, 4]) == [begin, image, *codes, image_end]
    assert one.prompts.synthesis_prompt(None) == [begin, image]


@pytest.mark.parametrize("kind", [Stage1, Stage2])
def test_a_report_reads_each_view_after_its_token(llama: Path, tokens: Path, kind: type) -> None:
    module = build(llama, tokens, kind)
    v = module.model.vocabulary
    reading, synthesis = module.prompts.trees(batch(BOTH, {"lateral": LATERAL}), training=False)
    prefix = reading[0].prefix
    assert codes_in(module, prefix) == FRONTAL + LATERAL
    frontal, lateral = v.view_token_id("frontal"), v.view_token_id("lateral")
    assert [i for i in prefix if i >= v.code_stop] == [frontal, lateral]
    assert codes_in(module, reading[1].prefix) == LATERAL
    assert v.view_token_id("frontal") not in reading[1].prefix
    assert codes_in(module, synthesis[0].prefix) == LATERAL
    assert codes_in(module, synthesis[0].branches[0].target) == FRONTAL
    assert codes_in(module, synthesis[1].prefix) == []
    assert codes_in(module, synthesis[1].branches[0].target) == LATERAL
    assert synthesis[0].prefix[-2:] == [v.special_token_id("<image>"), v.view_token_id("frontal")]


def test_views_are_dropped_by_chance_and_one_always_stays(llama: Path, tokens: Path) -> None:
    module, read, given, targets = build(llama, tokens, condition_dropout=0.0), [], [], []
    for _ in range(200):
        reading, synthesis = module.prompts.trees(batch(BOTH), training=True)
        read.append(tuple(codes_in(module, reading[0].prefix)))
        given.append(len(codes_in(module, synthesis[0].prefix)))
        targets.append(tuple(codes_in(module, synthesis[0].branches[0].target)))
        # The target is never in the prompt.
        assert targets[-1] != tuple(codes_in(module, synthesis[0].prefix))
    counts = {views: read.count(views) for views in set(read)}
    assert set(counts) == {tuple(FRONTAL), tuple(LATERAL), tuple(FRONTAL + LATERAL)}
    assert 0.35 < counts[tuple(FRONTAL + LATERAL)] / 200 < 0.63  # 0.7² = 0.49
    assert 0.58 < given.count(9) / 200 < 0.82
    assert 0.4 < targets.count(tuple(FRONTAL)) / 200 < 0.6
    with_all = build(llama, tokens, view_dropout=0.0)
    for _ in range(20):
        reading, _ = with_all.prompts.trees(batch(BOTH), training=True)
        assert len(codes_in(with_all, reading[0].prefix)) == 18


def test_nothing_leaks_from_what_is_not_shown(llama: Path, tokens: Path) -> None:
    """A code of the target changes only what comes after it; a change in a given view changes every
    code generated from it; a code of one view has its own grid position, whatever precedes it.
    """
    module = build(llama, tokens)

    def losses(shown: dict[str, list[int]]) -> torch.Tensor:
        with torch.no_grad():
            return module.model.token_losses(
                module.generator.pack([module.prompts.synthesis_tree(shown, "No effusion.", "s")])
            )

    base = losses(BOTH)
    late = losses({**BOTH, "frontal": [*FRONTAL[:6], 0, *FRONTAL[7:]]})
    torch.testing.assert_close(late[:6], base[:6])
    assert (late[6:] - base[6:]).abs().min() > 1e-6
    other = losses({**BOTH, "lateral": [12, *LATERAL[1:]]})
    assert (other - base).abs().min() > 1e-7
    ids = torch.tensor([module.prompts.image_prefix(BOTH)])
    positions = module.model.embed(ids) - module.model.backbone.get_input_embeddings()(ids)
    is_code = (ids[0] >= module.model.vocabulary.first_code) & (
        ids[0] < module.model.vocabulary.code_stop
    )
    grid_positions = module.model.grid_positions
    torch.testing.assert_close(positions[0, is_code], torch.cat([grid_positions, grid_positions]))
    assert not positions[0, ~is_code].any()  # tokens of views have no position
    # Two studies in one batch, one with a view less, have the losses of each alone.
    trees = module.prompts.trees(batch(BOTH, {"lateral": LATERAL}), training=False)[0]
    with torch.no_grad():
        together = module.model.token_losses(pack(trees))
        alone = [module.model.token_losses(pack([tree])) for tree in trees]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_a_missing_view_is_generated_from_the_other_and_the_report(
    llama: Path, tokens: Path
) -> None:
    module = build(llama, tokens, temperature=0.0, guidance_scale=2.0)
    text, v = "No effusion.", module.model.vocabulary
    with torch.no_grad():  # so that the given view matters
        module.model.backbone.get_input_embeddings().weight[v.num_text_rows :] *= 3
    images = module.generator.generate_images(
        [text] * 3,
        views=["lateral", "lateral", "frontal"],
        given=[{"frontal": FRONTAL}, {}, {}],
    )
    assert images.shape == (3, 9)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])
    assert torch.equal(module.generator.generate_images([text]), images[2:])  # frontal by default
    ids = module.prompts.synthesis_prompt(text, view="lateral", given={"frontal": FRONTAL})
    free = module.prompts.synthesis_prompt(None, view="lateral")
    assert codes_in(module, ids) == FRONTAL
    assert codes_in(module, free) == []
    assert free[-1] == v.view_token_id("lateral")
    for _ in range(9):
        conditional = module.model.code_logits(hidden_state_after(module, ids))
        unconditional = module.model.code_logits(hidden_state_after(module, free))
        guided = unconditional + 2.0 * (conditional - unconditional)
        chosen = v.first_code + int(guided.argmax())
        ids.append(chosen)
        free.append(chosen)
    assert codes_in(module, ids)[-9:] == images[0].tolist()
    both, one = module.generator.generate_reports([BOTH, {"frontal": FRONTAL}])
    assert both == module.generator.generate_reports([BOTH])[0]
    assert one == module.generator.generate_reports(torch.tensor([FRONTAL]))[0]
    ask = [[("Is there edema?", ("yes", "no"))]] * 2
    answers = module.generator.answer_questions([BOTH, {"lateral": LATERAL}], ask)
    alone = module.generator.answer_questions([{"lateral": LATERAL}], ask[:1])
    torch.testing.assert_close(torch.tensor(alone), torch.tensor(answers[1:]))


def test_data_and_model_must_agree(llama: Path, tokens: Path) -> None:
    views, codes = build(llama, tokens), build(llama, tokens, multi_view=False)
    with pytest.raises(UserError, match=r"multi_view is True and data\.each_view False"):
        views.prompts.trees({k: v for k, v in batch(BOTH).items() if k != "views"}, training=False)
    with pytest.raises(UserError, match=r"multi_view is False and data\.each_view True"):
        codes.prompts.trees(batch(BOTH), training=False)
    for wrong in (
        lambda: codes.generator.generate_reports([BOTH]),
        lambda: codes.generator.generate_images(["No edema."], views=["lateral"]),
    ):
        with pytest.raises(UserError, match=r"one image without a name"):
            wrong()
    with pytest.raises(UserError, match="9 codes in"):
        views.prompts.trees(batch({**BOTH, "lateral": [20, *LATERAL[1:]]}), training=False)
    with pytest.raises(
        UserError, match=r"two images of 9 codes and a text of max_text_tokens = 105 need 132"
    ):
        build_stage(llama, tokens, Stage1, multi_view=True, max_text_tokens=105)
