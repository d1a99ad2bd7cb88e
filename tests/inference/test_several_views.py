"""A model of several views from its training to its use: what the test scores, and the verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from words import DATA

from mavilt_pl.cli import main
from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.records import SIDES
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.encoders.loading import load_encoder
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.predictions import read_predictions
from mavilt_pl.inference.mavilt import MAViLT
from mavilt_pl.language import SamplingOptions, TextSampling
from mavilt_pl.language.generation import Generator


@pytest.fixture(scope="module")
def made(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw, corpus, tokens and stage2 of thirty studies, most of them with a lateral."""
    out = tmp_path_factory.mktemp("views")
    words = [
        "--studies",
        "30",
        "--validate",
        "4",
        "--test",
        "8",
        "--size",
        "48",
        "--laterals",
        "0.7",
        "--workers",
        "1",
    ]
    assert main(["phantom", "mimic", str(out / "raw"), *words]) == 0
    words = ["--out", str(out / "corpus"), "--size", "32", "--workers", "1"]
    assert main(["prepare", "mimic-cxr-jpg", str(out / "raw"), *words]) == 0
    words = ["--tokenizer", str(chain / "vqgan"), "--out", str(out / "tokens")]
    assert main(["tokenize", "--corpus", str(out / "corpus"), *words]) == 0
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch_size=4"]
    assert main(["fit", *config(chain, out), *short]) == 0
    return out


def config(chain: Path, out: Path) -> list[str]:
    return [
        "--config",
        "demo/stage2.yaml",
        f"--data.corpora=[{out}/corpus]",
        f"--data.tokens=[{out}/tokens]",
        DATA,
        "--data.weights=null",
        f"--model.init_args.backbone={chain}/backbone/backbone",
        f"--model.init_args.tokens={out}/tokens",
        "--data.each_view=true",
        "--model.init_args.model.multi_view=true",
        f"--trainer.default_root_dir={out}/stage2",
        "--trainer.accelerator=cpu",
    ]


