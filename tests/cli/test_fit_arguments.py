"""What `mavilt fit` understands, and what it refuses with one message before it builds a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from words import FINDINGS, QUIET

from mavilt_pl.cli import main
from mavilt_pl.cli.fit_parser import parse_fit_arguments
from mavilt_pl.config_files import CONFIGS
from mavilt_pl.errors import UserError

VQGAN = ["fit", "--config=demo/vqgan.yaml", "--data.weights=null", *QUIET]


@pytest.fixture(autouse=True)
def _builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("mavilt_pl.cli.training.MaviltCLI.instantiate_classes", build)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command ends with."""
    assert main(list(words)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_what_is_not_named_yet_is_listed_with_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused(capsys, "fit", "--config", "stage1.yaml")
    assert (
        "--data.corpora [corpora/mimic] --data.tokens [tokens/mimic] "
        "--model.init_args.backbone FOLDER_OR_HUB_NAME --model.init_args.tokens tokens/mimic. "
        "Or make a project folder: mavilt init DIR"
    ) in message
    message = refused(capsys, "fit", "--config", "vqgan.yaml")
    assert "data.corpora (as `mavilt prepare` writes them)" in message
    assert "model.init_args.backbone" not in message


def test_findings_of_model_and_data_must_agree(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config=encoder.yaml", "--data.corpora=[c]"]
    message = refused(capsys, *words, "--model.init_args.findings=[edema]")
    assert "model.init_args.findings are ['edema'] and data.findings are ['atelectasis'" in message


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (
            "--trainer.accumulate_grad_batches=2",
            "--model.init_args.accumulate_grad_batches 2",
        ),
        ("--trainer.gradient_clip_val=1.0", "--model.init_args.gradient_clip_norm 1.0"),
    ],
)
def test_keys_of_the_trainer_that_a_vqgan_has_itself(
    capsys: pytest.CaptureFixture[str], given: str, instead: str
) -> None:
    assert instead in refused(capsys, *VQGAN, "--data.corpora=[c]", given)


def test_a_misspelt_key_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "batchsize" in refused(capsys, *VQGAN, "--data.corpora=[c]", "--data.batchsize=3")


def test_a_word_without_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", "stage1.yaml", "--data.corpora", "a", "b")
    assert message.startswith("mavilt: b: this word belongs to no option")


def test_the_command_line_counts_wherever_the_configs_stand() -> None:
    steps = "--trainer.max_steps=2"
    for words in (
        [steps, "--config=demo/encoder.yaml"],
        ["--trainer.max_steps", "2", "demo/encoder.yaml"],
        ["-c", "demo/encoder.yaml", steps, "-c", "debug/limit.yaml"],
    ):
        settings = parse_fit_arguments(words)
        assert settings.trainer.max_steps == 2
        assert settings.model.class_path == "mavilt_pl.encoders.CXRClassifier"


def test_one_path_is_a_list_of_one() -> None:
    words = ["--config=demo/encoder.yaml", "--data.findings", FINDINGS[1]]
    data = parse_fit_arguments([*words, "--data.corpora", "corpora/mimic"]).data
    assert data.corpora == ["corpora/mimic"]
    assert data.findings == [FINDINGS[1]]
    data = parse_fit_arguments([*words, "--data.corpora=a,b", "--data.tokens=null"]).data
    assert data.corpora == ["a", "b"]
    assert data.tokens is None


def test_an_encoder_that_does_not_exist_is_refused_though_no_term_uses_it(tmp_path: Path) -> None:
    from mavilt_pl.vqgan import VQGAN as Module

    with pytest.raises(UserError, match=r"encoder: .*nosuch.ckpt does not exist"):
        Module(encoder=str(tmp_path / "nosuch.ckpt"))


def test_an_unknown_recipe_lists_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "run", "mimic")
    recipes = sorted(path.stem for path in (CONFIGS / "recipes").glob("*.yaml"))
    assert message.endswith(f"shipped are: {', '.join(recipes)}")
