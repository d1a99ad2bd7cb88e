"""A causal language model with image codes in its vocabulary, as a plain `nn.Module`.

It knows neither Lightning nor datasets: it embeds ids, returns hidden states, logits and losses.
The position determines the modality, so the head is restricted: a text target is normalised over
the old vocabulary and `<end>`, an image target over the K codes (`loss_vocabulary: full` normalises
both over all rows, as LLM-CXR does). Only hidden states at target positions meet the head, chunk by
chunk, so no [B,T,V] logits exist.

Shape legend: B batch, T positions, N codes an image, K codes of the codebook, D width, M target
positions.
"""

from __future__ import annotations

from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mavilt_pl.checkpoint import check_format_version, load_strict, read_weights
from mavilt_pl.errors import UserError
from mavilt_pl.language.adapters import NewRows, add_adapters, freeze
from mavilt_pl.language.backbone import (
    UnsupportedAttentionError,
    load_backbone,
    whole_rows,
)
from mavilt_pl.language.chunked_cross_entropy import HeadRows, head_logits, linear_cross_entropy
from mavilt_pl.language.options import ModelOptions, TuningOptions, as_options
from mavilt_pl.language.sequences import PackedBatch, pack
from mavilt_pl.language.stage_checkpoint import stage_settings, trained_vocabulary
from mavilt_pl.language.trees import Branch, Tree
from mavilt_pl.language.vocabulary import VisualVocabulary, grow_model

# Names of a config's attention window.
# A window hides what is further back by position in the row, and branches of a shared prefix stand
# behind one another in a row, so a window would separate a late branch from its prefix.
_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


