"""Input at the edge: each kind is refused in one clear message, or cut and counted; nothing is lost
silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import build_stage, pack_batch

from mavilt_pl.data.records import Question
from mavilt_pl.errors import UserError
from mavilt_pl.language import SamplingOptions, Stage1, Stage2, TextSampling, generation

CODES = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]])
LONG = "The heart is enlarged and the lungs are clear. " * 556  # 5,004 words


def study(text: str, key: str = "s1", questions: tuple[Question, ...] = ()) -> dict[str, Any]:
    return {"text": text, "study": key, "questions": questions}


def packed(module: Any, *studies: dict[str, Any]) -> list[Any]:
    return pack_batch(module, {"codes": CODES[: len(studies)], "studies": studies})


@pytest.fixture
def stage2(any_backbone: Path, tokens: Path) -> Stage2:
    return build_stage(any_backbone, tokens, Stage2, max_text_tokens=12).eval()


def test_a_report_of_five_thousand_words_is_truncated_counted_and_warned_of_once(
    stage2: Stage2,
) -> None:
    with pytest.warns(
        UserWarning, match=r"a text of [\d,]{5,} tokens was truncated to max_text_tokens = 12"
    ):
        groups = packed(stage2, study(LONG))
    assert [int(group.target_M.shape[0]) for group in groups] == [13, 9]
    assert stage2.prompts.counts["texts_truncated"] == 2  # as a target and as a condition
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed(stage2, study(LONG, "s2"))
        assert stage2.generator.generate_images([LONG]).shape == (1, 9)
    assert stage2.prompts.counts["texts_truncated"] == 5
    nats, counted = stage2.generator.plain_text_nats([LONG, "No edema."])
    assert torch.isfinite(nats).all()
    assert counted[0] == 127 - 1
    assert stage2.prompts.counts["texts_truncated"] == 6


def test_a_context_too_short_for_an_image_and_a_text_is_refused(tokens: Path, llama: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"context of 128 positions; an image of 9 codes.*max_text_tokens = 120 need 134",
    ):
        build_stage(llama, tokens, Stage1, max_text_tokens=120)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_exceeds_the_context_is_refused(
    family: str, tokens: Path, tmp_path: Path, make_backbone: Callable[..., Path]
) -> None:
    """An image, a question and its answer that are each allowed, and too long together."""
    module = build_stage(
        make_backbone(f"{family}-tied", tmp_path, context=128), tokens, Stage2, max_text_tokens=70
    ).eval()
    question = Question(LONG, LONG, "edema")
    with pytest.raises(
        UserError, match=r"a study's image, prompt and target: found \d+ tokens.*context is 128"
    ):
        packed(module, study("No edema.", "s7", (question,)))
    with pytest.raises(UserError, match="the model's context is 128"):
        module.generator.answer_questions(CODES[:1], [[(LONG, ("yes", LONG))]])
    # The answer ends at the end of the context.
    assert len(module.generator.generate_answers(CODES[:1], [[LONG]])[0]) == 1
    short = build_stage(tmp_path, tokens, Stage2, max_text_tokens=20).eval()
    assert short.prompts.remaining_context(124, 4) == 4
    with pytest.raises(UserError, match="125 tokens, and 4 more"):
        short.prompts.remaining_context(125, 4)


@pytest.mark.parametrize("stage", [Stage1, Stage2])
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_report_is_skipped_and_counted(
    stage: type, empty: str, llama: Path, tokens: Path
) -> None:
    module = build_stage(llama, tokens, stage, max_text_tokens=12, length_groups=1).eval()
    ask = Question("Is there edema?", "no", "edema", ("yes", "no"))
    with pytest.warns(UserWarning, match="an empty report was skipped"):
        groups = packed(module, study(empty, "s1", (ask,)), study("No edema.", "s2", (ask,)))
    wanted = packed(module, study("No edema.", "s2", (ask,)))
    assert module.prompts.counts["texts_empty"] == 1
    assert len(groups) == 2
    assert len(groups[1].ids_BT) == len(wanted[1].ids_BT)
    # Its questions are still asked in Stage 2.
    assert len(groups[0].ids_BT) == (1 if stage is Stage1 else 2)
    torch.manual_seed(0)
    alone = module.training_step({"packed": packed(module, study(empty)), "studies": []}, 0)
    assert alone.item() == 0.0
    alone.backward()  # still a function of the weights, so that processes stay together
    assert module.model.grid_positions.grad is not None


def test_an_empty_answer_is_skipped_and_counted(llama: Path, tokens: Path) -> None:
    module = build_stage(llama, tokens, Stage2, max_text_tokens=12).eval()
    asked = (Question("Where is it?", "", "edema"), Question("Is there edema?", "no", "edema"))
    with pytest.warns(UserWarning, match=r"an empty answer to 'Where is it\?' was skipped"):
        groups = packed(module, study("No edema.", "s1", asked))
    assert int(groups[0].branch_M.max()) == 1
    assert module.prompts.counts["texts_empty"] == 1


def test_images_without_codes_are_refused(stage2: Stage2) -> None:
    for codes in (torch.empty(1, 0, dtype=torch.long), torch.empty(0, 9, dtype=torch.long)):
        with pytest.raises(
            UserError, match=r"an image without codes; expected 9 .*mavilt tokenize"
        ):
            stage2.on_before_batch_transfer({"codes": codes, "studies": [study("No edema.")]}, 0)
    given = stage2.on_before_batch_transfer({"studies": [study("No edema.")]}, 0)
    with pytest.raises(UserError, match=r"the batch has no codes: .*data\.tokens"):
        stage2.training_step(given, 0)


def test_open_questions_are_answered_in_free_text(stage2: Stage2) -> None:
    """A closed question in the same batch keeps its likelihoods."""
    closed, open_ = ("Is there edema?", ("yes", "no")), ("Where is the effusion?", ())
    found = stage2.generator.answer_questions(CODES, [[open_, closed], [open_]])
    texts = stage2.generator.generate_answers(
        CODES, [["Where is the effusion?"], ["Where is the effusion?"]]
    )
    assert found[0][0] == texts[0][0]
    assert found[1] == texts[1]
    assert isinstance(found[0][0], str)
    alone = stage2.generator.answer_questions(CODES[:1], [[closed]])
    assert found[0][1] == pytest.approx(alone[0][0], abs=1e-5)
    assert stage2.generator.answer_questions(CODES, [[], []]) == [[], []]


def test_many_open_questions_are_answered_some_at_a_time(
    stage2: Stage2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache stays within its limit, and each answer is that of the question alone, even if
    sampled.
    """
    rows, generate_ids = [], stage2.generator.generate_ids

    def watched(prompts: Any, *rest: Any) -> Any:
        rows.append(len(prompts))
        return generate_ids(prompts, *rest)

    monkeypatch.setattr(stage2.generator, "generate_ids", watched)
    stage2.generator.sampling = SamplingOptions(text=TextSampling(temperature=1.0))
    asked = [[f"Is there {n} edema?" for n in range(20)]] * 2
    wanted = stage2.generator.generate_answers(CODES, asked, seed=3)
    assert rows == [40]
    monkeypatch.setattr(generation, "CACHED_POSITIONS", 400)
    assert stage2.generator.generate_answers(CODES, asked, seed=3) == wanted
    assert len(rows) > 4
    assert sum(rows) == 80
    assert max(rows[1:]) < 12


def test_text_of_special_tokens_is_read_and_written_as_text(stage2: Stage2) -> None:
    v, text = stage2.model.vocabulary, "<image> 1 2 3 </image> <end>"
    group, synthesis = packed(stage2, study(text))
    assert int((group.target_M >= v.num_text_rows).sum()) == 1  # `<end>`, once
    # <begin>, <image> and its codes.
    length = int(synthesis.column_M.max()) + 2  # the rest is padding
    assert int((synthesis.ids_BT[:, :length] >= v.num_text_rows).sum()) == 2 + 9
    assert stage2.generator.generate_images([text]).shape == (1, 9)
