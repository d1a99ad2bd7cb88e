"""Every metric against somebody else's implementation."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from nltk.translate.bleu_score import corpus_bleu as nltk_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchmetrics.text import SQuAD

from mavilt_pl.data.sources import read_source
from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.metrics.image import (
    CodebookUse,
    ReconstructionScores,
    gradient_psnr,
    inception_features,
    lpips_distance,
)
from mavilt_pl.metrics.text import (
    Perplexity,
    TextScores,
    UnicodeTokenizer,
    has_wordnet,
    rouge_l_coco,
    words,
)
from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean, auroc, exact_match, word_f1

TEXTS = [
    ("The heart is enlarged. No effusion.", "The heart is mildly enlarged. There is no effusion."),
    ("No pneumothorax is seen in the lungs today.", "No pneumothorax. The lungs are clear."),
    ("Small left pleural effusion.", "There is a small left pleural effusion."),
]
PATIENTS = ["a", "b", "c"]


def test_bleu_against_nltk_and_sacrebleu() -> None:
    metric = TextScores()
    metric.update([p for p, _ in TEXTS], [r for _, r in TEXTS], PATIENTS)
    found = metric.compute()
    predicted, expected = [words(p) for p, _ in TEXTS], [[words(r)] for _, r in TEXTS]
    for n in range(1, 5):
        assert found[f"bleu_{n}"].value == pytest.approx(
            nltk_bleu(expected, predicted, weights=(1 / n,) * n), abs=1e-9
        )
    joined = [" ".join(p) for p in predicted], [[" ".join(r[0]) for r in expected]]
    other = BLEU(tokenize="none", smooth_method="none").corpus_score(*joined).score / 100
    assert found["bleu_4"].value == pytest.approx(other, abs=1e-6)


def test_rouge_and_interval() -> None:
    metric = TextScores()
    metric.update([p for p, _ in TEXTS], [r for _, r in TEXTS], PATIENTS)
    found = metric.compute()["rouge_l"]
    each = [RougeScorer(["rougeL"]).score(r, p)["rougeL"].fmeasure for p, r in TEXTS]
    assert found.value == pytest.approx(np.mean(each))
    assert found.n == 3
    assert min(each) - 1e-9 <= found.low <= found.value <= found.high <= max(each) + 1e-9


@pytest.mark.parametrize(
    "text",
    [
        "कोई फुफ्फुस बहाव नहीं है।",
        "ไม่มีน้ำในช่องเยื่อหุ้มปอด",
        "双侧胸腔积液。心影增大。",
        "Плевральный выпот слева. Сердце увеличено.",
        "لا يوجد انصباب جنبي",
        "胸水はありません。",
        "흉수 없음",
        "Kein Erguß, keine Ödeme.",
    ],
)
def test_rouge_of_identical_texts_is_one_in_any_script(text: str) -> None:
    metric = TextScores()
    metric.update([text], [text], ["p"])
    assert metric.compute()["rouge_l"].value == pytest.approx(1.0)
    metric = TextScores()
    metric.update(["effusion"], [text], ["p"])
    assert metric.compute()["rouge_l"].value == 0.0


def test_rouge_of_half_a_chinese_text_lies_between() -> None:
    metric = TextScores()
    metric.update(["双侧胸腔积液。"], ["双侧胸腔积液。心影增大正常"], ["p"])
    assert metric.compute()["rouge_l"].value == pytest.approx(2 / 3)


def test_tokens_of_the_real_reports_are_those_of_rouge_score() -> None:
    pytest.importorskip("torchxrayvision")
    from mavilt_pl.phantom.indiana import reports_archive

    ours, theirs = UnicodeTokenizer(), DefaultTokenizer(use_stemmer=False)
    options = {"reports": str(reports_archive())}
    for study in read_source("indiana", Path("."), lambda *why: None, **options):
        assert ours.tokenize(study.report) == theirs.tokenize(study.report)


def test_rouge_of_coco_against_its_definition() -> None:
    """pycocoevalcap's formula over the longest subsequence found by trying all of them."""

    def definition(predicted: list[str], expected: list[str]) -> float:
        """Beta 1.2."""
        common = 0
        for length in range(len(predicted) + 1):
            for kept in itertools.combinations(predicted, length):
                rest = iter(expected)
                if all(word in rest for word in kept):
                    common = length
        if not common:
            return 0.0
        p, r = common / len(predicted), common / len(expected)
        return ((1 + 1.2**2) * p * r) / (r + 1.2**2 * p)

    random = np.random.default_rng(0)
    pairs = []
    for _ in range(60):
        predicted, expected = (random.choice(list("abcd."), random.integers(1, 9)) for _ in "12")
        pairs.append((" ".join(predicted), " ".join(expected)))
    values = [definition(p.split(), e.split()) for p, e in pairs]
    assert [rouge_l_coco(*pair) for pair in pairs] == pytest.approx(values)
    assert rouge_l_coco("", "a b") == rouge_l_coco("a b", "") == 0.0
    metric = TextScores()
    metric.update([p for p, _ in pairs], [e for _, e in pairs], [str(i) for i in range(60)])
    assert metric.compute()["rouge_l_coco"].value == pytest.approx(np.mean(values))


