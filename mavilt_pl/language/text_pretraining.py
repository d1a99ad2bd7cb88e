"""Train a small causal language model on plain text, for machines that cannot get a pretrained one.

Shape legend: B rows of a batch, T positions, V rows of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from mavilt_pl.checkpoint import check_compatible
from mavilt_pl.language.optim import configure_optimizer
from mavilt_pl.language.options import TuningOptions
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_folder
from mavilt_pl.ranges import NonNegativeInt, PositiveFloat, Size

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `size` tokens that can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, whether or not the training texts have them, so that any text can be
        # encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


RECORD = "training.json"  # marks the folder of a backbone as this module's


class Backbone(LightningModule):
    """A small Llama-style language model and its tokenizer, trained on plain text.

    It takes batches of texts (`batch_kind: text`). At the end of the fit it is saved in Hugging
    Face's layout to `<default_root_dir>/backbone`, the folder that Stage 1 takes.

    Args:
        vocabulary_size: tokens of the byte-level BPE tokenizer, learned from the training texts; a
            resumed run keeps its checkpoint's tokenizer.
        width: of the transformer; its MLP is 8/3 as wide, as Llama's.
        layers: of the transformer.
        heads: of each layer's attention.
        context: longest sequence in tokens.
        optimizer: adamw or muon, as in the stages.
        learning_rate: of AdamW.
        matrix_learning_rate: of Muon, for the weight matrices.
        warmup_steps: linear warm-up, then a cosine down to a hundredth.
        block: tokens of a training row; texts are joined end to end, so nothing is padding.
    """

    def __init__(
        self,
        vocabulary_size: Size = 2048,
        width: Size = 192,
        layers: Size = 4,
        heads: Size = 4,
        context: Size = 512,
        optimizer: Literal["adamw", "muon"] = "adamw",
        learning_rate: PositiveFloat = 3e-3,
        matrix_learning_rate: PositiveFloat = 0.02,
        warmup_steps: NonNegativeInt = 20,
        block: Size = 128,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.tokenizer: Any = None
        self.model: Any = None

    def _build(self) -> None:
        h = self.hparams
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=h["width"],
            # 8/3 of the width, down to a multiple of 16.
            intermediate_size=h["width"] * 8 // 3 // 16 * 16,
            num_hidden_layers=h["layers"],
            num_attention_heads=h["heads"],
            max_position_embeddings=h["context"],
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            # An untied head would add a fifth to the 2.1 M weights of the demo's model.
            tie_word_embeddings=True,
        )
        self.model = AutoModelForCausalLM.from_config(config)

    def setup(self, stage: str) -> None:
        """Learn the tokenizer from the training texts and build the model, once."""
        # A later `validate` in the same process must not replace trained weights.
        if self.model is None:
            texts = self.trainer.datamodule.texts("train")
            self.tokenizer = train_tokenizer(texts, self.hparams["vocabulary_size"])
            self._build()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take the tokenizer of the checkpoint."""
        # The tokenizer that `setup` learned may be of other texts than the checkpoint's rows.
        check_compatible(checkpoint, self)
        self.tokenizer = _wrap(Tokenizer.from_str(checkpoint["tokenizer"]))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add the tokenizer."""
        # With the weights: the rows of a model mean nothing without the tokenizer that numbered
        # them.
        checkpoint["tokenizer"] = self.tokenizer.backend_tokenizer.to_str()

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Texts joined end to end, int64 [B, block + 1]; tokens that fill no row are dropped."""
        ids: list[int] = []
        # Id 0 is `END_OF_TEXT`, the first special token of the trainer.
        for line in self.tokenizer(list(texts))["input_ids"]:
            ids += [*line, 0]
        # Few short texts may not fill one block.
        block = min(self.hparams["block"], len(ids) - 1)
        count = (len(ids) - 1) // block
        joined = torch.tensor(ids[: count * block + 1], device=self.device)
        # Each row repeats the last token of the row before, which predicts its first.
        rows = []
        for index in range(count):
            first = index * block
            rows.append(joined[first : first + block + 1])
        return torch.stack(rows)

    def loss(self, texts: Sequence[str]) -> Tensor:
        """Cross-entropy in nats per token."""
        rows = self.rows(texts)
        logits_BTV = self.model(input_ids=rows[:, :-1]).logits
        return F.cross_entropy(logits_BTV.flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, batch: dict, index: int) -> Tensor:
        """Cross-entropy of a batch of texts, nats per token."""
        loss = self.loss(batch["text"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> None:
        """Log the cross-entropy of each source."""
        loss = self.loss(batch["text"])
        source = self.trainer.datamodule.names[dataloader_idx]
        self.log(
            f"val/{source}/loss",
            loss,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(batch["text"]),
            add_dataloader_idx=False,
        )

    def configure_optimizers(self) -> Any:
        """The optimizer of the stages."""
        h = self.hparams
        keys = ("optimizer", "learning_rate", "matrix_learning_rate", "warmup_steps")
        # The stages' optimizer, so that one implementation is tested and tuned.
        tuning = TuningOptions(**{key: h[key] for key in keys})
        return configure_optimizer(self, self.model.base_model, tuning)

    @property
    def _folder(self) -> Path:
        """Of the trained backbone."""
        return Path(self.trainer.default_root_dir) / "backbone"

    def on_fit_start(self) -> None:
        """Check that the backbone's folder may be written, before it is trained."""
        check_folder(self._folder, (RECORD,), "a backbone of this run")

    def on_fit_end(self) -> None:
        """Write the folder that a stage takes as its `backbone`."""
        # One rank writes; others would write the same files at the same moment.
        if self.trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            # First, so that a folder that a killed run has begun is known as ours.
            record = {"module": "Backbone", "steps": self.trainer.global_step}
            atomic_write_text(self._folder / RECORD, json.dumps(record))
            self.model.save_pretrained(self._folder)
            self.tokenizer.save_pretrained(self._folder)
