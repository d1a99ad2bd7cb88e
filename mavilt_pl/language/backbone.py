"""Load a pretrained causal language model, or train a small one on plain text where none can be
had.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from mavilt_pl.checkpoint import check_compatible
from mavilt_pl.errors import UserError
from mavilt_pl.language.optim import Kind, configured

END = "<|endoftext|>"
HARMLESS = ("masked_bias", "inv_freq")  # buffers that older transformers saved
Attention = Literal["sdpa", "flash_attention_2", "eager"]


class NoKernel(UserError):
    """The architecture has no such attention."""


def load_backbone(
    name: str, attention: Attention = "sdpa", pretrained: bool = True
) -> tuple[Any, Any]:
    """Model (float32, safetensors only) and tokenizer from a local folder or a hub name; with
    `pretrained` false a model of that shape with random weights.

    Raises `UserError` where there is no model or no tokenizer that can be read, where some of its
    weights are missing (`_whole`), and where the model and its tokenizer, or its head, are not as
    the language modules need them (`_check`).
    """
    folder = name.startswith((".", "/")) or "runs/" in name or not name  # meant as a folder
    if folder and not (Path(name) / "config.json").exists():
        raise UserError(
            f"backbone {name}: no config.json there. Expected a folder saved by Hugging Face's "
            f"save_pretrained, such "
            "as the one that `mavilt fit --config backbone.yaml` leaves in <run>/backbone"
        )
    kind = {"dtype": torch.float32, "attn_implementation": attention}
    told: dict[str, Any] = {}
    try:
        if pretrained:
            how = {
                "use_safetensors": True,
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,
            }
            model, told = AutoModelForCausalLM.from_pretrained(name, **how, **kind)  # type: ignore[misc]
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), **kind)
    except ImportError as error:
        raise UserError(
            f"attention: {attention} cannot be had here ({_reason(error)}); use sdpa"
        ) from None
    except Exception as error:
        if "does not support an attention implementation" in str(error):
            raise NoKernel(
                f"backbone {name}: found attention {attention}, which transformers has not for "
                f"this model "
                f"({str(error).split()[0]}); set --model.init_args.attention eager"
            ) from error
        nowhere = isinstance(error, OSError) and not Path(name).is_dir()
        raise UserError(
            f"backbone {name}: "
            f"{'no folder there, and not to be had from the hub' if nowhere else 'not to be loaded'} "
            f"({_reason(error)}). Expected a causal language model, such as Llama, Qwen, Phi, "
            f"Pythia or GPT-2, in a folder saved by "
            "Hugging Face's save_pretrained, or its name on the hub; if it was downloaded or "
            "copied, do it again"
        ) from error
    _whole(name, told)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"backbone {name}: no tokenizer that can be read ({_reason(error)}). Expected "
            f"tokenizer.json beside the model, as the "
            "tokenizer's save_pretrained leaves it"
        ) from error
    _check(name, model, tokenizer)
    return model, tokenizer


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"


def _whole(name: str, told: Mapping[str, Any]) -> None:
    """Refuse weights that are missing or of other sizes, which transformers would leave random;
    tell of those that are not used. `told` is its loading info, in which a tied head is not
    missing.
    """
    wrong = sorted(
        [*told.get("missing_keys", ()), *(key for key, *_ in told.get("mismatched_keys", ()))]
    )
    if wrong:
        raise UserError(
            f"backbone {name}: {len(wrong)} of its weights are missing, or not of the size that "
            f"config.json says (first: {wrong[0]}). "
            "Expected all of them: they would be random; download or copy the folder again, or set "
            "pretrained: false for a model "
            "from scratch"
        )
    if others := sorted(
        key for key in told.get("unexpected_keys", ()) if not key.endswith(HARMLESS)
    ):
        warnings.warn(
            f"backbone {name}: {len(others)} weights of its files belong to no part of the model "
            f"and are left out (first: {others[0]})",
            stacklevel=3,
        )


@torch.no_grad()
def _check(name: str, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with words that the model has no row for (their ids would be those of
    marks and codes), and a model without a cache, and a head that is more than a linear map (capped
    or scaled logits): the modules read its rows, not its function.
    """
    rows = model.get_input_embeddings().num_embeddings
    special = set(tokenizer.all_special_tokens)
    beyond = sorted(
        (i, word) for word, i in tokenizer.get_vocab().items() if i >= rows and word not in special
    )
    if beyond:
        raise UserError(
            f"backbone {name}: its tokenizer has {len(beyond)} words without a row in the model "
            f"(first: {beyond[0][1]!r}, id "
            f"{beyond[0][0]}; the model has {rows:,} rows). Grow the model with transformers' "
            f"resize_token_embeddings({len(tokenizer)}), or remove these words, and save both again"
        )
    head, training = model.get_output_embeddings(), model.training
    if head is None or head.weight.shape[0] != rows:
        raise UserError(
            f"backbone {name}: {type(model).__name__} has no head with a row for each of its "
            f"{rows:,} words"
        )
    model.eval()
    ids = torch.arange(min(4, rows))[None]
    if not {"past_key_values", "cache"} & model.base_model(input_ids=ids, use_cache=True).keys():
        raise UserError(
            f"backbone {name}: {type(model).__name__} gives no cache that writing and drawing "
            f"could go on from, which is not "
            "supported; take another model, such as Llama, Qwen, Phi, Pythia or GPT-2"
        )
    logits = model(input_ids=ids, use_cache=False).logits
    linear = F.linear(
        model.base_model(input_ids=ids, use_cache=False).last_hidden_state, head.weight, head.bias
    )
    model.train(training)
    if not torch.allclose(logits, linear, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"backbone {name}: the logits of {type(model).__name__} are not a linear map of its "
            f"last hidden state (they are "
            "scaled, capped or projected), which is not supported; take a model with a plain head, "
            "such as Llama, Qwen, "
            "Phi, Pythia or GPT-2"
        )


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `size` words, learned from texts; it can write any
    text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_end(tokenizer)