def sides(out: Path, split: str) -> list[dict[str, int]]:
    """Of each study of a split the first image of each side."""
    corpus, found = Corpus(out / "corpus"), []
    for row in corpus.rows(split):
        rows: dict[str, int] = {}
        for number, view in corpus.image_rows(row):
            rows.setdefault(SIDES[view], number)
        found.append(rows)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What a module is asked to draw, and from what."""
    asked: list[tuple[Any, Any]] = []
    draw = Generator.generate_images

    def watched(
        self: Any,
        texts: Any,
        seed: Any,
        keys: Any,
        best_of: Any = 1,
        scorer: Any = None,
        views: Any = None,
        given: Any = None,
    ) -> Any:
        asked.extend(zip(views, given or [{}] * len(texts)))
        return draw(self, texts, seed, keys, best_of, scorer, views, given)

    monkeypatch.setattr(Generator, "generate_images", watched)
    return asked


def test_the_test_draws_the_missing_view(
    chain: Path, made: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, pixels = [], Corpus.pixels
    monkeypatch.setattr(
        Corpus, "pixels", lambda self, row: compared.append(row) or pixels(self, row)
    )  # type: ignore[func-returns-value]
    tested = [
        "test",
        *config(chain, made),
        f"--ckpt_path={made}/stage2/checkpoints/last.ckpt",
        "--trainer.callbacks+=mavilt_pl.callbacks.SynthesisMetrics",
        f"--trainer.callbacks.tokenizer={chain}/vqgan/checkpoints/last.ckpt",
        f"--trainer.callbacks.judge={chain}/encoder/checkpoints/last.ckpt",
        # Only the tested images are to be read.
        "--trainer.callbacks.training_images=0",
        "--trainer.callbacks.save_images=true",
        "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter",
    ]
    assert main(tested) == 0
    found = {
        f["metric"]: f
        for f in json.loads((made / "stage2/test/results.json").read_text())["figures"]
    }
    studies = sides(made, "test")
    assert found["fid_cxr"]["n"] == len(studies) == 8
    # Every drawing is a file that the predictions name.
    folder = made / "stage2/test"
    drawn = [one for one in read_predictions(folder / "predictions.jsonl") if "image" in one]
    assert len({one["image"] for one in drawn}) == 8
    assert {str(path.relative_to(folder)) for path in (folder / "drawn").iterdir()} == {
        one["image"] for one in drawn
    }
    assert all(one["reference"] for one in drawn)
    assert found["missing_view_fid_cxr"]["n"] == sum(len(rows) > 1 for rows in studies) < 8
    assert found["missing_view_fid_cxr"]["value"] != found["fid_cxr"]["value"]
    assert "missing_view_drawn_auroc_macro" in found
    codes = TokenCache(made / "tokens")
    wanted = [(min(rows), {}) for rows in studies]  # frontal comes first
    wanted += [
        ("lateral", {"frontal": codes[rows["frontal"]].tolist()})
        for rows in studies
        if len(rows) > 1
    ]
    assert sorted(map(str, asked)) == sorted(map(str, wanted))
    originals = [rows[min(rows)] for rows in studies] + [
        rows["lateral"] for rows in studies if len(rows) > 1
    ]
    assert sorted(compared) == sorted(originals)
    corpus, judge = Corpus(made / "corpus"), load_encoder(chain / "encoder/checkpoints/last.ckpt")
    own = np.stack([pixels(corpus, rows[min(rows)]) for rows in studies])
    with torch.inference_mode():
        scores = judge.logits(judge.maps(torch.from_numpy(own / np.float32(127.5) - 1)[:, None]))
    truth = np.asarray(corpus.labels(judge.findings))[corpus.rows("test")]
    areas = [
        roc_auc_score(t[t == t], s[t == t])
        for t, s in zip(truth.T, scores.T.numpy())
        if len({*t[t == t]}) == 2
    ]
    assert (
        found["original_auroc_macro"]["value"] == pytest.approx(np.mean(areas), abs=1e-6)
        and len(areas) > 2
    )
    assert "missing_view_original_auroc_macro" in found
    assert "second view" in found["missing_view_drawn_auroc_macro"]["protocol"]
    samples = json.loads((made / "stage2/test/samples.json").read_text())["synthesis"]
    assert {"second_image" in sample for sample in samples} == {True, False}
    assert main(["results", str(made / "stage2")]) == 0
    page = (made / "stage2/report.html").read_text()
    assert "missing_view_fid_cxr" in page and page.count("second view, generated from") >= 2


def test_both_images_of_a_study_are_read(
    chain: Path, made: Path, capsys: pytest.CaptureFixture[str], asked: list[Any]
) -> None:
    """As the module does with the codes that `mavilt tokenize` made of them."""
    runs = ["--model", str(made / "stage2"), "--tokenizer", str(chain / "vqgan"), "--device", "cpu"]
    model, corpus = (
        MAViLT.from_runs(made / "stage2", chain / "vqgan", device="cpu"),
        Corpus(made / "corpus"),
    )
    row = next(
        row
        for row in corpus.rows("train")
        if {SIDES[view] for _, view in corpus.image_rows(row)} == {*SIDES.values()}
    )
    codes, files, paths = (
        TokenCache(made / "tokens"),
        {path.stem: path for path in (made / "raw").rglob("*.jpg")},
        {},
    )
    shown = {}
    for (number, view), image in zip(corpus.image_rows(row), corpus[row].images):
        if SIDES[view] not in shown:
            shown[SIDES[view]], paths[SIDES[view]] = codes[number].tolist(), str(files[image.key])
    frontal, lateral = paths["frontal"], paths["lateral"]
    shown = {view: shown[view] for view in ("frontal", "lateral")}

    assert main(["report", frontal, "--lateral", lateral, "--json", *runs]) == 0
    said = json.loads(capsys.readouterr().out)
    wanted = model.generator.generate_reports([shown], 0, [sample_key(str(shown))])
    assert said["image"] == {"frontal": frontal, "lateral": lateral}
    assert said["report"] == wanted[0]
    assert (
        main(
            [
                "ask",
                frontal,
                "Is there edema?",
                "--answers",
                "yes,no",
                "--json",
                "--lateral",
                lateral,
                *runs,
            ]
        )
        == 0
    )
    answer = json.loads(capsys.readouterr().out)["probabilities"]
    ((both,),) = model.generator.answer_questions([shown], [[("Is there edema?", ("yes", "no"))]])
    ((one,),) = model.generator.answer_questions(
        [{"frontal": shown["frontal"]}], [[("Is there edema?", ("yes", "no"))]]
    )
    assert [*answer.values()] == pytest.approx(both, abs=1e-6) and both != pytest.approx(
        one, abs=1e-6
    )

    assert (
        main(
            [
                "draw",
                "No edema.",
                "--view",
                "lateral",
                "--given",
                frontal,
                "--no-banner",
                "--out",
                str(made / "drawn"),
                *runs,
            ]
        )
        == 0
    )
    picture = Image.open(made / "drawn/1.png")
    comment = picture.text["Comment"]  # type: ignore[attr-defined]
    assert comment.endswith("seed 0, lateral view, from the frontal image")
    given = [{"frontal": shown["frontal"]}]
    assert asked == [("lateral", given[0])]
    drawn = model.generator.generate_images(
        ["No edema."], 0, [sample_key(f"No edema. {given[0]}")], views=["lateral"], given=given
    )
    with torch.inference_mode():
        pixels = model.vqgan.decode(drawn)[0, 0]
    assert np.array_equal(
        np.asarray(picture), ((pixels.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["report", "a.png", "b.png", "--lateral", "c.png"],
            "--lateral: found 1 for 2 IMAGEs; expected the lateral image of each",
        ),
        (
            ["draw", "Edema.", "--given", "a.png", "b.png"],
            "--given: found 2 for 1 TEXTs; expected the other view of each",
        ),
        (
            ["report", "a.png", "--lateral", "c.png", "{one}"],
            "a view is named, and this model was trained on one image",
        ),
        (
            ["ask", "a.png", "Where?", "--lateral", "c.png", "{one}"],
            "a view is named, and this model",
        ),
        (["draw", "Edema.", "--view", "lateral", "{one}"], "a view is named, and this model"),
        (["report", "a.png", "--lateral", "c.png"], "a.png: the file is missing"),
    ],
)
def test_impossible_views_are_refused(
    words: list[str],
    said: str,
    chain: Path,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(chain / "stage2") if "{one}" in words else str(made / "stage2")
    words = [word for word in words if word != "{one}"] + (
        ["--out", str(tmp_path)] if words[0] == "draw" else []
    )
    assert (
        main([*words, "--model", run, "--tokenizer", str(chain / "vqgan"), "--device", "cpu"]) == 1
    )
    errors = capsys.readouterr().err
    assert said in errors and errors.count("mavilt:") == 1


def test_views_in_python_are_checked(chain: Path, made: Path) -> None:
    model = MAViLT.from_runs(made / "stage2", chain / "vqgan", device="cpu")
    with pytest.raises(
        UserError, match=r"found the views \['oblique'\]; expected some of frontal, lateral"
    ):
        model.report([{"oblique": "a.png"}])  # type: ignore[dict-item]
    for given in ({"frontal": "a.png"}, "frontal.png", Path("a.png"), {}):
        with pytest.raises(
            UserError,
            match=r"expected \{'lateral': FILE\}, the view that the frontal one is generated from",
        ):
            model.draw(["Edema."], given=[given])  # type: ignore[list-item]
    with pytest.raises(UserError, match="view: found 'oblique'; expected one of frontal, lateral"):
        model.draw(["Edema."], view="oblique")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the images of 1 studies for 2 texts"):
        model.draw(["Edema.", "No edema."], given=[{"lateral": "a.png"}])


def test_the_order_of_views_does_not_count(chain: Path, made: Path) -> None:
    model = MAViLT.from_runs(made / "stage2", chain / "vqgan", device="cpu")
    model.generator.sampling = SamplingOptions(text=TextSampling(temperature=1.0))
    one, other = sorted(map(str, (made / "raw").rglob("*.jpg")))[:2]
    studies: list[Any] = [
        {"frontal": one, "lateral": other},
        {"lateral": other, "frontal": one},
        {"lateral": other},
    ]
    first, second, third = model.report(studies)
    assert first == second and first.text != third.text
