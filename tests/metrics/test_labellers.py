"""CheXbert and RadEval: real loading code, small random weights of the same shape."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from mavilt_pl.errors import UserError
from mavilt_pl.metrics.chexbert import CONDITIONS, CheXbert, chexbert_labeller
from mavilt_pl.metrics.radeval import radeval_scores

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heart", "is", "enlarged"]
WORDS += ["no", "effusion", "small", "edema", "."]
TEXTS = ["The heart is enlarged.", "No\n effusion.", "Small effusion , edema .", "", "edema " * 900]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as bert-base-uncased has it, tiny."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as the published file has them: saved from several GPUs."""
    torch.manual_seed(0)
    model = CheXbert(BertConfig.from_pretrained(bert))
    for parameter in model.parameters():
        # Norms stay as they are, or all texts would be read alike.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    # Of older versions of transformers.
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    path = tmp_path_factory.mktemp("chexbert") / "chexbert.pth"
    torch.save({"model_state_dict": state, "epoch": 7}, path)
    return path


def test_labels_are_those_of_the_network_by_hand(weights: Path, bert: Path) -> None:
    found = chexbert_labeller(weights, bert).read(TEXTS)
    state = torch.load(weights)["model_state_dict"]
    state.pop("module.bert.embeddings.position_ids")
    network = BertModel(BertConfig.from_pretrained(bert)).eval()
    prefix = "module.bert."
    network.load_state_dict(
        {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    )
    tokenizer = BertTokenizer.from_pretrained(bert)
    expected = []
    # One by one, so that padding must change nothing.
    for text in TEXTS:
        ids = tokenizer(
            " ".join(text.split()), truncation=True, max_length=512, return_tensors="pt"
        )
        with torch.no_grad():
            token = network(**ids).last_hidden_state[0, 0]
        labels = {}
        for number, condition in enumerate(CONDITIONS):
            head = f"module.linear_heads.{number}."
            logits = state[head + "weight"] @ token + state[head + "bias"]
            label = [None, "present", "absent", "uncertain"][int(logits.argmax())]
            if label is not None:
                labels[condition] = label
        expected.append(labels)
    assert found == expected
    # The texts are read, not only counted.
    assert len({tuple(labels.items()) for labels in found}) > 2


def test_what_is_missing_is_named(weights: Path, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist; expected CheXbert's"):
        chexbert_labeller(tmp_path / "nowhere.pth", bert)
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        chexbert_labeller(weights, tmp_path)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK\x03\x04 half a download")
    with pytest.raises(UserError, match="is not readable"):
        chexbert_labeller(broken, bert)
    torch.save({"layer.weight": torch.zeros(2)}, broken)
    with pytest.raises(UserError, match="is of another network"):
        chexbert_labeller(broken, bert)


def stand_in(scores: dict[str, object]) -> types.ModuleType:
    """A package radeval that gives these scores."""
    module = types.ModuleType("radeval")

    class RadEval:
        def __init__(self, metrics: list[str], per_sample: bool, show_progress: bool):
            if metrics == ["nonsense"]:
                raise ValueError("Unknown metric 'nonsense'")
            assert per_sample
            assert not show_progress

        def __call__(self, refs: list[str], hyps: list[str]) -> dict[str, object]:
            return scores

    module.RadEval = RadEval  # type: ignore[attr-defined]
    return module


def test_scores_of_single_reports_get_intervals_by_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores: dict[str, object] = {"green": [1.0, 0.0, 0.5], "about": "a text", "few": [1.0]}
    monkeypatch.setitem(sys.modules, "radeval", stand_in(scores))
    found = radeval_scores(["green"], ["a", "b", "c"], ["a", "b", "c"], ["p", "q", "q"])
    assert list(found) == ["radeval_green"]
    assert found["radeval_green"].value == 0.5
    low, high = found["radeval_green"].low, found["radeval_green"].high
    # Two patients: a resample has either, or both.
    assert (low, high) == (0.25, 1.0)
    monkeypatch.setattr("mavilt_pl.metrics.radeval.version", lambda name: "2")
    with pytest.raises(UserError, match="RadEval 2 could not compute nonsense: Unknown metric"):
        radeval_scores(["nonsense"], ["a"], ["a"], ["p"])


def test_a_missing_package_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "radeval", None)
    with pytest.raises(UserError, match=r"pip install 'mavilt\[radeval\]'"):
        radeval_scores(["green"], ["a"], ["a"], ["p"])
