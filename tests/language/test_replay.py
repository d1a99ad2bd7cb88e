"""What baselines do otherwise: one direction of each pair, plain text replayed, random weights;
and what is forgotten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stages import build_stage, task_losses
from transformers import AutoModelForCausalLM

from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.data.records import Question
from mavilt_pl.data.token_cache import write_tokens
from mavilt_pl.errors import UserError
from mavilt_pl.language import Stage1, Stage2
from mavilt_pl.language.likelihoods import branch_log_likelihoods

ASK = (Question("Is there edema?", "no", "edema", ("yes", "no")),)


def build(backbone: Path, tokens: Path, kind: type = Stage2, **settings: Any) -> Any:
    torch.manual_seed(0)
    return build_stage(
        backbone,
        tokens,
        kind,
        **{"max_text_tokens": 40, "lambda_reg": 0.0, "condition_dropout": 0.0, **settings},
    )


def batch(count: int, **more: Any) -> dict[str, Any]:
    codes = torch.arange(count * 9).reshape(count, 9) % 20
    studies = [
        {"text": "No effusion.", "study": f"mimic:{i}", "questions": ASK} for i in range(count)
    ]
    return {"codes": codes, "studies": studies, **more}


def asked(module: Any, trees: list[Any]) -> list[list[int]]:
    """Codes of each tree's image, in its prefix or its target."""
    v = module.model.vocabulary
    return [
        [
            i - v.first_code
            for i in [*tree.prefix, *tree.branches[0].target]
            if v.first_code <= i < v.code_stop
        ]
        for tree in trees
    ]


@pytest.mark.parametrize("stage", [Stage1, Stage2])
def test_one_direction_takes_each_pair_once_and_the_same_way_each_time(
    llama: Path, tokens: Path, stage: type
) -> None:
    module, given = build(llama, tokens, stage, directions="one"), batch(40)
    reading, synthesis = module.prompts.trees(given, training=True)
    reports = [tree for tree in reading if any(branch.task == 0 for branch in tree.branches)]
    every = [*asked(module, reports), *asked(module, synthesis)]
    assert sorted(every) == sorted(given["codes"].tolist())
    assert 12 < len(synthesis) < 28
    assert asked(module, module.prompts.trees(given, training=True)[1]) == asked(module, synthesis)
    if stage is Stage2:  # questions are asked of every study
        assert len(reading) == 40
        assert all(tree.branches[-1].task == 2 for tree in reading)
    assert [len(group) for group in module.prompts.trees(given, training=False)] == [40, 40]
    both = build(llama, tokens, stage)
    assert [len(group) for group in both.prompts.trees(given, training=True)] == [40, 40]


def test_replayed_text_is_the_plain_text_that_perplexity_measures(
    llama: Path, tokens: Path
) -> None:
    text = "The lungs are clear. No edema."
    module = build(
        llama, tokens, task_weights={"report": 0.2, "synthesis": 0.2, "vqa": 0.55, "text": 0.05}
    ).eval()
    packed = module.on_before_batch_transfer(batch(2, replay=[text, ""]), 0)[
        "packed"
    ]  # nothing teaches nothing
    with torch.no_grad():
        losses = task_losses(module, packed)
        nats, count = module.generator.plain_text_nats([text])
    assert set(losses) == {"report", "synthesis", "vqa", "text"}
    assert losses["text"].item() == pytest.approx(float(nats / count), rel=1e-5)
    logged: dict[str, float] = {}
    module.log_dict = lambda values, **_: logged.update(values)
    module.log = lambda *_, **__: None
    total = module.training_step({"packed": packed, "studies": batch(2)["studies"]}, 0)
    wanted = sum(w * float(losses[task]) for task, w in module.tuning.task_weights.items())
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-5)
    assert "train/text_nats" in logged


def test_texts_are_replayed_from_a_corpus_or_a_file_and_in_training_only(
    corpus_path: Path, tmp_path: Path
) -> None:
    from mavilt_pl.data.corpus import Corpus

    corpus = Corpus(corpus_path)
    write_tokens(
        tmp_path / "t",
        corpus.fingerprint,
        "a",
        torch.zeros(20, 2).numpy(),
        2,
        corpus.n_images,
        [torch.zeros(corpus.n_images, 4).int().numpy()],
    )
    (tmp_path / "lines.txt").write_text("First text.\n\n  Second text.\n")

    def data(replay: str | None, share: float = 1.0) -> CXRDataModule:
        module = CXRDataModule(
            [str(corpus_path)],
            [str(tmp_path / "t")],
            "pairs",
            batch_size=8,
            replay=replay,
            replay_share=share,
        )
        module.setup("fit")
        return module

    from_file = next(iter(data(str(tmp_path / "lines.txt")).train_dataloader()))
    assert set(from_file["replay"]) == {"First text.", "Second text."}
    assert len(from_file["replay"]) == 8
    assert "replay" not in from_file["studies"][0]
    from_corpus = data(str(corpus_path))
    replayed = next(iter(from_corpus.train_dataloader()))["replay"]
    assert set(replayed) <= set(from_corpus.texts("train"))
    assert "replay" not in next(iter(from_corpus.val_dataloader()[0]))
    assert "replay" not in next(iter(data(None).train_dataloader()))
    some = [len(part.get("replay", [])) for part in data(str(corpus_path), 0.25).train_dataloader()]
    assert 0 < sum(some) < 4 * len(some)  # of 8 studies a quarter, not all
    (tmp_path / "lines.txt").write_text("\n")
    with pytest.raises(
        UserError, match=r"data\.replay: found no text in .*lines\.txt; expected a prepared corpus"
    ):
        data(str(tmp_path / "lines.txt"))
    (tmp_path / "lines.txt").write_bytes("Überlagerung.".encode("latin-1"))
    with pytest.raises(
        UserError, match=r"data\.replay: .*lines\.txt is not UTF-8 text .* at byte 0"
    ):
        data(str(tmp_path / "lines.txt"))
    with pytest.raises(
        UserError,
        match=r"data\.replay_share: found 25; expected a value less than or equal to 1",
    ):
        data(None, 25)
    with pytest.raises(UserError, match=r"data\.replay: batches of images take no plain texts"):
        CXRDataModule([str(corpus_path)], replay="x")


