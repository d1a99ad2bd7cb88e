"""A trained model in use: the verbs `report`, `ask`, `draw` and `export`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoConfig

from mavilt_pl.cli import main
from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.encoders import CXRClassifier
from mavilt_pl.errors import UserError, escape
from mavilt_pl.inference.mavilt import MAViLT
from mavilt_pl.language import ModelOptions, Stage1


@pytest.fixture(scope="module")
def runs(chain: Path) -> list[str]:
    return [
        "--model",
        str(chain / "stage2"),
        "--tokenizer",
        str(chain / "vqgan"),
        "--device",
        "cpu",
    ]


@pytest.fixture(scope="module")
def images(mimic_root: Path) -> list[Path]:
    return sorted(mimic_root.rglob("*.jpg"))[:3]


def trained_with(chain: Path, out: Path, **settings: Any) -> Path:
    """The checkpoint of Stage 2 as if it had been trained with other settings, by group and key."""
    checkpoint = torch.load(chain / "stage2/checkpoints/last.ckpt", weights_only=True)
    for group, values in settings.items():
        checkpoint["hyper_parameters"][group] |= values
    torch.save(checkpoint, out)
    return out


def judge_of(findings: list[str], out: Path) -> Path:
    """The checkpoint of a tiny random encoder that is sure of what it says."""
    torch.manual_seed(1)
    encoder = CXRClassifier(findings, image_size=32, widths=(4, 8))
    with torch.no_grad():
        encoder.net.head.weight.mul_(50)
    torch.save({"state_dict": encoder.state_dict(), "hyper_parameters": dict(encoder.hparams)}, out)
    return out


def test_files_are_read_as_training_read_them(
    chain: Path, corpus_path: Path, mimic_root: Path
) -> None:
    """Their codes are those of the token cache that `prepare` and `tokenize` made."""
    model = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu")
    cache, corpus = TokenCache(chain / "tokens"), Corpus(corpus_path)
    files = {path.stem: path for path in mimic_root.rglob("*.jpg")}
    rows, paths = [], []
    for study in range(4):
        rows += [row for row, _ in corpus.image_rows(study)]
        paths += [files[image.key] for image in corpus[study].images]
    assert torch.equal(model.codes(paths), torch.from_numpy(np.stack([cache[row] for row in rows])))


def shown(text: str) -> str:
    """A text as it is printed: an untrained model writes control characters."""
    return "\n".join(escape(line) for line in text.split("\n")) + "\n"


def test_reports_and_answers(
    runs: list[str], images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *map(str, images), "--json", *runs]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in said] == [str(image) for image in images]
    assert main(["report", str(images[2]), *runs]) == 0
    assert capsys.readouterr().out == shown(f"{images[2]}: {said[2]['report']}")
    question = "Is there edema?"
    assert (
        main(["ask", str(images[0]), question, "Where?", "--answers", "yes, no", "--json", *runs])
        == 0
    )
    shares = [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]
    assert len(shares) == 2 and all(
        set(row) == {"yes", "no"} and sum(row.values()) == pytest.approx(1) for row in shares
    )
    assert main(["ask", str(images[0]), question, *runs]) == 0
    # A yes-or-no question is answered with probabilities, unless free text is asked for.
    assert re.fullmatch(rf"{re.escape(question)} yes 0\.\d+, no 0\.\d+\n", capsys.readouterr().out)
    assert main(["ask", str(images[0]), question, "--free-text", *runs]) == 0
    assert not re.search(r"yes 0\.\d+, no", capsys.readouterr().out)


def test_one_bad_file_costs_one_report(
    runs: list[str], images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file, a pipe and a file without an image are named; the others get a report."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(image.read_bytes())
    (folder / "1a.png").write_bytes(b"no image")
    os.mkfifo(folder / "1b.png")
    (folder / "table.csv").write_text("a,b")
    assert main(["report", *map(str, images), "--json", *runs]) == 0
    expected = [json.loads(line)["report"] for line in capsys.readouterr().out.splitlines()]

    assert main(["report", str(folder), "--json", *runs]) == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    names = [Path(row["image"]).name for row in rows]
    assert names == ["0.jpg", "1.jpg", "1a.png", "1b.png", "2.jpg"]
    assert [row["report"] for row in rows if "report" in row] == expected
    assert "1a.png" in rows[2]["error"] and "no regular file" in rows[3]["error"]
    assert "2 of 5 without a report" in printed.err

    words = [str(images[0]), str(folder / "1a.png"), str(images[1]), "Is there edema?"]
    assert main(["ask", *words, "--json", *runs]) == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["image"] for row in rows] == words[:3]
    assert "1a.png" in rows[1]["error"] and "1 of 3 without answers" in printed.err


def test_what_is_drawn_says_so_and_depends_on_text_and_seed_alone(
    runs: list[str], tmp_path: Path
) -> None:
    def drawn(name: str, *words: str) -> list[np.ndarray]:
        assert main(["draw", *words, "--no-banner", "--out", str(tmp_path / name), *runs]) == 0
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / name).glob("*.png"))]

    two, one, other = (
        drawn("two", "Edema.", "Normal."),
        drawn("one", "Edema."),
        drawn("other", "Edema.", "--seed", "1"),
    )
    assert [picture.shape for picture in two] == [(32, 32)] * 2 and np.array_equal(two[0], one[0])
    assert not np.array_equal(one[0], other[0])
    said = Image.open(tmp_path / "two/2.png").text["Comment"]
    assert re.fullmatch("Synthetic: generated by mavilt, model [0-9a-f]{12}, seed 0", said)
    drawn("kept", "Normal.", "--keep-text")
    said = Image.open(tmp_path / "kept/1.png").text["Comment"]
    assert said.endswith("seed 0, from the text: Normal.")
    assert not list(tmp_path.rglob("*.part"))


def test_what_is_sampled_depends_on_what_it_is_made_from_alone(
    chain: Path,
    runs: list[str],
    images: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sampling = trained_with(
        chain, tmp_path / "sampling.ckpt", sampling={"text": {"temperature": 1.0}}
    )
    model = MAViLT.from_runs(sampling, chain / "vqgan", device="cpu")
    texts = ["Edema.", "Normal heart.", "Edema."]
    drawn = [drawing.image for drawing in model.draw(texts)]
    assert np.array_equal(drawn[1], model.draw(texts[1]).image)
    assert np.array_equal(drawn[0], drawn[2])
    written = model.report(images)
    assert model.report(images[1:2]) == written[1:2] and model.report(images, seed=1) != written
    questions = ["Is there edema?", "Where?"]
    assert model.ask(images[0], questions[1:]) == model.ask(images[0], questions)[1:]
    assert model.ask(images[0], questions, seed=1) != model.ask(images[0], questions)
    assert model.report([]) == model.draw([]) == model.ask([], "Where?") == []

    said = []
    for seed in ("0", "1"):
        for words in (
            ["report", str(images[0])],
            ["ask", str(images[0]), *questions, "--free-text"],
        ):
            assert main([*words, *runs, "--model", str(sampling), "--seed", seed]) == 0
            said.append(capsys.readouterr().out)
    assert len({*said}) == 4 and said[0] == shown(f"{images[0]}: {written[0]}")


def test_texts_that_are_cut_are_named(
    runs: list[str], images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, out = "edema " * 400, str(tmp_path / "drawn")
    for words, named in (
        (["draw", "Edema.", long, "--out", out], "text 2"),
        (["ask", str(images[0]), "Where?", long], "question 'edema edema edema edema edema [...]'"),
    ):
        assert main([*words, *runs]) == 0
        printed = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("mavilt:")
        ]
        assert len(printed) == 1 and printed[0].startswith(f"mavilt: {named}: its 4")
        assert printed[0].endswith("tokens were truncated to max_text_tokens = 96")


def test_the_best_of_several_is_the_judge_s_likeliest(
    chain: Path, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = judge_of(["hernia", "pneumothorax", "pleural effusion"], tmp_path / "judge.ckpt")
    texts = [
        "Pneumothorax. No effusion.",
        "No pneumothorax. Large effusion.",
        "Possible effusion.",
        "No pneumothorax.",
    ]
    words = ["--best-of", "4", "--judge", str(judge), "--out", str(tmp_path), "--no-banner"]
    assert main(["draw", *texts, *words, *runs]) == 0
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mavilt:")]
    assert printed == [
        "mavilt: text 3 states none of the judge's findings (pneumothorax, pleural effusion); the "
        "first of its 4 images was kept"
    ]
    found = [np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(1, 5)]

    model, drawn = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu"), []

    def every(codes_BN: Tensor, _: Any) -> Tensor:
        drawn.append(model.vqgan.decode(codes_BN))
        return codes_BN.new_zeros(len(codes_BN))

    with torch.inference_mode():
        model.generator.generate_images(texts, 0, [sample_key(text) for text in texts], 4, every)
        encoder = CXRClassifier(
            ["hernia", "pneumothorax", "pleural effusion"], image_size=32, widths=(4, 8)
        ).eval()
        encoder.load_state_dict(torch.load(judge, weights_only=True)["state_dict"])
        chance = np.stack(
            [encoder.net(pixels).double().sigmoid().numpy() for pixels in drawn]
        )  # [4,B,F]
    shown = np.stack(
        [((pixels[:, 0].clamp(-1, 1) + 1) * 127.5).round().numpy() for pixels in drawn]
    )
    _, pneumothorax, effusion = chance.transpose(2, 1, 0)
    likelihoods = [
        pneumothorax[0] * (1 - effusion[0]),
        (1 - pneumothorax[1]) * effusion[1],
        None,
        1 - pneumothorax[3],
    ]
    best = [0 if row is None else int(row.argmax()) for row in likelihoods]
    assert len({*best}) > 1
    for number, which in enumerate(best):
        # In a batch a pixel now and then is rounded to the other side.
        assert [np.abs(found[number] - shown[i, number]).max() <= 1 for i in range(4)] == [
            i == which for i in range(4)
        ]
    comment = Image.open(tmp_path / "1.png").text["Comment"]  # type: ignore[attr-defined]
    assert comment.endswith("seed 0, best of 4 by a judge")


def test_a_model_is_used_as_this_machine_can_and_not_as_it_was_trained(
    chain: Path, tmp_path: Path
) -> None:
    fast = trained_with(
        chain,
        tmp_path / "fast.ckpt",
        model={"attention": "flash_attention_2"},
        sampling={"image": {"guidance_scale": 3.0, "compile": True}},
    )
    model, plain = (
        MAViLT.from_runs(path, chain / "vqgan", device="cpu") for path in (fast, chain / "stage2")
    )
    assert not model.generator.sampling.image.compile
    assert np.array_equal(model.draw("Edema.").image, plain.draw("Edema.").image)


def test_a_model_of_a_plain_trainer_without_sdpa(chain: Path, tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "attention_types": [[["global"], 1]],
    }
    tokenizer = AutoTokenizer.from_pretrained(chain / "backbone/backbone")
    neo = GPTNeoConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape)
    AutoModelForCausalLM.from_config(neo).save_pretrained(tmp_path / "neo")
    tokenizer.save_pretrained(tmp_path / "neo")
    module = Stage1(
        str(tmp_path / "neo"), str(chain / "tokens"), model=ModelOptions(attention="eager")
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    model = MAViLT.from_runs(tmp_path / "plain.ckpt", chain / "vqgan", device="cpu")
    assert torch.equal(
        model.generator.generate_images(["Edema."]),
        module.eval().generator.generate_images(["Edema."]),
    )


def test_an_export_is_plain_hugging_face(chain: Path, runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(["export", "--out", str(out), *runs]) == 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ours = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu").generator.model
    ids = torch.tensor([tokenizer("No pleural effusion.", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, ours.backbone(ids).logits, atol=1e-5)
    # The tokenizer knows the marks and the codes; `generate` ends at ours, not at the base's.
    vocabulary = ours.vocabulary
    marks = ["<end>", "<begin>", "</image>", "<code-0>", "<code-31>"]
    assert tokenizer.convert_tokens_to_ids(marks) == [
        vocabulary.end,
        vocabulary.special_token_id("<begin>"),
        vocabulary.special_token_id("</image>"),
        vocabulary.first_code,
        vocabulary.code_stop - 1,
    ]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == vocabulary.end
    assert not tokenizer.chat_template
    assert main(["export", "--out", str(out), *runs]) == 1
    assert main(["export", "--out", str(tmp_path / "nothing"), *runs, "--backbone", "absent"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_the_card_of_an_export_runs(
    chain: Path, runs: list[str], images: list[Path], tmp_path: Path
) -> None:
    """Its example writes the report that mavilt writes, and draws; in a process of its own."""
    out = tmp_path / "exported"
    assert main(["export", "--out", str(out), *runs]) == 0
    card = (out / "README.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code.strip() == (out / "example.py").read_text().strip()
    assert "no medical device" in card and "Stage2 of `mavilt_pl`" in card
    assert str(chain) not in card

    def run(*words: object) -> str:
        command = [sys.executable, str(out / "example.py"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    model = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu")
    assert run(images[0]).removesuffix("\n") == str(model.report(images[0]))
    run("--draw", "Edema.", tmp_path / "drawn.png")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == (32, 32) and drawn.std() > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "absent.png"], "absent.png: the file is missing"),
        (
            ["ask", "absent.png", "What?", "--answers", "yes"],
            "--answers: found 'yes'; expected two or more",
        ),
        (
            ["ask", "absent.png", "What?", "--answers", "yes,yes"],
            "'yes,yes'; expected two or more, each once",
        ),
        (
            ["export", "--out", "/proc/x/y"],
            "--out /proc/x/y cannot be created or written (No such file",
        ),
        (["draw", "Edema.", "--out", "/proc"], "--out /proc cannot be created or written ("),
        (
            ["draw", "Edema.", "--out", "{out}", "--best-of", "2"],
            "--best-of: found 2, without --judge; expected 1",
        ),
        (
            ["draw", "Edema.", "--out", "{out}", "--judge", "{judge}"],
            "--best-of: found 1, with --judge",
        ),
        (
            ["draw", "Edema.", "--out", "{out}", "--judge", "{judge}", "--best-of", "2"],
            "of the findings hernia; expected",
        ),
        (
            [
                "draw",
                "Edema.",
                "--out",
                "{out}",
                "--judge",
                "{judge}",
                "--best-of",
                "2",
                "--judge-kind",
                "torchxrayvision",
            ],
            "is not a DenseNet-121",
        ),
        (
            ["report", "absent.png", "--model", "{chain}/vqgan"],
            "another module; expected one of Stage 1 or Stage 2",
        ),
        (["report", "absent.png", "--model", "{chain}/nothing"], "nothing"),
        (["report", "absent.png", "--backbone", "absent"], "absent"),
    ],
)
def test_impossible_inputs_are_refused(
    words: list[str],
    said: str,
    chain: Path,
    runs: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "chain": chain,
        "out": tmp_path / "drawn",
        "judge": judge_of(["hernia"], tmp_path / "judge.ckpt"),
    }
    head, more = words[:1], [word.format(**names) for word in words[1:]]
    code = main([*head, *runs, *more])
    errors = capsys.readouterr().err
    assert code == 1 and said in errors and errors.count("mavilt:") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"max_text_tokens": "x"}),
        ("tuning", [1]),
        ("sampling", {"image": None, "text": 3}),
        ("_class_path", None),
        ("backbone", 7),
    ],
)
def test_settings_of_a_checkpoint_are_checked(
    chain: Path, tmp_path: Path, key: str, value: object
) -> None:
    """A file may hold any value; none gives a traceback."""
    checkpoint = torch.load(chain / "stage2/checkpoints/last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"][key] = value
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(UserError, match=r"expected"):
        MAViLT.from_runs(tmp_path / "changed.ckpt", chain / "vqgan", device="cpu")


def test_a_question_that_is_not_utf8(chain: Path, images: list[Path]) -> None:
    """As the command line passes it: half of a surrogate pair for each byte."""
    model = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu")
    assert model.ask(images[0], "Is there \udcff edema?").text
    assert len(model.draw(["Edema \udcff."])) == 1


def test_a_run_remembers_its_tokenizer(
    chain: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By path and checksum, also after the runs have moved together."""
    word = ["report", str(images[0]), "--backbone", str(chain / "backbone/backbone")]
    assert main([*word, "--model", str(chain / "stage2")]) == 0
    expected = capsys.readouterr().out
    for name in ("stage2", "vqgan"):
        shutil.copytree(chain / name, tmp_path / "moved" / name)
    path = tmp_path / "moved/stage2/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["visual_tokenizer_path"] == str(chain / "vqgan/checkpoints/last.ckpt")
    checkpoint["visual_tokenizer_path"] = "/elsewhere/vqgan/checkpoints/last.ckpt"
    torch.save(checkpoint, path)
    assert main([*word, "--model", str(tmp_path / "moved/stage2")]) == 0
    assert capsys.readouterr().out == expected
    # Trained further, it is another tokenizer.
    with (tmp_path / "moved/vqgan/checkpoints/last.ckpt").open("ab") as file:
        file.write(b"x")
    assert main([*word, "--model", str(tmp_path / "moved/stage2")]) == 1
    assert "is not found, /elsewhere/vqgan" in capsys.readouterr().err


