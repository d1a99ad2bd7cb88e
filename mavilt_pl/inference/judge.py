"""Choose, among several generated images, the one that best shows the findings its text states.

Shape legend: B images, N codes an image, F findings of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.encoders.loading import Encoder
from mavilt_pl.errors import UserError
from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.metrics.finding_phrases import TERMS
from mavilt_pl.vqgan.tokenizer import Tokenizer


class Judge:
    """Scores codes for their texts, as `Generator.generate_images` asks its scorer to.

    Args:
        encoder: reads findings in images.
        tokenizer: decodes the codes.

    Raises:
        UserError: the encoder reads no finding that `findings_in` reads in a text.
    """

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer):
        self.encoder, self.tokenizer = encoder, tokenizer
        # Encoders of other datasets also name findings that no text is searched for.
        self.findings = [name for name in encoder.findings if name in TERMS]
        if not self.findings:
            names = ", ".join(filter(None, encoder.findings)) or "none"
            raise UserError(
                f"the judge: found an encoder of the findings {names}; expected one that reads "
                f"some of {', '.join(TERMS)}. Use another encoder, or best_of 1"
            )

    def stated_findings(self, text: str) -> dict[str, bool]:
        """Findings that a text states, True for present and False for absent."""
        # Uncertain findings state nothing that an image could be checked against.
        labels = findings_in(text)
        stated = {}
        for name in self.findings:
            if labels.get(name) in ("present", "absent"):
                stated[name] = labels[name] == "present"
        return stated

    def __call__(self, codes_BN: Tensor, texts: Sequence[str]) -> Tensor:
        """Mean log-likelihood of what each text states, nats [B]; 0 if it states nothing."""
        # The judge sees decoded pixels, as a reader would, and not codes.
        logits_BF = self.encoder.logits(self.encoder.maps(self.tokenizer.decode(codes_BN)))
        scores = []
        for logits_F, text in zip(logits_BF, texts):
            signed = []
            for name, present in self.stated_findings(text).items():
                logit = logits_F[self.encoder.findings.index(name)]
                # log σ(z) is the log-likelihood of "present", log σ(−z) that of "absent".
                signed.append(logit if present else -logit)
            # A mean and not a sum, so that a text is not punished for stating more.
            if signed:
                scores.append(F.logsigmoid(torch.stack(signed)).mean())
            else:
                scores.append(logits_F.new_zeros(()))
        return torch.stack(scores)
