"""What Stage 1 and Stage 2 share: the grown language model, the losses on its targets, drift, and
what it can do.

The position tells the modality, so the head is restricted: a text target is normalised over the old
vocabulary and `<end>`, an image target over the K codes (`loss_vocabulary: full` normalises both
over everything, as LLM-CXR does). Only hidden states at target positions meet the head, chunk by
chunk, so no [B,T,V] logits exist.

Shape legend: B batch, T positions, N codes an image, K codes in the book, D width, M target
positions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from safetensors.torch import save_file
from torch import Tensor, nn

from mavilt_pl.checkpoint import check_compatible, read_weights
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError
from mavilt_pl.language import sampling as decoding
from mavilt_pl.language.adapters import (
    AdapterDrift,
    Lora,
    NewRows,
    Tuning,
    add_adapters,
    freeze,
    from_full,
    merged,
)
from mavilt_pl.language.backbone import Attention, load_backbone
from mavilt_pl.language.chunked_cross_entropy import Rows, head_logits, linear_cross_entropy
from mavilt_pl.language.fsdp import Shardable
from mavilt_pl.language.generation import Generation
from mavilt_pl.language.l2_regularization import Drift, Keep, Place
from mavilt_pl.language.optim import Kind, configured
from mavilt_pl.language.prompt_builder import TASKS
from mavilt_pl.language.sampling import TextDecoding
from mavilt_pl.language.sequences import Branch, Packed, Tree, by_length, pack
from mavilt_pl.language.vocabulary import MARKS, VIEW_MARKS, VisualVocabulary, grow
from mavilt_pl.parallel.distributed import all_reduce_sum, rank_and_size

# Keys that are numbers, and the range of each, its ends included.
RANGES = {
    "max_words": (1, math.inf),
    "length_groups": (1, math.inf),
    "view_dropout": (0, 1),
    "condition_dropout": (0, 1),
    "drift": (0, math.inf),
    "guidance": (0, math.inf),
    "learning_rate": (0, math.inf),
    "matrix_rate": (0, math.inf),
    "warmup": (0, math.inf),
}


def _tuning_of(checkpoint: Mapping[str, Any]) -> str:
    return checkpoint.get("hyper_parameters", {}).get("tuning", "full")


class LanguageModule(Generation, Shardable, LightningModule):
    """A causal language model with codes in its vocabulary. Subclasses say which sequences it is
    trained on.

    Args:
        backbone: folder or hub name of a pretrained causal language model.
        tokens: a token cache; its K, N and codebook shape the new rows. Any cache of the same
            tokenizer will do.
        init_from: checkpoint whose weights to start from (Stage 2: Stage 1's). Optional. One that
            was trained in full may be tuned on with adapters or new rows; its weights are then what
            is fixed.
        task_weights: each task's share of a step's loss, whatever its length, among the tasks that
            the step's studies bring. `text` is plain text, where the data bring some
            (`data.replay`); it holds the language by rehearsal, as `drift` does by the weights.
        loss_vocabulary: `modality` or `full`; see above.
        directions: `both` of each pair, or `one`, its image or its report by a stable hash of its
            name, as LLM-CXR does by the parity of its number (arXiv 2305.11490).
        views: read a study's frontal and its lateral image in one prompt, each behind its mark, and
            draw either from the other and the text (`data.each_view`).
        view_dropout: how often, in training, each view that is read is left out; one always stays
            where there is nothing else to read.
        length_groups: a batch's sequences of one direction are read in so many passes, each of like
            lengths and padded to its own longest; the loss and its gradient are those of one pass.
        places: add a learned vector for a code's place on the grid, zero at the start.
        drift: λ of λ/2 ‖θ − θ₀‖² over the pretrained weights.
        drift_from: θ₀ is the `backbone`, or the weights at the start of this `stage`. With adapters
            the term is of what they add to the weights; with new rows alone there is none.
        drift_keep, drift_place: how exactly θ₀ is kept, and where; `drift.Drift`.
        condition_dropout: how often a drawing is trained without its text, so that guidance can be
            used.
        max_words: texts are cut to so many tokens, in targets and in prompts; how many were cut is
            logged.
        optimizer: adamw, or muon for a backbone that knows little yet (`optimizer.py`).
        learning_rate, matrix_rate: AdamW's, and Muon's of the weight matrices; linear warm-up over
            `warmup` steps.
        guidance, temperature, top_k, top_p: how images are drawn; `decoding.draw`.
        compile_drawing: draw with a key-value cache of fixed size and a compiled step, on a GPU a
            CUDA graph: faster images, and half a minute before the first of a batch size.
        text_decoding: how text is written; `decoding.TextDecoding`. Greedy where nothing is given.
        tuning: `full`; `lora`, adapters and the new rows; `new_rows` alone. In the last two the
            pretrained weights stay as they are, and a learning rate of 1e-4 to 2e-4 is usual (LoRA,
            arXiv 2106.09685; QLoRA, arXiv 2305.14314).
        lora: r, alpha, dropout, targets; `tuning.Lora`.
        attention: transformers' kernel. flash_attention_2 takes no masks of ours, so that questions
            do not share their image; nor do they with a backbone of windows or of recurrent layers.
        pretrained: false takes the backbone's shape and its tokenizer, and random weights: a model
            from scratch.
        gradient_checkpointing: make each layer's activations again in the backward pass instead of
            keeping them.
    """

    def __init__(
        self,
        backbone: str,
        tokens: str,
        init_from: str | None = None,
        task_weights: Mapping[str, float] | None = None,
        loss_vocabulary: Literal["modality", "full"] = "modality",
        directions: Literal["both", "one"] = "both",
        views: bool = False,
        view_dropout: float = 0.3,
        length_groups: int = 2,
        places: bool = True,
        drift: float = 0.01,
        drift_from: Literal["backbone", "stage"] = "backbone",
        drift_keep: Keep = "bfloat16",
        drift_place: Place = "device",
        condition_dropout: float = 0.1,
        max_words: int = 128,
        optimizer: Kind = "adamw",
        learning_rate: float = 5e-6,
        matrix_rate: float = 0.02,
        warmup: int = 50,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 0.92,
        top_k: int = 0,
        compile_drawing: bool = False,
        text_decoding: TextDecoding | None = None,
        tuning: Tuning = "full",
        lora: Lora | None = None,
        attention: Attention = "sdpa",
        gradient_checkpointing: bool = False,
        pretrained: bool = True,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.task_weights = dict.fromkeys(TASKS, 1.0) | dict(task_weights or {})
        self._check_settings()
        self.counts: Counter[str] = Counter()
        self.model, self.tokenizer = load_backbone(backbone, attention, pretrained)
        # Hugging Face loads in evaluation mode, and Lightning leaves modes as it finds them
        self.model.train()
        cache = TokenCache(tokens)
        rows = self.model.get_input_embeddings().num_embeddings
        known = max(self.tokenizer.get_vocab().values()) + 1
        self.vocabulary = VisualVocabulary(
            rows, min(known, rows), cache.codebook_size, cache.codes_per_image, views
        )
        self.made_with_tokenizer = cache.tokenizer
        self.context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        need = self._check_context(backbone, max_words)
        codebook = torch.from_numpy(cache.codebook())
        self.new_rows: NewRows | None = None
        if tuning == "full":
            grow(self.model, self.vocabulary, codebook)
        else:
            freeze(self.model)
            self.new_rows = NewRows(self.model, self.vocabulary, codebook)
        if tuning == "lora":
            add_adapters(self.model, lora)
        if gradient_checkpointing:
            enable = getattr(self.model, "activation_checkpointing_enable", None)  # the newer name
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        width = self.model.get_input_embeddings().embedding_dim
        self.place = nn.Parameter(torch.zeros(cache.codes_per_image, width)) if places else None
        self.shares_prefix = self._can_share(need + max_words)  # a question is a text too
        if drift_from == "backbone":
            self.drift = self._drift(drift)
        if init_from is not None:
            self._start_from(init_from)
        if drift_from == "stage":
            self.drift = self._drift(drift)

    def _check_settings(self) -> None:
        h = self.hparams
        for key, (low, high) in RANGES.items():
            if not low <= h[key] <= high:
                raise UserError(
                    f"{key}: found {h[key]}; expected "
                    f"{f'{low} to {high}' if high < math.inf else f'{low} or more'}"
                )
        if unknown := sorted(set(self.task_weights) - set(TASKS)):
            raise UserError(
                f"task_weights: unknown task {unknown[0]}; the tasks are {', '.join(TASKS)}"
            )
        if not (min(self.task_weights.values()) >= 0 and sum(self.task_weights.values()) > 0):
            raise UserError(
                f"task_weights: found {self.task_weights}; expected 0 or more of each, and one "
                f"above 0"
            )
        decoding.text_decoding(h["text_decoding"])
        decoding.check_sampling("drawing", h["temperature"], h["top_k"], h["top_p"])
        if h["lora"] and h["tuning"] != "lora":
            raise UserError(
                f"lora is set and tuning is {h['tuning']}: set tuning to lora, or drop lora"
            )

    def _check_context(self, backbone: str, max_words: int) -> int:
        """How many positions the longest pair needs."""
        images, marks = (2, 9) if self.vocabulary.views else (1, 5)
        # <begin> <image> codes </image> instruction <report> words <end>
        need = images * self.vocabulary.length + self.instruction_length() + max_words + marks
        if self.context is not None and need > self.context:
            raise UserError(
                f"backbone {backbone}: found a context of {self.context} positions; "
                f"{'two images' if images > 1 else 'an image'} of "
                f"{self.vocabulary.length} codes and a text of max_words = {max_words} need "
                f"{need}. Lower max_words, or take a model of longer context or a "
                "tokenizer of fewer codes"
            )
        return need

    def _can_share(self, longest: int) -> bool:
        """Whether branches of one prefix see what they would see alone: not where a layer looks
        back through a window that is shorter than a sequence, and not where a state or a
        convolution runs on from one branch into the next (Mamba, LFM2, Qwen3-Next).
        """
        if (
            self.hparams["attention"] == "flash_attention_2"
            or "position_ids" not in signature(self.body.forward).parameters
        ):
            # Branches need masks and positions of their own, which not every kernel and not every
            # model takes
            return False
        config = self.model.config.get_text_config()
        windows = [
            getattr(config, name, None)
            for name in ("sliding_window", "window_size", "attention_chunk_size")
        ]
        if any(isinstance(window, int) and window < longest for window in windows):
            return False
        mark, words = self.vocabulary.mark("<begin>"), min(self.vocabulary.words, 5)
        one, other = (Branch([w % words for w in range(n)], [self.vocabulary.end]) for n in (7, 4))
        training, self.shares_prefix = self.model.training, True
        self.model.eval()
        with torch.no_grad():
            beside, alone = (
                self.hidden(self.pack([Tree([mark, 0], some)]))[-1]
                for some in ([one, other], [other])
            )
        self.model.train(training)
        return bool((beside - alone).abs().max() <= 1e-4 * alone.abs().max())

    def _drift(self, weight: float) -> Drift | AdapterDrift:
        if self.hparams["tuning"] == "lora":
            return AdapterDrift(self.model, weight)
        h, weight = self.hparams, weight if self.hparams["tuning"] == "full" else 0.0
        return Drift(self.model, weight, self.vocabulary.text, h["drift_keep"], h["drift_place"])

    def at_start(self) -> LanguageModule | None:
        """This module before any stage: the backbone as it came, and new rows as they start; None
        where the backbone had nothing to forget.
        """
        if not self.hparams["pretrained"]:
            return None
        known = signature(type(self).__init__).parameters
        given = {key: value for key, value in self.hparams.items() if key in known}
        return type(self)(**{**given, "init_from": None, "drift": 0.0})

    def _start_from(self, path: str) -> None:
        if not Path(path).exists():
            raise UserError(
                f"init_from: {path} does not exist; expected the checkpoint of an earlier stage"
            )
        checkpoint, now = read_weights(path), self.hparams["tuning"]
        if now != "full" and _tuning_of(checkpoint) == "full" and "state_dict" in checkpoint:
            if now == "lora" and self.hparams["drift"] and self.hparams["drift_from"] == "backbone":
                raise UserError(
                    f"init_from: {path} was trained in full, and adapters know only what they add "
                    f"to it: set drift_from to "
                    "stage, or drift to 0"
                )
            weights = from_full(self, checkpoint["state_dict"], self.vocabulary.text)
            checkpoint |= {"state_dict": weights, "hyper_parameters": {"tuning": now}}
        self.on_load_checkpoint(checkpoint)
        self.load_state_dict(checkpoint["state_dict"])

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["visual_tokenizer"] = self.made_with_tokenizer
        # As Lightning's command line does, and its plain Trainer does not.
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint.setdefault("hyper_parameters", {}).setdefault("_class_path", kind)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        made_with = checkpoint.get("visual_tokenizer")
        if made_with is None:
            raise UserError(
                "the checkpoint is of another module: it has no visual tokenizer. Expected one of "
                "Stage 1 or Stage 2"
            )
        if made_with != self.made_with_tokenizer:
            raise UserError(
                f"the checkpoint was trained on the codes of tokenizer {made_with[:12]} and the "
                f"token cache was made by "
                f"{self.made_with_tokenizer[:12]}: its codes mean different things. Train again, "
                f"or tokenize with the first"
            )
        was, now = _tuning_of(checkpoint), self.hparams["tuning"]
        if was != now:
            raise UserError(
                f"the checkpoint was trained with tuning: {was}, and here it is {now}: its weights "
                f"are others. Set tuning to "
                f"{was}"
            )
        check_compatible(checkpoint, self)

    def save_plain(self, out: str | Path) -> None:
        """Writes a folder that plain Hugging Face loads: the grown model with its adapters merged,
        its tokenizer, and beside them what images need: visual.json (ids of marks and codes) and
        places.safetensors ([N,D], added to the embeddings of an image's codes in order; absent
        without `places`).
        """
        v, out = self.vocabulary, Path(out)
        merged(self.model, v, self.new_rows).save_pretrained(out)
        self.tokenizer.save_pretrained(out)
        marks = {name: v.mark(name) for name in MARKS}
        marks |= {name: v.view_mark(view) for view, name in VIEW_MARKS.items() if v.views}
        facts = {
            "marks": marks,
            "first_code": v.first_code,
            "codes": v.codes,
            "length": v.length,
            "words": v.words,
        }
        (out / "visual.json").write_text(
            json.dumps({**facts, "visual_tokenizer": self.made_with_tokenizer}, indent=1),
            encoding="utf-8",
        )
        if self.place is not None:
            save_file({"place": self.place.detach().cpu().contiguous()}, out / "places.safetensors")

    # The model's parts.

    @property
    def body(self) -> nn.Module:
        """The transformer without its head."""
        return self.model.base_model

    def embed(self, ids_BT: Tensor, places: Tensor | None = None) -> Tensor:
        """Embeddings [B,T,D]; codes get the vector of their place, counted along each row unless
        `places` is given.
        """
        old = self.model.get_input_embeddings()
        out = (
            old(ids_BT)
            if self.new_rows is None
            else self.new_rows.embed(old, ids_BT, self.vocabulary.text)
        )
        if self.place is None:
            return out
        code = (ids_BT >= self.vocabulary.first_code) & (ids_BT < self.vocabulary.last_code)
        if places is None:
            places = (code.cumsum(1) - 1) % self.vocabulary.length
        return out + self.place[places.clamp(min=0)] * code[..., None].to(out.dtype)

    def _head(self, first: int, last: int) -> list[Rows]:
        """The head's rows of the ids `first` to `last`."""
        head, new, old_rows = (
            self.model.get_output_embeddings(),
            self.new_rows,
            self.vocabulary.text,
        )
        bias = getattr(head, "bias", None)
        if new is None:
            return [Rows(head.weight, bias, first, last)]
        parts = []
        if first < old_rows:
            parts.append(Rows(head.weight, bias, first, min(last, old_rows)))
        if last > old_rows:
            weight = new.embedding if new.head is None else new.head
            parts.append(Rows(weight, new.bias, max(first - old_rows, 0), last - old_rows))
        return parts

    def text_head(self) -> list[Rows]:
        """The rows of the old vocabulary and `<end>`."""
        return self._head(0, self.vocabulary.end + 1)

    def code_head(self) -> list[Rows]:
        """The rows of the codes."""
        return self._head(self.vocabulary.first_code, self.vocabulary.last_code)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Over the old vocabulary and `<end>`: [..., V + 1]."""
        return head_logits(hidden, self.text_head())

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Over the codes: [..., K]."""
        return head_logits(hidden, self.code_head())

    # Batches.

    def _apart(self, trees: Sequence[Tree]) -> Sequence[Tree]:
        """The trees as this backbone can read them: with a single branch each where branches cannot
        share a prefix.
        """
        if self.shares_prefix:
            return trees
        return [Tree(tree.prefix, [branch]) for tree in trees for branch in tree.branches]

    def pack(self, trees: Sequence[Tree]) -> Packed:
        return pack(self._apart(trees), self.vocabulary.end)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        testing = self._trainer is not None and self._trainer.testing
        if isinstance(batch, dict) and "codes" in batch and not testing:
            batch["packed"] = [
                self.pack(group)
                for trees in self.trees(batch, self.training)
                for group in by_length(self._apart(trees), self.hparams["length_groups"])
            ]
        return batch

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Tensors and packed sequences move; the studies' records stay as they are."""
        moved = {
            key: value.to(device, non_blocking=True)
            for key, value in batch.items()
            if isinstance(value, Tensor)
        }
        packed = [group.to(device) for group in batch.get("packed", [])]
        return {**batch, **moved, "packed": packed}

    # The loss.

    def hidden(self, packed: Packed) -> Tensor:
        """Hidden states at the target positions [M,D]."""
        dtype = next(self.model.parameters()).dtype
        out = self.body(
            inputs_embeds=self.embed(packed.ids_BT),
            attention_mask=packed.mask(dtype),
            position_ids=packed.positions_BT,
            use_cache=False,
        ).last_hidden_state
        return out[packed.row_M, packed.column_M]

    def token_losses(self, packed: Packed) -> Tensor:
        """Cross-entropy of every target, nats [M]."""
        hidden_MD = self.hidden(packed)
        v = self.vocabulary
        if self.hparams["loss_vocabulary"] == "full":
            return linear_cross_entropy(hidden_MD, self._head(0, v.total), packed.target_M)
        losses = hidden_MD.new_zeros(len(hidden_MD), dtype=torch.float32)
        image = packed.image_M
        if bool(image.any()):
            losses[image] = linear_cross_entropy(
                hidden_MD[image], self.code_head(), packed.target_M[image] - v.first_code
            )
        if not bool(image.all()):
            losses[~image] = linear_cross_entropy(
                hidden_MD[~image], self.text_head(), packed.target_M[~image]
            )
        return losses

    def sums(self, groups: Sequence[Packed]) -> tuple[Tensor, Tensor]:
        """Summed nats and number of the targets of each of `TASKS`, [T] and [T]; a function of the
        weights also without any.
        """
        zero = self.nothing(len(groups))
        total_T = [torch.zeros((), device=self.device) + zero for _ in TASKS]
        count_T = torch.zeros(len(TASKS), device=self.device)
        for packed in groups:
            losses_M = self.token_losses(packed)
            for task in packed.task_M.unique().tolist():
                part = losses_M[packed.task_M == task]
                total_T[task] = total_T[task] + part.sum()
                count_T[task] += len(part)
        return torch.stack(total_T), count_T

    def losses(self, groups: Sequence[Packed]) -> dict[str, Tensor]:
        """Mean nats per target token of each task."""
        return self._means(*self.sums(groups))

    @staticmethod
    def _means(total_T: Tensor, count_T: Tensor) -> dict[str, Tensor]:
        return {
            TASKS[task]: total_T[task] / count
            for task, count in enumerate(count_T.tolist())
            if count
        }

    def _weighed(self, losses: Mapping[str, Tensor]) -> Tensor | None:
        """The tasks' losses by their shares; None where none has a share."""
        weights = {task: self.task_weights[task] for task in losses if self.task_weights[task] > 0}
        total = sum(weights.values())
        return (
            torch.stack([w / total * losses[task] for task, w in weights.items()]).sum()
            if weights
            else None
        )

    def _packed(self, batch: Mapping[str, Any]) -> Sequence[Packed]:
        if "packed" not in batch:
            raise UserError(
                "the batch has no codes: name a token cache for each corpus (data.tokens), as "
                "`mavilt tokenize` makes it"
            )
        return batch["packed"]

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.counts:
            self.log_dict(
                {f"train/{name}": float(count) for name, count in self.counts.items()}, batch_size=1
            )
        total_T, count_T = self.sums(self._packed(batch))
        # A rank divides its sums by the mean of all ranks' counts: the mean of the ranks' values,
        # and of their gradients, is then that of one rank with the whole batch.
        losses = self._means(total_T, all_reduce_sum(count_T) / rank_and_size()[1])
        loss, nothing = self._weighed(losses), 0.0 * total_T.sum()
        if loss is None:  # every study of the batch, of all ranks, was without a text
            return nothing
        told = {f"train/{task}_nats": value for task, value in losses.items()} | {
            "train/loss": loss
        }
        means = all_reduce_sum(torch.stack([*told.values()]).detach()) / rank_and_size()[1]
        self.log_dict(dict(zip(told, means)), batch_size=len(batch["studies"]))
        self.log("loss", means[-1], prog_bar=True, logger=False)
        # In shards a pass without a share goes backward too, as others do at the same time on other
        # ranks.
        return loss + nothing if self.in_shards else loss

    def on_validation_epoch_start(self) -> None:
        names = self.trainer.datamodule.names  # type: ignore[attr-defined]
        self._validated = torch.zeros(len(names), 2, len(TASKS), device=self.device)

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self._validated[dataloader_idx] += torch.stack(self.sums(self._packed(batch)))

    def on_validation_epoch_end(self) -> None:
        """Nats per token of each source: of all its targets, whatever the batches and ranks they
        came in.
        """
        for name, (total_T, count_T) in zip(
            self.trainer.datamodule.names, all_reduce_sum(self._validated)
        ):  # type: ignore[attr-defined]
            found = self._means(total_T, count_T)
            self.log_dict(
                {f"val/{name}/{task}_nats": value for task, value in found.items()}, sync_dist=True
            )
            if (loss := self._weighed(found)) is not None:
                self.log(f"val/{name}/loss", loss, prog_bar=True, sync_dist=True)

    def test_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Nothing of its own: the callbacks ask for reports, drawings and answers."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.drift.add_gradient()
        if (
            self.trainer.global_step % max(self.trainer.log_every_n_steps, 1) == 0
            and self.drift.weight
        ):  # type: ignore[attr-defined]
            lengths = self.drift.per_layer()
            self.log("train/drift_term", self.drift.term(lengths))
            self.log_dict({f"drift/{name}": value for name, value in lengths.items() if value > 0})

    def configure_optimizers(self) -> Any:
        h = self.hparams
        return configured(
            self, self.body, h["optimizer"], h["learning_rate"], h["matrix_rate"], h["warmup"]
        )