def test_from_scratch_is_the_shape_without_the_weights(llama: Path, tokens: Path) -> None:
    given = AutoModelForCausalLM.from_pretrained(llama)
    module = build(llama, tokens, pretrained=False)
    known, random = dict(given.named_parameters()), dict(module.model.backbone.named_parameters())
    assert known.keys() == random.keys()
    for name, weight in random.items():
        assert weight.shape[1:] == known[name].shape[1:]
        if weight.ndim == 2:
            assert not torch.allclose(weight[: len(known[name])], known[name], atol=1e-2), name
    trees = module.prompts.trees(batch(2), training=False)[0]
    generator = module.generator
    likelihoods = [*branch_log_likelihoods(generator.model, trees, generator.pack)]
    assert torch.isfinite(torch.tensor(likelihoods)).all()
    assert module.initial_generator() is None


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_at_start_is_the_module_before_any_training(llama: Path, tokens: Path, tuning: str) -> None:
    texts = ["The heart is enlarged.", "No edema."]
    module = build(llama, tokens, method=tuning).eval()
    before, _ = module.generator.plain_text_nats(texts)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    assert not torch.allclose(module.generator.plain_text_nats(texts)[0], before, rtol=1e-2)
    torch.testing.assert_close(module.initial_generator().plain_text_nats(texts)[0], before)


def test_the_held_out_wording_is_for_evaluation_only(llama: Path, tokens: Path) -> None:
    """For every study, training never uses it and evaluation uses no other."""
    from mavilt_pl.language.prompts import REPORT_INSTRUCTIONS, SYNTHESIS_INSTRUCTIONS

    module = build(llama, tokens, max_text_tokens=60).eval()

    def text_ids(ids: list[int]) -> list[int]:
        return [i for i in ids if i < module.model.vocabulary.num_text_rows]

    def wordings(training: bool) -> tuple[set[str], set[str]]:
        reading, synthesis = module.prompts.trees(batch(200), training)
        decode = module.model.tokenizer.decode
        reports = {decode(text_ids(tree.branches[0].prompt)).strip() for tree in reading}
        images = set()
        for tree in synthesis:
            images.add(decode(text_ids(tree.prefix)).removesuffix(" No effusion.").strip())
        return reports, images

    trained = set(REPORT_INSTRUCTIONS[:-1]), set(SYNTHESIS_INSTRUCTIONS[:-1])
    assert wordings(training=True) == trained
    assert wordings(training=False) == ({REPORT_INSTRUCTIONS[-1]}, {SYNTHESIS_INSTRUCTIONS[-1]})
    written: list[list[int]] = []

    def record_prompts(prompts: list[list[int]], *_: Any) -> list[str]:
        written.extend(prompts)
        return ["" for _ in prompts]

    module.generator._generate_texts = record_prompts
    module.generator.generate_reports(batch(3)["codes"])
    for prompt in written:
        assert text_ids(prompt) == module.prompts.tokenize(REPORT_INSTRUCTIONS[-1])
    instruction = module.prompts.tokenize(f"{SYNTHESIS_INSTRUCTIONS[-1]} Edema.")
    assert text_ids(module.prompts.synthesis_prompt("Edema.")) == instruction


def test_the_condition_is_dropped_with_its_probability_to_the_unconditional_prompt(
    llama: Path, tokens: Path
) -> None:
    module = build(llama, tokens, condition_dropout=0.3)
    given = batch(400)
    for chance, study in enumerate(given["studies"]):
        study["rng_seed"] = chance
    prefixes = [tree.prefix for tree in module.prompts.trees(given, training=True)[1]]
    free = module.prompts.synthesis_prompt(None)
    assert 0.23 < sum(prefix == free for prefix in prefixes) / 400 < 0.37
    assert all(prefix == free or len(prefix) > len(free) for prefix in prefixes)
    some = {
        name: value[100:110] for name, value in given.items()
    }  # the same, in whatever batch they come
    again = [tree.prefix for tree in module.prompts.trees(some, training=True)[1]]
    assert again == prefixes[100:110]
    assert all(tree.prefix != free for tree in module.prompts.trees(given, training=False)[1])