def test_answers_are_different(chain: Path, images: list[Path]) -> None:
    model = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu")
    with pytest.raises(UserError, match="expected each of them once"):
        model.ask(images[0], ["Is there edema?"], ["yes", "yes"])


def test_one_image_and_one_question(chain: Path, images: list[Path]) -> None:
    """A string is one of them, and not a list of letters."""
    model = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu")
    assert [model.report(str(images[0]))] == model.report([images[0]])
    answer = model.ask(images[0], "Is there edema?")
    assert [answer] == model.ask(images[0], ["Is there edema?"])
    assert [[answer]] == model.ask(images[:1], ["Is there edema?"])
    assert str(answer) == max(answer.probabilities, key=answer.probabilities.get)
    assert model.ask(images[0], "Is there edema?", answers=[]).probabilities is None


def test_stage1_has_learned_no_questions(chain: Path, images: list[Path]) -> None:
    model = MAViLT.from_runs(chain / "stage1", chain / "vqgan", device="cpu")
    with pytest.raises(UserError, match="it is of Stage 1"):
        model.ask(images[0], ["Is there edema?"])


def test_another_tokenizer_is_refused(
    chain: Path,
    runs: list[str],
    images: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = torch.load(chain / "vqgan/checkpoints/last.ckpt", weights_only=True)
    torch.save({**checkpoint, "global_step": 99}, tmp_path / "other.ckpt")
    assert main(["report", str(images[0]), *runs, "--tokenizer", str(tmp_path / "other.ckpt")]) == 1
    assert "its codes mean different things" in capsys.readouterr().err


def test_an_export_is_read_back_to_the_bit(
    chain: Path, runs: list[str], images: list[Path], tmp_path: Path, capsys: Any
) -> None:
    """All three tasks, in Python and by the verbs; a damaged folder is one message."""
    out = tmp_path / "exported"
    assert main(["export", "--out", str(out), *runs]) == 0
    ours = MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu")
    back = MAViLT.from_pretrained(out, device="cpu")
    asked = ["Is there edema?", "Is there <image> or <end>?"]
    assert back.report(images) == ours.report(images)
    assert back.ask(images[0], asked, ["yes", "no"]) == ours.ask(images[0], asked, ["yes", "no"])
    assert back.ask(images[0], asked) == ours.ask(images[0], asked)
    drawn, expected = back.draw("Edema.", seed=3), ours.draw("Edema.", seed=3)
    assert drawn == expected and np.array_equal(drawn.image, expected.image)
    # A run is taken under the same name.
    assert MAViLT.from_pretrained(chain / "stage2", device="cpu").report(images[0])
    capsys.readouterr()
    assert main(["report", str(images[0]), "--model", str(out), "--device", "cpu"]) == 0
    assert escape(str(ours.report(images[0]))) in capsys.readouterr().out
    assert main(["report", str(images[0]), "--model", str(out), "--tokenizer", "x"]) == 1
    assert "has its own: drop it" in capsys.readouterr().err
    facts = json.loads((out / "visual.json").read_text())
    (out / "visual.json").write_text(json.dumps({**facts, "settings": {}}))
    assert main(["report", str(images[0]), "--model", str(out)]) == 1
    assert "export the run again" in capsys.readouterr().err
