"""CheXbert (arXiv 2004.09167): the 14 labels of CheXpert, read by a BERT from local weights.

Shape legend: B texts, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mavilt_pl.errors import UserError
from mavilt_pl.metrics.labellers import Findings, Labeller

# In the order of the published weights; the last one has two classes, the others four.
CONDITIONS = (
    "enlarged cardiomediastinum",
    "cardiomegaly",
    "lung opacity",
    "lung lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural effusion",
    "pleural other",
    "fracture",
    "support devices",
    "no finding",
)
CLASSES = (None, "present", "absent", "uncertain")  # None: not mentioned
BATCH = 32
MAX_TOKENS = 512
EXPECTED = (
    "expected CheXbert's published chexbert.pth on this disk, and --bert a folder of "
    "bert-base-uncased with vocab.txt and config.json (nothing is downloaded)"
)


class CheXbert(nn.Module):
    """BERT with one linear layer a condition on its class token."""

    def __init__(self, config: Any):
        super().__init__()
        from transformers import BertModel

        # The names of both are those of the published weights.
        self.bert = BertModel(config)
        heads = []
        for condition in CONDITIONS:
            classes = 2 if condition == CONDITIONS[-1] else len(CLASSES)
            heads.append(nn.Linear(config.hidden_size, classes))
        self.linear_heads = nn.ModuleList(heads)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> list[Tensor]:
        """Logits of each condition, [B,4], and of no finding, [B,2]."""
        states_BTD = self.bert(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return [head(states_BTD[:, 0]) for head in self.linear_heads]


def chexbert_labeller(weights: str | Path, bert: str | Path) -> Labeller:
    """CheXbert from local files.

    Args:
        weights: the published `chexbert.pth`.
        bert: a folder with config.json and vocab.txt of bert-base-uncased.

    Raises:
        UserError: a file is missing, damaged, or of another network.

    >>> chexbert_labeller("nowhere.pth", "nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mavilt_pl.errors.UserError: nowhere.pth does not exist; expected CheXbert's ...
    """
    for path in (Path(weights), Path(bert) / "config.json", Path(bert) / "vocab.txt"):
        if not path.is_file():
            raise UserError(f"{path} does not exist; {EXPECTED}")
    from transformers import BertConfig, BertTokenizer

    # Random weights first; every one is replaced below, or the file is refused.
    model = CheXbert(BertConfig.from_pretrained(bert, local_files_only=True)).eval()
    _load(model, Path(weights))
    tokenizer = BertTokenizer.from_pretrained(bert, local_files_only=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    def read(texts: Sequence[str]) -> list[Findings]:
        """The findings of each text."""
        found: list[Findings] = []
        # Texts of a batch are padded to its longest; the mask keeps padding out.
        for start in range(0, len(texts), BATCH):
            # As the authors prepare them: one line, single spaces.
            batch = [" ".join(text.split()) for text in texts[start : start + BATCH]]
            encoded = tokenizer(
                batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).to(device)
            with torch.inference_mode():
                logits = model(encoded["input_ids"], encoded["attention_mask"])
            chosen = torch.stack([of_condition.argmax(1) for of_condition in logits], 1)
            found += [_findings(row) for row in chosen.tolist()]
        return found

    return Labeller("CheXbert", CONDITIONS, read)


def _findings(classes: Sequence[int]) -> Findings:
    """Labels by name from the class of each condition."""
    labels = {}
    for condition, number in zip(CONDITIONS, classes):
        label = CLASSES[number]
        if label is not None:
            labels[condition] = label
    return labels


def _load(model: CheXbert, path: Path) -> None:
    """Load the published weights.

    Raises:
        UserError: they are damaged or of another network.
    """
    try:
        # Tensors only: a pickle could run anything.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0][:150]
        raise UserError(f"{path} is not readable ({reason}); {EXPECTED}") from None
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else {}
    # Saved from several GPUs; and older versions of transformers saved the positions too.
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state.pop("bert.embeddings.position_ids", None)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is of another network ({reason}); {EXPECTED}") from None
