"""Questions from the files of MIMIC-CXR-VQA and Medical-Diff-VQA, and from labels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mavilt_pl.data.question_files import read_questions, with_questions
from mavilt_pl.data.questions import YES_NO, from_labels
from mavilt_pl.data.records import Question, Study
from mavilt_pl.errors import UserError

Rejects = list[tuple[str, ...]]


def read(path: Path) -> tuple[dict[str, tuple[Question, ...]], Rejects]:
    rejects: Rejects = []
    return read_questions(path, lambda *row: rejects.append(row)), rejects


def item(
    question: str, answer: Any, kind: str = "query", study: Any = 50, **more: Any
) -> dict[str, Any]:
    """An item of MIMIC-CXR-VQA with all its keys."""
    return {
        "split": "train",
        "idx": 0,
        "subject_id": "10",
        "study_id": study,
        "image_id": "a",
        "image_path": "p10/a.jpg",
        "question": question,
        "content_type": "presence",
        "semantic_type": kind,
        "answer": answer,
        **more,
    }


def write_json(path: Path, *items: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    ("asked", "answer", "candidates"),
    [
        (item("Is there edema?", ["yes"], "verify"), "yes", YES_NO),
        (item("Is there edema?", "No", "verify"), "no", YES_NO),
        (item("What is seen?", []), "none", ()),
        (item("What is seen?", ["Edema", "atelectasis"]), "atelectasis, edema", ()),
        (
            item("Which is it, edema or pneumonia?", ["edema"], "choose"),
            "edema",
            ("edema", "pneumonia", "edema, pneumonia", "none"),
        ),
        (
            item("Which is it, the Right lung or the left lung?", [], "choose"),
            "none",
            ("right lung", "left lung", "left lung, right lung", "none"),
        ),
        (item("Is this an AP or a PA view?", ["ap"], "choose"), "ap", ()),
        (item("Is it edema, mass or pneumonia?", "mass", "choose"), "mass", ()),
        (item("Is it, a mass, edema, or pneumonia?", "edema", "choose"), "edema", ()),
        (
            item(
                "One of the two?",
                ["edema", "mass"],
                "choose",
                template_arguments={
                    "object": {"0": "lung"},
                    "attribute": {"0": "mass", "1": "edema"},
                },
            ),
            "edema, mass",
            ("mass", "edema", "edema, mass", "none"),
        ),
        (item("Which?", ["edema"], "choose"), "edema", ()),
    ],
)
def test_mimic_cxr_vqa_items(
    asked: dict[str, Any], answer: str, candidates: tuple[str, ...], tmp_path: Path
) -> None:
    questions, rejects = read(write_json(tmp_path / "train.json", asked))
    assert not rejects
    assert questions == {"50": (Question(asked["question"], answer, "presence", candidates),)}


def test_mimic_cxr_vqa_folder_and_what_is_rejected_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    write_json(folder / "train.json", item("A?", ["x"]), item("B?", ["y"], study="51"))
    write_json(
        folder / "valid.json",
        item("A?", ["x"]),
        item("A?", ["z"]),
        item("C?", ["maybe"], "verify"),
        7,
    )
    write_json(
        folder / "test.json",
        item("D?", {"a": 3}),
        item("E?", ["x"], "guess"),
        item("", ["x"]),
        item("F?", "x", study=None),
    )
    questions, rejects = read(tmp_path)
    assert [question.question for question in questions["50"]] == ["A?"]
    assert [question.question for question in questions["51"]] == ["B?"]
    expected = (
        "with the same answer",
        "with another answer",
        "expected yes or no",
        "item 3: a int",
        'answer "{',
        "semantic_type 'guess'",
        "question ''",
        "study_id 'None'",
    )
    # Two of the ten items are kept, so nothing disappears.
    assert len(rejects) == len(expected) == 8
    for text, (_, _, stage, reason) in zip(expected, rejects):
        assert stage == "question"
        assert text in reason


def test_medical_diff_vqa(tmp_path: Path) -> None:
    rows = """study_id,subject_id,ref_id,question_type,question,answer,split
50,10,49,difference,what has changed?,"the main image has an additional finding of edema. ",train
50,10,49,presence,is there edema?,Yes,train
50,10,49,abnormality,what abnormalities are seen in this image?,"edema, atelectasis",train
50,10,49,view,which view is this image taken?,,train
51,10,50,difference,what has changed?,nothing,train
"""
    (tmp_path / "mimic_pair_questions.csv.gz").write_bytes(gzip.compress(rows.encode()))
    questions, rejects = read(tmp_path)
    assert questions == {
        "50": (
            Question("is there edema?", "yes", "presence", YES_NO),
            Question(
                "what abnormalities are seen in this image?", "edema, atelectasis", "abnormality"
            ),
        )
    }
    assert "row 5: study '50': a blank" in rejects[0][3]
    assert rejects[1][3] == "2 difference questions are not read: they need a second image"
    assert read(tmp_path / "mimic_pair_questions.csv.gz")[0] == questions


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "not readable JSON"),
        ("{}", "JSON dict; expected a list"),
        ("[]", "empty list"),
        ("[" * 100_000, "not readable JSON"),
    ],
)
def test_json_that_is_not_what_it_should_be(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(UserError, match=reason) as refused:
        read(tmp_path / "train.json")
    assert "train.json" in str(refused.value)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "absent.json")
    with pytest.raises(UserError, match="no questions found; expected"):
        read(tmp_path)
    (tmp_path / "mimic_pair_questions.csv").write_text("study_id,question,answer\n1,a,b\n")
    with pytest.raises(UserError, match="no column question_type"):
        read(tmp_path)


def test_questions_join_their_studies() -> None:
    own, added = Question("A?", "x", "t"), Question("B?", "y", "t")
    studies = [
        Study("s", "p", "50", "test", (), questions=(own,)),
        Study("s", "p", "51", "test", ()),
    ]
    questions = {"50": (added,), "77": (own, added)}
    rejects: Rejects = []
    joined = list(with_questions(studies, questions, lambda *row: rejects.append(row)))
    assert [study.questions for study in joined] == [(own, added), ()]
    ((_, _, _, reason),) = rejects
    assert reason == "2 questions about 1 studies that are not in the dataset"


def test_uncertain_and_unmentioned_labels_give_no_question() -> None:
    study = Study(
        "s",
        "p",
        "50",
        "test",
        (),
        labels={"edema": "present", "fracture": "absent", "pneumonia": "uncertain"},
    )
    findings = ["edema", "fracture", "pneumonia", "hernia"]
    questions = from_labels(study, findings, training=False)
    assert [(q.topic, q.answer) for q in questions] == [("edema", "yes"), ("fracture", "no")]
    assert all(question.candidates == YES_NO for question in questions)