@pytest.mark.real
@pytest.mark.skipif(not has_wordnet(), reason="NLTK finds no WordNet")
def test_meteor() -> None:
    metric = TextScores()
    metric.update([p for p, _ in TEXTS], [r for _, r in TEXTS], PATIENTS)
    each = [meteor_score([words(r)], words(p)) for p, r in TEXTS]
    assert metric.compute()["meteor"].value == pytest.approx(np.mean(each))


def test_without_wordnet_meteor_is_absent_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mavilt_pl.metrics.text.has_wordnet", lambda: False)
    with pytest.warns(UserWarning, match=r"nltk\.downloader wordnet"):
        metric = TextScores()
    metric.update(["a b"], ["a b"], ["p"])
    assert "meteor" not in metric.compute()


def test_auroc_against_sklearn() -> None:
    random = np.random.default_rng(0)
    score, truth = random.integers(0, 9, 200) / 9, random.integers(0, 2, 200)
    assert auroc(score, truth) == pytest.approx(roc_auc_score(truth, score))
    weights = random.integers(0, 4, 200)
    assert auroc(score, truth, weights) == pytest.approx(
        roc_auc_score(truth, score, sample_weight=weights)
    )
    assert math.isnan(auroc(score, np.ones(200)))


def test_grouped_auroc_and_accuracy() -> None:
    random = np.random.default_rng(1)
    scores = torch.tensor(random.random((60, 3)))
    truths = torch.tensor(random.integers(0, 2, (60, 3))).float()
    truths[:, 2] = 1  # one class only: no figure, not in the mean
    truths[5, 0] = torch.nan
    metric = GroupedAUROC(["x", "y", "z"])
    metric.update_columns(scores, truths, [str(i) for i in range(60)])
    found = metric.compute()
    known = ~truths[:, 0].isnan()
    x = roc_auc_score(truths[known, 0], scores[known, 0])
    y = roc_auc_score(truths[:, 1], scores[:, 1])
    assert found["auroc/x"].value == pytest.approx(x)
    assert found["auroc/x"].n == 59
    assert found["auroc_macro"].value == pytest.approx((x + y) / 2)
    assert "auroc/z" not in found
    assert found["auroc_macro"].low < found["auroc_macro"].value < found["auroc_macro"].high
    right = GroupedMean("accuracy", ["x", "y"])
    right.update([True, False, True, True], [0, 0, 1, 1], list("abcd"))
    assert {k: v.value for k, v in right.compute().items()} == {
        "accuracy": 0.75,
        "accuracy/x": 0.5,
        "accuracy/y": 1.0,
    }


def test_open_answers_against_squad() -> None:
    """Whatever the words: torchmetrics' SQuAD of the same pairs, a pair at a time."""
    words = ["the", "a", "left", "right", "lower", "lobe,", "Lobe", "effusion.", "none", "-"]
    random = np.random.default_rng(0)
    pairs = [
        [" ".join(random.choice(words, random.integers(1, 5))) for _ in range(2)]
        for _ in range(200)
    ]
    for predicted, answer in pairs:
        theirs = SQuAD()
        theirs.update(
            [{"prediction_text": predicted, "id": "1"}],
            [{"answers": {"text": [answer], "answer_start": [0]}, "id": "1"}],
        )
        found = {name: value.item() / 100 for name, value in theirs.compute().items()}
        assert exact_match(predicted, answer) == pytest.approx(found["exact_match"])
        assert word_f1(predicted, answer) == pytest.approx(found["f1"])
    assert {exact_match(*pair) for pair in pairs} == {0.0, 1.0}
    assert len({word_f1(*pair) for pair in pairs} - {0, 1}) > 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The heart is enlarged.", {"cardiomegaly": "present"}),
        ("Heart size is normal.", {}),
        (
            "No pleural effusion or pneumothorax.",
            {"pleural effusion": "absent", "pneumothorax": "absent"},
        ),
        (
            "No edema, but a small left effusion.",
            {"edema": "absent", "pleural effusion": "present"},
        ),
        ("Possible pneumonia.", {"pneumonia": "uncertain"}),
        ("Pneumothorax is not seen.", {"pneumothorax": "absent"}),
        ("Lungs are hyperexpanded.", {"hyperinflation": "present"}),
        ("There is a 15 mm nodule in the left upper lung. No mass.", {"lung lesion": "present"}),
        ("A left chest pacemaker is in place.", {"support devices": "present"}),
        ("Lungs are clear without focal consolidation.", {"consolidation": "absent"}),
        ("", {}),
    ],
)
def test_labeller(text: str, found: dict[str, str]) -> None:
    assert findings_in(text) == found


