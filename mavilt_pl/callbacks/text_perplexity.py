"""Forgetting, measured: perplexity on held-out plain text before, during and after a training."""

from __future__ import annotations

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.report_sections import clean, compose
from mavilt_pl.errors import UserError
from mavilt_pl.metrics.text import Perplexity
from mavilt_pl.ranges import PositiveInt

# Texts of one batch are padded to the longest; 32 fit into memory next to a training.
BATCH_SIZE = 32  # texts
SHORTEST_TEXT = 20  # letters; shorter texts say little about a language


class Forgetting(Callback):
    """Perplexity of the language model on held-out plain texts of a corpus, without any image.

    It is logged, with λ_reg, at the start of the fit and at every validation. A test gives
    `perplexity` of task `text`, and on the same texts the perplexity of the model before any stage
    (`perplexity_before`) and their ratio (`perplexity_ratio`).

    Args:
        corpus: prepared corpus with the texts.
        split: of the corpus; default: `val` in a fit and `test` in a test.
        sections: which part of a report is its text, as `data.sections`.
        cleaning: name of a cleaning protocol, as `data.cleaning`.
        limit: largest number of texts.
        before: compare with the original backbone in a test. It needs the memory of a second model;
            there is no comparison for a backbone that started from random weights.
    """

    task = "text"

    def __init__(
        self,
        corpus: str,
        split: str | None = None,
        sections: str = "findings+impression",
        cleaning: str = "none",
        limit: PositiveInt = 200,
        before: bool = True,
    ):
        self.corpus, self.split, self.limit = corpus, split, limit
        self.sections, self.cleaning, self.before = sections, cleaning, before
        self.figures: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []
        self._texts: list[tuple[str, str]] = []  # patient, text
        self._source = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the texts.

        Raises:
            UserError: the split has none.
        """
        corpus = Corpus(self.corpus)
        # Test texts are not looked at during training.
        split = self.split or ("test" if stage == "test" else "val")
        self._source = corpus.name
        self._texts = []
        # The first texts of the split, so all runs measure the same ones.
        for row in corpus.rows(split):
            if len(self._texts) == self.limit:
                break
            study = corpus[row]
            text = clean(compose(study, self.sections), self.cleaning)
            if len(text) > SHORTEST_TEXT:
                self._texts.append((study.patient, text))
        if not self._texts:
            raise UserError(
                f"{self.corpus}: found no text of more than {SHORTEST_TEXT} letters in its split "
                f"{split}; choose another split or corpus"
            )

    def measure(self, trainer: Trainer, module: Any, earlier: Any = None) -> Perplexity:
        """Perplexity on this process's part of the texts.

        Args:
            trainer: says which part.
            module: the language module.
            earlier: a generator of an earlier model, to compare with on the same texts.
        """
        metric = Perplexity().to(module.device)
        # No sampler is involved, so ranks split the texts themselves, each exactly once.
        texts = self._texts[trainer.global_rank :: trainer.world_size]
        # Without dropout. Under fsdp2 a change of mode is a collective, so all ranks make it.
        was_training = module.training
        module.eval()
        for start in range(0, len(texts), BATCH_SIZE):
            batch = texts[start : start + BATCH_SIZE]
            patients = [patient for patient, _ in batch]
            strings = [text for _, text in batch]
            nats, tokens = module.generator.plain_text_nats(strings)
            before = None
            # On the same texts, so the ratio has a paired interval.
            if earlier is not None:
                before = earlier.plain_text_nats(strings)[0].tolist()
            metric.update(nats.tolist(), tokens.tolist(), patients, before)
        module.train(was_training)
        return metric

    def _log(self, trainer: Trainer, module: Any) -> None:
        # `compute` gathers from all ranks, so it comes before any rank returns.
        perplexity = self.measure(trainer, module).compute().get("perplexity")
        if perplexity is None or trainer.logger is None:
            return
        # λ_reg next to the perplexity, so that a sweep's curves can be distinguished in
        # TensorBoard.
        values = {
            "val/text_perplexity": perplexity.value,
            "val/text_nats": math.log(perplexity.value),
            "val/lambda_reg": module.regularizer.lambda_reg,
        }
        trainer.logger.log_metrics(values, trainer.global_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model before its first step."""
        # A resumed run was measured at its start already.
        if trainer.global_step == 0:
            self._log(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model in training."""
        # Before the first step there is `on_train_start`.
        if not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model and, if asked for, the original backbone."""
        earlier = pl_module.initial_generator() if self.before else None
        metric = self.measure(trainer, pl_module, earlier)
        self.figures = []
        for name, value in metric.compute().items():
            self.figures.append(
                value.as_figure(self.task, self._source, name, metric.protocol_of(name))
            )
