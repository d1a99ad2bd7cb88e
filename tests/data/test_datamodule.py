"""Batches from prepared corpora: every study once in evaluation, whatever the world size; mixing
and resuming in training.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import seed_everything
from vqa_rad import prepared

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.samplers import SeededIndex, UnpaddedDistributedSampler, WeightedSourceSampler
from mavilt_pl.data.token_cache import TokenCache, write_tokens
from mavilt_pl.errors import UserError


@pytest.fixture
def tokens(corpus_path: Path, tmp_path: Path) -> Path:
    corpus = Corpus(corpus_path)
    codes = np.arange(corpus.n_images * 4).reshape(-1, 4) % 50
    write_tokens(
        tmp_path / "tokens",
        corpus.fingerprint,
        "sha",
        np.zeros((50, 2)),
        2,
        corpus.n_images,
        [codes[:40], codes[40:]],
    )
    return tmp_path / "tokens"


def module(corpus: Path, **more: object) -> CXRDataModule:
    # Every phantom's report describes or denies it, so every study has a label and a question.
    made = CXRDataModule(
        [str(corpus)], findings=["pneumothorax"], batch_size=4, eval_batch_size=4, **more
    )  # type: ignore[arg-type]
    made.setup("fit")
    return made


def test_images(corpus_path: Path) -> None:
    batch = next(iter(module(corpus_path).train_dataloader()))
    assert batch["pixels"].shape == (4, 1, 32, 32) and batch["pixels"].dtype == torch.float32
    assert (
        batch["pixels"].min() >= -1
        and batch["pixels"].max() <= 1
        and batch["labels"].shape == (4, 1)
    )


def test_augmentation_moves_and_exposes_but_never_flips(
    corpus_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is bright in its upper left stays so; evaluation is left alone."""
    corner = np.full((32, 32), 60, np.uint8)
    corner[4:14, 4:14] = 200
    monkeypatch.setattr(Corpus, "pixels", lambda self, image: corner)
    made = module(corpus_path, augment=True)
    train, test = made.train_dataloader().dataset, made.test_dataloader()[0].dataset
    images = [train[SeededIndex.at(i, 0, 0, i)]["pixels"][0] for i in range(len(train))]
    assert torch.equal(
        images[3], train[SeededIndex.at(3, 0, 0, 3)]["pixels"][0]
    )  # whenever it is drawn
    assert not torch.equal(
        images[3], train[SeededIndex.at(3, 0, 1, 3)]["pixels"][0]
    )  # but in another epoch
    still = test[0]["pixels"][0]
    assert sum(not torch.equal(image, still) for image in images) > 0.8 * len(images)
    for image in images:
        assert image.min() >= -1 and image.max() <= 1
        others = (image[:16, 16:], image[16:, :16], image[16:, 16:])
        assert all(image[:16, :16].mean() > other.mean() + 0.1 for other in others)
    np.testing.assert_allclose(still, corner / 127.5 - 1, atol=1e-6)


def test_instructions_and_the_control(corpus_path: Path, tokens: Path) -> None:
    made = module(corpus_path, tokens=[str(tokens)], batch_kind="instructions")
    batches = list(made.test_dataloader()[0])
    studies = [study for batch in batches for study in batch["studies"]]
    assert len({s["study"] for s in studies}) == 11 and all(
        len(s["questions"]) == 1 for s in studies
    )
    own, other = (
        torch.cat([batch[name] for batch in batches]) for name in ("codes", "control_codes")
    )
    dataset = made.test_dataloader()[0].dataset
    patient = [study["patient"] for study in studies]
    assert all(
        patient[i] != patient[other] for i, other in enumerate(dataset.control)
    )  # never the patient's own
    assert sorted(own[:, 0].tolist()) == sorted(
        other[:, 0].tolist()
    )  # and every image is somebody's


def test_questions_are_capped_in_training_only(corpus_path: Path, tokens: Path) -> None:
    findings = ["pleural effusion", "cardiomegaly", "pneumothorax", "support devices"]
    made = CXRDataModule(
        [str(corpus_path)], [str(tokens)], "instructions", findings=findings, questions_per_study=2
    )
    made.setup("fit")
    asked = [
        [q.topic for q in s["questions"]]
        for _ in range(3)
        for b in made.train_dataloader()
        for s in b["studies"]
    ]
    assert {len(topics) for topics in asked} == {2} and all(
        len(set(topics)) == 2 for topics in asked
    )
    assert {topic for topics in asked for topic in topics} == set(findings)  # others each time
    assert all(len(s["questions"]) == 4 for b in made.test_dataloader()[0] for s in b["studies"])