def _with_end(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


class Backbone(LightningModule):
    """A small Llama-style language model trained on plain text, and its tokenizer: the "pretrained"
    model of the demo.

    It takes batches of texts (`batch_kind: text`). At the end of the fit it is saved, Hugging Face
    style, to `<default_root_dir>/backbone`, which is what Stage 1 takes.

    Args:
        vocabulary: words of the byte-level BPE tokenizer, learned from the training texts; a
            resumed run keeps its checkpoint's, whatever the texts are now.
        width, layers, heads: of the transformer; the MLP is 8/3 wide, as Llama's.
        context: longest sequence in tokens.
        optimizer, learning_rate, matrix_rate, warmup: as the stages have them (`optimizer.py`).
        block: tokens in a training row; texts are joined end to end, so that nothing is padding.
    """

    def __init__(
        self,
        vocabulary: int = 2048,
        width: int = 192,
        layers: int = 4,
        heads: int = 4,
        context: int = 512,
        optimizer: Kind = "adamw",
        learning_rate: float = 3e-3,
        matrix_rate: float = 0.02,
        warmup: int = 20,
        block: int = 128,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.model: Any = None

    def _build(self) -> None:
        h = self.hparams
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),  # type: ignore[arg-type]
            hidden_size=h["width"],
            intermediate_size=h["width"] * 8 // 3 // 16 * 16,
            num_hidden_layers=h["layers"],
            num_attention_heads=h["heads"],
            max_position_embeddings=h["context"],
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
        self.model = AutoModelForCausalLM.from_config(config)

    def setup(self, stage: str) -> None:
        if self.model is None:
            self.tokenizer = train_tokenizer(
                self.trainer.datamodule.texts("train"), self.hparams["vocabulary"]
            )  # type: ignore[attr-defined]
            self._build()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """The checkpoint's words with its rows: the tokenizer that `setup` learned may be of other
        texts.
        """
        check_compatible(checkpoint, self)
        self.tokenizer = _with_end(Tokenizer.from_str(checkpoint["tokenizer"]))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["tokenizer"] = self.tokenizer.backend_tokenizer.to_str()  # type: ignore[union-attr]

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Texts joined end to end, int64 [rows, block + 1]; what does not fill a row is left for
        another epoch.
        """
        ids = [i for line in self.tokenizer(list(texts))["input_ids"] for i in [*line, 0]]  # type: ignore[misc]
        block = min(self.hparams["block"], len(ids) - 1)
        count = (len(ids) - 1) // block
        joined = torch.tensor(ids[: count * block + 1], device=self.device)
        return torch.stack([joined[i * block : (i + 1) * block + 1] for i in range(count)])

    def loss(self, texts: Sequence[str]) -> Tensor:
        """Cross-entropy in nats per token."""
        rows = self.rows(texts)
        logits_BTV = self.model(input_ids=rows[:, :-1]).logits
        return F.cross_entropy(logits_BTV.flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, batch: dict, index: int) -> Tensor:
        loss = self.loss(batch["text"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> None:
        loss = self.loss(batch["text"])
        source = self.trainer.datamodule.names[dataloader_idx]  # type: ignore[attr-defined]
        self.log(
            f"val/{source}/loss",
            loss,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(batch["text"]),
            add_dataloader_idx=False,
        )

    def configure_optimizers(self) -> Any:
        h = self.hparams
        return configured(
            self,
            self.model.base_model,
            h["optimizer"],
            h["learning_rate"],
            h["matrix_rate"],
            h["warmup"],
        )

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir) / "backbone"
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