class VisualLanguageModel(nn.Module):
    """A Hugging Face causal language model whose vocabulary holds special tokens and codes.

    Args:
        backbone: model from transformers; grown or given adapters in place.
        tokenizer: the backbone's tokenizer.
        codebook: float [K, width] of the visual tokenizer; new rows start near similar codes.
        codes_per_image: N.
        options: `grid_positions`, `multi_view`, `loss_vocabulary`, `attention`.
        tuning: `method`, `lora`, `gradient_checkpointing`.
        grown: the vocabulary of a backbone that has been grown and exported.
    """

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        codebook: Tensor,
        codes_per_image: int,
        options: ModelOptions | None = None,
        tuning: TuningOptions | None = None,
        grown: VisualVocabulary | None = None,
    ):
        super().__init__()
        self.options, tuning = options or ModelOptions(), tuning or TuningOptions()
        self.backbone, self.tokenizer = backbone, tokenizer
        self.backbone.train()  # transformers loads in evaluation mode, and Lightning keeps modes
        # Published models pad their embedding to a multiple of 64 or 128. New rows go behind the
        # padding, so old ids stay; the padding rows are never predicted
        # (`sampling.text_log_probs`).
        rows = backbone.get_input_embeddings().num_embeddings
        used = max(tokenizer.get_vocab().values()) + 1
        self.vocabulary = grown or VisualVocabulary(
            num_text_rows=rows,
            num_used_rows=min(used, rows),
            codebook_size=len(codebook),
            codes_per_image=codes_per_image,
            multi_view=self.options.multi_view,
        )
        # Multimodal configs keep the language model's settings one level down.
        text_config = backbone.config.get_text_config()
        self.max_context: int | None = getattr(text_config, "max_position_embeddings", None)
        self.new_rows: NewRows | None = None
        # Fixed old rows and trained new ones are separate weights: in one, weight decay would move
        # the old rows even without a gradient.
        if tuning.method == "full" and grown is None:
            grow_model(backbone, self.vocabulary, codebook)
        elif tuning.method != "full":
            freeze(backbone)
            self.new_rows = NewRows(backbone, self.vocabulary, codebook)
        if tuning.method == "lora":
            add_adapters(backbone, tuning.lora)
        # Non-reentrant: the reentrant kind needs an input with a gradient, which frozen embeddings
        # lack.
        if tuning.gradient_checkpointing:
            # The newer name of transformers, if there is one.
            enable = getattr(backbone, "activation_checkpointing_enable", None)
            (enable or backbone.gradient_checkpointing_enable)({"use_reentrant": False})
        width = backbone.get_input_embeddings().embedding_dim
        # Zero at the start, so codes begin where the projection of the codebook puts them.
        self.grid_positions: nn.Parameter | None = None
        if self.options.grid_positions:
            self.grid_positions = nn.Parameter(torch.zeros(codes_per_image, width))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        codebook: Tensor,
        codes_per_image: int,
        options: ModelOptions | None = None,
        tuning: TuningOptions | None = None,
        local_files_only: bool = False,
    ) -> VisualLanguageModel:
        """Grow a language model from a local folder or a hub name; see the class for arguments."""
        options = options or ModelOptions()
        backbone, tokenizer = load_backbone(
            name, options.attention, options.pretrained, local_files_only
        )
        return cls(backbone, tokenizer, codebook, codes_per_image, options, tuning)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, backbone: str | None = None
    ) -> tuple[VisualLanguageModel, dict[str, Any]]:
        """The model of a Stage 1 or Stage 2 checkpoint, in evaluation mode, and the checkpoint.

        All weights come from the checkpoint; only config and tokenizer of the backbone are read
        from its folder. The attention kernel is chosen for this machine, not the one it was trained
        with.

        Args:
            path: a checkpoint.
            backbone: path of the base language model (default: the path used in training).

        Raises:
            UserError: the file is no such checkpoint, or the backbone does not fit it.
        """
        checkpoint = read_weights(path)
        check_format_version(checkpoint, str(path))
        settings = stage_settings(path, checkpoint)
        tuning = as_options(TuningOptions, settings["tuning"], "tuning")
        # Settings come from the checkpoint, so a run needs no config of its own to be used.
        trained = asdict(as_options(ModelOptions, settings["model"], "model"))
        vocabulary = trained_vocabulary(path, checkpoint)
        # Initial values of the codes' rows are overwritten below.
        codebook = torch.zeros(vocabulary.codebook_size, 1)
        name = backbone or settings["backbone"]

        def build(attention: str) -> VisualLanguageModel:
            options = ModelOptions(**{**trained, "attention": attention, "pretrained": False})
            # Only what the user names may be asked of the hub; a name in a file may not.
            return cls.from_pretrained(
                name, codebook, vocabulary.codes_per_image, options, tuning, backbone is None
            )

        # "sdpa" exists on every device, whatever kernel the training machine had.
        try:
            model = build("sdpa")
        except UnsupportedAttentionError:
            model = build("eager")
        # Compared before the weights: a different tokenizer would give every id another meaning,
        # and weights of the same shape would load without an error.
        if model.vocabulary != vocabulary:
            raise UserError(
                f"backbone {name}: its tokenizer and embedding are not those that {path} was "
                f"trained with (found {model.vocabulary}, expected {vocabulary}); name the "
                "backbone of that training"
            )
        prefix = "model."
        weights = {}
        for key, value in checkpoint["state_dict"].items():
            weights[key.removeprefix(prefix)] = value
        load_strict(model, weights, path)
        return model.eval(), checkpoint

    @property
    def transformer(self) -> nn.Module:
        """The backbone without its head."""
        return self.backbone.base_model

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    # Embeddings and heads.

    def embed(self, ids_BT: Tensor, grid_index_BT: Tensor | None = None) -> Tensor:
        """Embeddings [B,T,D]; codes get the vector of their position on the grid.

        Args:
            ids_BT: ids of tokens and codes.
            grid_index_BT: position on the grid of each code; counted along each row by default.
        """
        vocabulary, old = self.vocabulary, self.backbone.get_input_embeddings()
        if self.new_rows is None:
            embedded_BTD = old(ids_BT)
        else:
            embedded_BTD = self.new_rows.embed(old, ids_BT, vocabulary.num_text_rows)
        if self.grid_positions is None:
            return embedded_BTD
        is_code = (ids_BT >= vocabulary.first_code) & (ids_BT < vocabulary.code_stop)
        # Codes come in runs of N, one run an image, so counting them along the row gives the raster
        # index. In a cached step the row has one code, and the caller passes its index.
        if grid_index_BT is None:
            grid_index_BT = (is_code.cumsum(1) - 1) % vocabulary.codes_per_image
        # Ids before the first code have index −1; they are clamped here and masked below.
        positions_BTD = self.grid_positions[grid_index_BT.clamp(min=0)]
        return embedded_BTD + positions_BTD * is_code[..., None].to(embedded_BTD.dtype)

    def _head(self, start: int, stop: int) -> list[HeadRows]:
        """The head's rows of the ids from `start` up to `stop`."""
        head, old_rows = self.backbone.get_output_embeddings(), self.vocabulary.num_text_rows
        bias = getattr(head, "bias", None)
        # Trained in full, the head was grown in place: one weight, rows by id.
        if self.new_rows is None:
            return [HeadRows(head.weight, bias, start, stop)]
        parts = []
        # With adapters the head is in two weights: the frozen old rows, and the new rows.
        if start < old_rows:
            parts.append(HeadRows(head.weight, bias, start, min(stop, old_rows)))
        if stop > old_rows:
            new = self.new_rows
            # A tied head has no rows of its own.
            weight = new.embedding if new.head is None else new.head
            first_new = max(start - old_rows, 0)
            parts.append(HeadRows(weight, new.bias, first_new, stop - old_rows))
        return parts

    def text_head(self) -> list[HeadRows]:
        """The head's rows of the old vocabulary and `<end>`."""
        return self._head(0, self.vocabulary.end + 1)

    def code_head(self) -> list[HeadRows]:
        """The head's rows of the codes."""
        return self._head(self.vocabulary.first_code, self.vocabulary.code_stop)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the old vocabulary and `<end>`: [..., V + 1]."""
        return head_logits(hidden, self.text_head())

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the codes: [..., K]."""
        return head_logits(hidden, self.code_head())

    # Packed sequences.

    def hidden_states(self, packed: PackedBatch) -> Tensor:
        """Hidden states at the target positions [M,D]."""
        dtype = next(self.backbone.parameters()).dtype
        # The body without its head: [B,T,V] logits of a 50,000-row head would take most of the
        # memory (0.14 × the step's memory without them, benchmarks/README.md).
        with whole_rows():
            out = self.transformer(
                inputs_embeds=self.embed(packed.ids_BT),
                attention_mask=packed.mask(dtype),
                position_ids=packed.positions_BT,
                use_cache=False,
            )
        return out.last_hidden_state[packed.row_M, packed.column_M]

    def token_losses(self, packed: PackedBatch) -> Tensor:
        """Cross-entropy of every target, nats float32 [M]."""
        vocabulary = self.vocabulary
        hidden_MD = self.hidden_states(packed)
        if self.options.loss_vocabulary == "full":
            head = self._head(0, vocabulary.num_rows)
            return linear_cross_entropy(hidden_MD, head, packed.target_M)
        # The mass of a text target stays within text rows, and that of a code within codes: K rows
        # instead of V + K for an image, and no probability wasted on the other modality.
        texts, losses = packed.num_text_targets, []
        # No call for an empty slice: its kernel and gradient would still run.
        if texts:
            losses.append(
                linear_cross_entropy(hidden_MD[:texts], self.text_head(), packed.target_M[:texts])
            )
        if texts < len(hidden_MD):
            codes = packed.target_M[texts:] - vocabulary.first_code
            losses.append(linear_cross_entropy(hidden_MD[texts:], self.code_head(), codes))
        return losses[0] if len(losses) == 1 else torch.cat(losses)

    def can_share_prefix(self, longest: int) -> bool:
        """Whether branches of one prefix see what they would see alone.

        They do not if a layer looks back through a window shorter than a sequence, nor if a state
        or a convolution runs on from one branch into the next (Mamba, LFM2, Qwen3-Next).

        Args:
            longest: positions of the longest sequence.
        """
        if self.options.attention == "flash_attention_2":
            return False  # it takes no custom masks
        # Branches repeat positions, so a model that counts positions itself cannot read them.
        if "position_ids" not in signature(self.transformer.forward).parameters:
            return False
        config = self.backbone.config.get_text_config()
        # Read from the config: the probe below is shorter than any window and would not notice.
        for name in _WINDOWS:
            window = getattr(config, name, None)
            if isinstance(window, int) and window < longest:
                return False
        return self._branches_are_independent()

    @torch.no_grad()
    def _branches_are_independent(self) -> bool:
        """Whether a branch's hidden state is the same with and without another branch."""
        vocabulary = self.vocabulary
        prefix = [vocabulary.special_token_id("<begin>"), 0]
        # Any ids will do; the smallest exist in every vocabulary.
        words = min(vocabulary.num_used_rows, 5)
        one = Branch([index % words for index in range(7)], [vocabulary.end])
        other = Branch([index % words for index in range(4)], [vocabulary.end])
        # Without dropout, or two passes would never agree.
        was_training = self.backbone.training
        self.backbone.eval()
        both_branches = pack([Tree(prefix, [one, other])], vocabulary.end)
        one_branch = pack([Tree(prefix, [other])], vocabulary.end)
        together = self.hidden_states(both_branches)[-1]
        alone = self.hidden_states(one_branch)[-1]
        self.backbone.train(was_training)
        # A tolerance of rounding: kernels with and without a mask add up in another order.
        return bool((together - alone).abs().max() <= 1e-4 * alone.abs().max())