def test_questions_from_labels_are_tested_in_words_that_were_not_trained(
    corpus_path: Path, tokens: Path
) -> None:
    findings = ["edema", "cardiomegaly", "pneumothorax", "consolidation"]
    made = CXRDataModule([str(corpus_path)], [str(tokens)], "instructions", findings=findings)
    made.setup("fit")

    def asked(loader: Iterable[Any]) -> set[str]:
        """Questions with the finding's name taken out."""
        studies = [study for batch in loader for study in batch["studies"]]
        return {
            re.sub("(a )?(pulmonary )?" + q.topic, "…", q.question)
            for s in studies
            for q in s["questions"]
        }

    trained = asked(made.train_dataloader())
    held_out = asked(made.val_dataloader()[0]) | asked(made.test_dataloader()[0])
    assert len(trained) > 2 and len(held_out) == 1 and not trained & held_out


def codes_of(path: Path, out: Path) -> Path:
    corpus = Corpus(path)
    write_tokens(
        out,
        corpus.fingerprint,
        "sha",
        np.zeros((50, 2)),
        2,
        corpus.n_images,
        [np.ones((corpus.n_images, 4), int)],
    )
    return out


def test_questions_without_reports_are_asked(mimic_root: Path, tmp_path: Path) -> None:
    """VQA-RAD has no reports: it is for instructions, not for pairs."""
    corpus = prepared(mimic_root, tmp_path)
    tokens = [str(codes_of(corpus, tmp_path / "tokens"))]
    made = module(corpus, tokens=tokens, batch_kind="instructions")
    studies = [s for loader in made.test_dataloader() for batch in loader for s in batch["studies"]]
    assert len(studies) == len(Corpus(corpus).rows("test")) > 1
    assert all(study["text"] == "" and len(study["questions"]) == 2 for study in studies)
    assert all(
        len(s["questions"]) == 2 for batch in made.train_dataloader() for s in batch["studies"]
    )
    with pytest.raises(
        UserError, match=r"no train study can be used .*: found \d+ without a text; look"
    ):
        module(corpus, tokens=tokens, batch_kind="pairs").train_dataloader()


