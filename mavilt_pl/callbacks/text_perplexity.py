"""Forgetting is measured, not assumed: perplexity on held-out plain text before, during and after."""

from __future__ import annotations

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.report_sections import clean, compose
from mavilt_pl.errors import UserError
from mavilt_pl.metrics.text import Perplexity


class Forgetting(Callback):
    """Perplexity of the language model on held-out plain texts of a corpus, without any image.

    It is logged, beside λ_reg, at the start of the fit and at every validation. The test gives
    `perplexity` of task `text`, and on the same texts that of the model before any stage
    (`perplexity_before`) and their ratio (`perplexity_ratio`).

    Args:
        corpus: prepared corpus whose texts are read.
        split: of it; default: `val` in a fit and `test` in a test.
        sections, cleaning: as the data's.
        limit: at most so many texts.
        before: in the test, compare with the backbone as it was; needs the memory of a second
            model, and none is made of a backbone that started from random weights.
    """

    task = "text"

    def __init__(
        self,
        corpus: str,
        split: str | None = None,
        sections: str = "findings+impression",
        cleaning: str = "none",
        limit: int = 200,
        before: bool = True,
    ):
        self.before = before
        self.corpus, self.split, self.sections, self.cleaning, self.limit = (
            corpus,
            split,
            sections,
            cleaning,
            limit,
        )
        self.figures: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []
        self._texts: list[tuple[str, str]] = []
        self._name = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        corpus, split = Corpus(self.corpus), self.split or ("test" if stage == "test" else "val")
        self._name = corpus.name
        texts = (
            (study.patient, clean(compose(study, self.sections), self.cleaning))
            for study in map(corpus.__getitem__, corpus.rows(split))
        )
        self._texts = [(patient, text) for patient, text in texts if len(text) > 20][: self.limit]
        if not self._texts:
            raise UserError(
                f"{self.corpus}: found no text of more than 20 letters in its split {split}; "
                f"expected some to read"
            )

    def measure(self, trainer: Trainer, module: Any, earlier: Any = None) -> Perplexity:
        """The perplexity of a module on this process's share of the texts; of an earlier one on the
        same texts too.
        """
        metric = Perplexity().to(module.device)
        mine = self._texts[trainer.global_rank :: trainer.world_size]
        training = module.training
        module.eval()
        for start in range(0, len(mine), 32):
            part = mine[start : start + 32]
            texts = [text for _, text in part]
            nats, tokens = module.generator.plain_text_nats(texts)
            before = None if earlier is None else earlier.plain_text_nats(texts)[0].tolist()
            metric.update(nats.tolist(), tokens.tolist(), [patient for patient, _ in part], before)
        module.train(training)
        return metric

    def _log(self, trainer: Trainer, module: Any) -> None:
        value = self.measure(trainer, module).compute().get("perplexity")
        if value is not None and trainer.logger is not None:
            trainer.logger.log_metrics(
                {
                    "val/text_perplexity": value.value,
                    "val/text_nats": math.log(value.value),
                    "val/lambda_reg": module.regularizer.lambda_reg,
                },
                trainer.global_step,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._log(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        earlier = pl_module.initial_generator() if self.before else None
        metric = self.measure(trainer, pl_module, earlier)
        self.figures = [
            {
                "task": "text",
                "source": self._name,
                "metric": name,
                **value._asdict(),
                "protocol": metric.protocol,
                "control": None,
            }
            for name, value in metric.compute().items()
        ]