def test_reconstruction_against_torchmetrics() -> None:
    real, made = torch.rand(4, 1, 32, 32) * 2 - 1, torch.rand(4, 1, 32, 32) * 2 - 1
    metric = ReconstructionScores()
    metric.update(real, made, list("abcd"))
    each = [peak_signal_noise_ratio(m, r, data_range=2.0).item() for r, m in zip(real, made)]
    assert metric.compute()["psnr"].value == pytest.approx(np.mean(each), rel=1e-5)
    assert gradient_psnr(real, real + 0.3).min() > 90  # a shift of brightness moves no edge


def test_codebook_use_and_perplexity() -> None:
    use = CodebookUse(8)
    use.update(torch.tensor([[0, 1, 2, 3]]))
    found = use.compute()
    assert found["codebook_used"].value == 0.5
    assert found["codebook_perplexity"].value == pytest.approx(4)
    text = Perplexity()
    text.update([2.0, 4.0], [2, 2], ["a", "b"])
    assert text.compute()["perplexity"].value == pytest.approx(math.exp(6 / 4))
    assert len(text.compute()) == 1
    text = Perplexity()
    text.update([2.0, 4.0], [2, 2], ["a", "b"], before=[1.0, 2.0])
    found = text.compute()
    assert found["perplexity_before"].value == pytest.approx(math.exp(3 / 4))
    ratio = found["perplexity_ratio"]
    assert ratio.value == pytest.approx(math.exp(6 / 4) / math.exp(3 / 4))
    assert ratio.low < ratio.value < ratio.high


@pytest.mark.slow
def test_inception_from_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the right shape, made here: the real loader reads them and never the network."""
    from pytorch_fid import inception

    made = {}
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: made)
    monkeypatch.setattr(
        torch.nn.Module, "load_state_dict", lambda self, state, **_: made.update(self.state_dict())
    )
    inception.fid_inception_v3()
    monkeypatch.undo()
    torch.save(made, tmp_path / "inception.pth")
    features = inception_features(tmp_path / "inception.pth")
    assert features(torch.zeros(2, 1, 64, 64)).shape == (2, 2048)
    with pytest.raises(ValueError, match="do not exist"):
        inception_features(tmp_path / "absent.pth")


@pytest.mark.parametrize(("name", "kind"), [("alexnet", "alex"), ("vgg16", "vgg")])
def test_lpips_against_torchmetrics_on_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """A backbone of random weights in a file, against torchmetrics' module with that backbone."""
    torch.manual_seed(0)
    backbone = getattr(torchvision.models, name)(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    real, made = torch.rand(2, 3, 1, 64, 64) * 2 - 1
    metric = ReconstructionScores(lpips_distance(tmp_path / "backbone.pth"))
    metric.update(real, made, PATIENTS)
    monkeypatch.setattr(torchvision.models, name, lambda weights: backbone)
    other = LearnedPerceptualImagePatchSimilarity(kind)  # type: ignore[arg-type]
    expected = other(real.expand(-1, 3, -1, -1), made.expand(-1, 3, -1, -1))
    found = metric.compute()
    assert found["lpips"].value == pytest.approx(float(expected), rel=1e-5)
    assert found["lpips"].value > 1e-3
    assert lpips_distance(tmp_path / "backbone.pth")(real, real).abs().max() == 0
    assert "LPIPS" in metric.protocol
    assert "LPIPS" not in ReconstructionScores().protocol


def test_lpips_names_the_weights_it_needs(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"nowhere.pth do not exist; expected torchvision's alexnet-owt-7be5be79\.pth",
    ):
        lpips_distance(tmp_path / "nowhere.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="neither AlexNet's nor VGG-16's"):
        lpips_distance(tmp_path / "other.pth")
