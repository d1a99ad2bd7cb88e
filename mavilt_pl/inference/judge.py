"""Which of several drawings shows best what its text states, by an encoder that reads findings.

Shape legend: B drawings, N codes an image, F findings of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.encoders.loading import Encoder
from mavilt_pl.errors import UserError
from mavilt_pl.metrics.clinical import TERMS, findings_in
from mavilt_pl.vqgan.tokenizer import Tokenizer


class Judge:
    """Scores codes and their texts, as `LanguageModule.draw` asks its scorer to.

    `findings` are those that the encoder has logits for and `findings_in` reads in a text. Raises
    `UserError` where there is none.
    """

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer):
        self.encoder, self.tokenizer = encoder, tokenizer
        self.findings = [name for name in encoder.findings if name in TERMS]
        if not self.findings:
            raise UserError(
                f"the judge: found an encoder of the findings "
                f"{', '.join(filter(None, encoder.findings)) or 'none'}; expected "
                f"one that reads some of {', '.join(TERMS)}. Take another encoder, or best_of 1"
            )

    def states(self, text: str) -> dict[str, bool]:
        """Whether each of `findings` is there, of those that the text says present or absent."""
        read = findings_in(text)
        return {
            name: read[name] == "present"
            for name in self.findings
            if read.get(name) in ("present", "absent")
        }

    def __call__(self, codes_BN: Tensor, texts: Sequence[str]) -> Tensor:
        """Mean log-likelihood of what each text states, nats [B]; 0 where it states nothing."""
        logits_BF = self.encoder.logits(self.encoder.maps(self.tokenizer.decode(codes_BN)))
        scores = []
        for logits_F, text in zip(logits_BF, texts):
            stated = self.states(text)
            signed = [
                logits_F[self.encoder.findings.index(name)] * (1 if there else -1)
                for name, there in stated.items()
            ]
            scores.append(
                F.logsigmoid(torch.stack(signed)).mean() if signed else logits_F.new_zeros(())
            )
        return torch.stack(scores)