def test_skipped_studies_are_counted_in_a_warning(
    corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten of 43 training studies lose their text; without questions they are skipped."""
    lost = set(Corpus(corpus_path).rows("train")[:10].tolist())
    text = Corpus.text
    monkeypatch.setattr(
        Corpus,
        "text",
        lambda self, row: replace(text(self, row), **({"findings": ""} if row in lost else {})),
    )
    more = {"tokens": [str(codes_of(corpus_path, tmp_path / "tokens"))]}
    with pytest.warns(
        UserWarning, match="phantom_mimic: of 43 train studies, skipped 10 without a text$"
    ):
        assert len(module(corpus_path, batch_kind="pairs", **more).train_dataloader().dataset) == 33
    with pytest.warns(UserWarning, match="skipped 10 without a text or a question$"):
        module(corpus_path, batch_kind="instructions", ask_labels=False, **more).train_dataloader()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert (
            len(module(corpus_path, batch_kind="instructions", **more).train_dataloader().dataset)
            == 43
        )


def test_the_image_is_one_of_the_requested_views(tmp_path: Path) -> None:
    """Studies with a frontal and a lateral image: `views` says which is the study's image."""
    raw, out = str(tmp_path / "raw"), tmp_path / "corpus"
    assert main(["phantom", "mimic", raw, "--studies", "8", "--size", "40", "--laterals", "1"]) == 0
    assert main(["prepare", "mimic-cxr-jpg", raw, "--out", str(out), "--size", "32"]) == 0
    corpus = Corpus(out)
    assert len(corpus) == 8 and corpus.n_images == 16
    for views, wanted in ((["PA", "AP"], {"PA", "AP"}), (["LATERAL"], {"LATERAL"})):
        dataset = module(out, views=views).train_dataloader().dataset
        view = {number: seen for row in range(8) for number, seen in corpus.image_rows(row)}
        assert {view[dataset[i]["image_row"]] for i in range(8)} <= wanted
    both = (
        module(out, each_view=True).train_dataloader().dataset
    )  # of images alone, each view is an item
    assert len(both) == 16
    for item in (both[i] for i in range(16)):
        assert torch.equal(
            item["pixels"][0], to_float(torch.from_numpy(corpus.pixels(item["image_row"]).copy()))
        )
    assert {both[i]["image_row"] for i in range(16)} == {*view}


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_every_study_once_whatever_the_world(world: int) -> None:
    seen = []
    for rank in range(world):
        sampler = UnpaddedDistributedSampler(11, rank, world)
        # A rank beyond the studies takes a copy of one, which no metric counts.
        assert sampler.is_filler == (rank >= 11) and len(list(sampler)) > 0
        seen += [] if sampler.is_filler else list(sampler)
    assert sorted(seen) == list(range(11))
    assert all(
        len(UnpaddedDistributedSampler(11, rank, world))
        == len(list(UnpaddedDistributedSampler(11, rank, world)))
        for rank in range(world)
    )


def test_mixing_by_weight_and_ranks_that_do_not_overlap() -> None:
    ranks = [list(WeightedSourceSampler([30, 10], [0.5, 0.5], 0, rank, 2)) for rank in range(2)]
    assert [len(r) for r in ranks] == [20, 20]
    both = ranks[0] + ranks[1]
    assert sum(i < 30 for i in both) == 20 and len({i for i in both if i < 30}) == 20
    later = WeightedSourceSampler([30, 10], [0.5, 0.5], 0, 0, 2)
    later.epoch = 1
    assert list(later) != ranks[0]
    later.epoch, later.num_consumed = 0, 10  # 5 of each rank
    assert list(later) == ranks[0][5:]


def test_a_loader_continues_at_its_position(corpus_path: Path) -> None:
    whole = [b["patient"] for b in module(corpus_path).train_dataloader()]
    first, second = module(corpus_path).train_dataloader(), module(corpus_path).train_dataloader()
    taken = iter(first)
    next(taken), next(taken), next(taken)
    second.load_state_dict(first.state_dict())
    assert [b["patient"] for b in second] == whole[3:]


def test_caches_of_others_are_refused(corpus_path: Path, tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="codes of another corpus"):
        TokenCache(tokens, "f" * 64)
    with pytest.raises(UserError, match="one token cache a corpus"):
        CXRDataModule([str(corpus_path)], batch_kind="pairs")
    write_tokens(
        tmp_path / "other", "x", "another", np.zeros((50, 2)), 2, 1, [np.zeros((1, 4), int)]
    )
    with pytest.raises(UserError, match="different tokenizers"):
        TokenCache(tokens).same_tokenizer(TokenCache(tmp_path / "other"))
    with pytest.raises(UserError, match="codes of 1 images, the corpus has 2"):
        write_tokens(tmp_path / "short", "x", "y", np.zeros((50, 2)), 2, 2, [np.zeros((1, 4), int)])
    with pytest.raises(UserError, match="not a finished token cache"):
        TokenCache(tmp_path / "short")


def test_settings_that_cannot_be(corpus_path: Path) -> None:
    with pytest.raises(UserError, match="one of findings"):
        module(corpus_path, sections="finding").texts("train")
    with pytest.raises(UserError, match="no train study can be used"):
        module(corpus_path, views=["LATERAL"]).train_dataloader()
    with pytest.raises(
        UserError, match="batch_size 64: 43 training studies over 1 process do not fill one batch"
    ):
        few = CXRDataModule([str(corpus_path)], batch_size=64)
        few.setup("fit")
        few.train_dataloader()
    with pytest.raises(UserError, match="one weight of 0 or more a corpus"):
        CXRDataModule([str(corpus_path)], weights=[0.5, 0.5])


def test_another_seed_of_the_run_is_another_order(
    corpus_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else a training draws; `data.seed` fixes it."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def order(of_run: int, **more: int) -> list[str]:
        seed_everything(of_run, verbose=False)
        made = CXRDataModule([str(corpus_path)], batch_size=4, **more)  # type: ignore[arg-type]
        made.setup("fit")
        return [study["study"] for batch in made.train_dataloader() for study in batch["studies"]]

    one, again, other = order(1), order(1), order(2)
    assert one == again and one != other and len(one) == len(other)
    assert order(1, seed=5) == order(2, seed=5) != one
