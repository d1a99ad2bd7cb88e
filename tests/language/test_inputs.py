"""Input at the edge: each kind is refused in one clear message, or cut and counted; nothing is lost
without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mavilt_pl.data.records import Question
from mavilt_pl.errors import UserError
from mavilt_pl.language import Stage1, Stage2, decoding, generation

CODES = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]])
LONG = "The heart is enlarged and the lungs are clear. " * 556  # 5,004 words


def study(text: str, key: str = "s1", questions: tuple[Question, ...] = ()) -> dict[str, Any]:
    return {"text": text, "study": key, "questions": questions}


def packed(module: Any, *studies: dict[str, Any]) -> list[Any]:
    return module.on_before_batch_transfer({"codes": CODES[: len(studies)], "studies": studies}, 0)[
        "packed"
    ]


@pytest.fixture
def stage2(any_backbone: Path, tokens: Path) -> Stage2:
    return Stage2(str(any_backbone), str(tokens), max_words=12).eval()


def test_a_report_of_five_thousand_words_is_cut_counted_and_told_once(stage2: Stage2) -> None:
    with pytest.warns(
        UserWarning, match=r"study s1: a text of [\d,]{5,} tokens was cut to max_words = 12"
    ):
        groups = packed(stage2, study(LONG))
    assert [int(group.target_M.shape[0]) for group in groups] == [13, 9]
    assert stage2.counts["texts_cut"] == 2  # as what is said, and as what is drawn from
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed(stage2, study(LONG, "s2"))
        assert stage2.draw([LONG]).shape == (1, 9)
    assert stage2.counts["texts_cut"] == 5
    nats, counted = stage2.text_nats([LONG, "No edema."])
    assert torch.isfinite(nats).all() and counted[0] == 127 - 1 and stage2.counts["texts_cut"] == 6


def test_a_context_too_short_for_an_image_and_a_text_is_refused(tokens: Path, llama: Path) -> None:
    with pytest.raises(
        UserError, match=r"context of 128 positions; an image of 9 codes.*max_words = 120 need 134"
    ):
        Stage1(str(llama), str(tokens), max_words=120)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_exceeds_the_context_names_its_study(
    family: str, tokens: Path, tmp_path: Path, make_backbone: Callable[..., Path]
) -> None:
    """An image, a question and its answer that are each allowed, and too long together."""
    module = Stage2(
        str(make_backbone(f"{family}-tied", tmp_path, context=128)), str(tokens), max_words=70
    ).eval()
    question = Question(LONG, LONG, "edema")
    with pytest.raises(
        UserError, match=r"study s7, image, prompt and target: found \d+ tokens.*context is 128"
    ):
        packed(module, study("No edema.", "s7", (question,)))
    with pytest.raises(UserError, match="the model's context is 128"):
        module.answer(CODES[:1], [[(LONG, ("yes", LONG))]])
    assert (
        len(module.write_answers(CODES[:1], [[LONG]])[0]) == 1
    )  # the answer ends where the context does
    short = Stage2(str(tmp_path), str(tokens), max_words=20).eval()
    assert short.room(124, 4) == 4
    with pytest.raises(UserError, match="125 tokens, and 4 more"):
        short.room(125, 4)


@pytest.mark.parametrize("stage", [Stage1, Stage2])
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_report_is_left_out_and_counted(
    stage: type, empty: str, llama: Path, tokens: Path
) -> None:
    module = stage(str(llama), str(tokens), max_words=12, length_groups=1).eval()
    ask = Question("Is there edema?", "no", "edema", ("yes", "no"))
    with pytest.warns(UserWarning, match="study s1: its report is empty and was left out"):
        groups = packed(module, study(empty, "s1", (ask,)), study("No edema.", "s2", (ask,)))
    wanted = packed(module, study("No edema.", "s2", (ask,)))
    assert (
        module.counts["texts_empty"] == 1
        and len(groups) == 2
        and len(groups[1].ids_BT) == len(wanted[1].ids_BT)
    )
    # Its questions are still asked in Stage 2.
    assert len(groups[0].ids_BT) == (1 if stage is Stage1 else 2)
    torch.manual_seed(0)
    alone = module.training_step({"packed": packed(module, study(empty)), "studies": []}, 0)
    assert alone.item() == 0.0
    alone.backward()  # still a function of the weights, so that processes stay together
    assert module.place.grad is not None


def test_an_empty_answer_is_left_out_and_counted(llama: Path, tokens: Path) -> None:
    module = Stage2(str(llama), str(tokens), max_words=12).eval()
    asked = (Question("Where is it?", "", "edema"), Question("Is there edema?", "no", "edema"))
    with pytest.warns(UserWarning, match=r"study s1: its answer to 'Where is it\?' is empty"):
        groups = packed(module, study("No edema.", "s1", asked))
    assert int(groups[0].branch_M.max()) == 1 and module.counts["texts_empty"] == 1


def test_images_without_codes_are_refused(stage2: Stage2) -> None:
    for codes in (torch.empty(1, 0, dtype=torch.long), torch.empty(0, 9, dtype=torch.long)):
        with pytest.raises(
            UserError, match=r"an image without codes; expected 9 .*mavilt tokenize"
        ):
            stage2.on_before_batch_transfer({"codes": codes, "studies": [study("No edema.")]}, 0)
    given = stage2.on_before_batch_transfer({"studies": [study("No edema.")]}, 0)
    with pytest.raises(UserError, match=r"the batch has no codes: .*data\.tokens"):
        stage2.training_step(given, 0)


def test_open_questions_are_answered_in_words(stage2: Stage2) -> None:
    """And a closed one beside them keeps its likelihoods."""
    closed, open_ = ("Is there edema?", ("yes", "no")), ("Where is the effusion?", ())
    found = stage2.answer(CODES, [[open_, closed], [open_]])
    said = stage2.write_answers(CODES, [["Where is the effusion?"], ["Where is the effusion?"]])
    assert found[0][0] == said[0][0] and found[1] == said[1] and isinstance(found[0][0], str)
    assert found[0][1] == pytest.approx(stage2.answer(CODES[:1], [[closed]])[0][0], abs=1e-5)
    assert stage2.answer(CODES, [[], []]) == [[], []]


def test_many_open_questions_are_answered_some_at_a_time(
    stage2: Stage2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what is kept of them fits, and in the words of each alone, also where they are
    sampled.
    """
    rows, write = [], decoding.write

    def watched(module: Any, prompts: Any, *rest: Any) -> Any:
        rows.append(len(prompts))
        return write(module, prompts, *rest)

    monkeypatch.setattr(decoding, "write", watched)
    stage2.hparams["text_decoding"] = {"temperature": 1.0}
    asked = [[f"Is there {n} edema?" for n in range(20)]] * 2
    wanted = stage2.write_answers(CODES, asked, seed=3)
    assert rows == [40]
    monkeypatch.setattr(generation, "CACHED", 400)
    assert stage2.write_answers(CODES, asked, seed=3) == wanted
    assert len(rows) > 4 and sum(rows) == 80 and max(rows[1:]) < 12


def test_a_text_of_marks_is_drawn_and_written_as_text(stage2: Stage2) -> None:
    v, text = stage2.vocabulary, "<image> 1 2 3 </image> <end>"
    group, drawing = packed(stage2, study(text))
    assert int((group.target_M >= v.text).sum()) == 1  # `<end>`, once
    assert int((drawing.ids_BT >= v.text).sum()) == 2 + 9  # <begin>, <image> and its codes
    assert stage2.draw([text]).shape == (1, 9)
