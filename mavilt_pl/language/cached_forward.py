"""The model with its key-value cache: feed ids, get the last hidden state.

Shape legend: B samples, T positions fed, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import StaticCache

from mavilt_pl.errors import UserError
from mavilt_pl.language.growing_cache import growing_cache
from mavilt_pl.language.model import VisualLanguageModel

# The last position of a model without a limit.
UNLIMITED = 2**31


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids [B,T] that end together, and their attention mask [B,T].

    >>> left_pad([[1, 2], [3]], 0, torch.device("cpu"))[0].tolist()
    [[1, 2], [0, 3]]
    """
    # On the left, so that the last column holds every row's last token and one index reads them
    # all.
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = width - len(row)
        ids.append([pad_id] * padding + list(row))
        mask.append([0] * padding + [1] * len(row))
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def check_finite(outputs: Tensor) -> Tensor:
    """The outputs, any shape, if all are finite.

    Raises:
        UserError: one of them is NaN or infinite.
    """
    if not bool(outputs.isfinite().all()):
        raise UserError(
            "the model's outputs are not finite: its weights hold NaN or infinity. Use an earlier "
            "checkpoint; a training that ended like this needs a lower learning_rate"
        )
    return outputs


class CachedForward:
    """A growing cache.

    Args:
        model: in evaluation mode.
        mask_BT: attention mask of the prompt.
    """

    def __init__(self, model: VisualLanguageModel, mask_BT: Tensor):
        self.model, self.mask_BT = model, mask_BT
        # None: the model makes its own.
        self.cache: Any = growing_cache(model.backbone.config.get_text_config())
        self.is_first = True
        # transformers 5.24 renamed the argument; models that live outside it keep the older name.
        parameters = signature(model.transformer.forward).parameters
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"
        # Without padding no mask is needed, and transformers may use its fast causal kernel. Looked
        # up once: what is fed later is never padding.
        self.is_whole = bool(mask_BT.all())
        # Finished rows are fed too, past the context if others are longer; nothing of them is read.
        self.last_position = UNLIMITED if model.max_context is None else model.max_context - 1
        # Positions count from the first real token, so padding does not change a row's output.
        self.position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)

    def __call__(self, ids_BT: Tensor, grid_index_BT: Tensor | None = None) -> Tensor:
        """Feed ids; the hidden state [B,D] at the last of them."""
        # The mask covers the cache and the new ids; positions are those of the new ids alone.
        if not self.is_first:
            new = self.mask_BT.new_ones(len(self.mask_BT), ids_BT.shape[1])
            self.mask_BT = torch.cat([self.mask_BT, new], 1)
            self.position_BT = (self.position_BT[:, -1:] + 1).clamp(max=self.last_position)
        self.is_first = False
        mask_BT = None if self.is_whole else self.mask_BT
        out = self._forward(self.model.transformer, ids_BT, grid_index_BT, mask_BT)
        self.cache = out[self.cache_name]
        return out.last_hidden_state[:, -1]

    def _forward(
        self,
        transformer: Any,
        ids_BT: Tensor,
        grid_index_BT: Tensor | None,
        mask_BT: Tensor | None,
    ) -> Any:
        return transformer(
            inputs_embeds=self.model.embed(ids_BT, grid_index_BT),
            attention_mask=mask_BT,
            position_ids=self.position_BT,
            use_cache=True,
            **{self.cache_name: self.cache},
        )

    def reorder(self, rows: Tensor) -> None:
        """Continue with these rows of the batch, in this order; a row may repeat."""
        self.mask_BT, self.position_BT = self.mask_BT[rows], self.position_BT[rows]
        self.cache.reorder_cache(rows)


class _Kept(NamedTuple):
    """A static cache and the step that was compiled for it."""

    key: tuple[Any, ...]  # rows, positions, and where and what the weights are
    cache: StaticCache
    step: Any


# The last one of each model. A CUDA graph is recorded for the addresses of one cache, so a batch of
# the same shape takes that cache again.
_KEPT: WeakKeyDictionary[VisualLanguageModel, _Kept] = WeakKeyDictionary()


def _static_cache(model: VisualLanguageModel, shape: tuple[int, int], mode: str) -> _Kept:
    """A static cache of this many rows and positions, empty, with its compiled step."""
    key = (*shape, model.device, next(model.parameters()).dtype)
    kept = _KEPT.get(model)
    if kept is None or kept.key != key:
        # The old one goes first: two would not fit where one does.
        _KEPT.pop(model, None)
        config = model.backbone.config.get_text_config()
        step = torch.compile(model.transformer, mode=mode, dynamic=False)
        kept = _Kept(key, StaticCache(config, max_cache_len=shape[1]), step)
        _KEPT[model] = kept
    kept.cache.reset()
    return kept


class StaticCacheForward(CachedForward):
    """A cache of fixed size, and steps of one token compiled; on a GPU they are a CUDA graph.

    A new batch size, or another multiple of `BLOCK` positions, is compiled again; cache and graph
    of the last shape are kept.

    Args:
        model: in evaluation mode.
        mask_BT: attention mask of the prompt.
        new_positions: positions that will be fed after the prompt.
    """

    BLOCK = 128

    def __init__(self, model: VisualLanguageModel, mask_BT: Tensor, new_positions: int):
        super().__init__(model, mask_BT)
        # Rounded up to a multiple of BLOCK, so prompts of similar length share one compiled step.
        length = -(-(mask_BT.shape[1] + new_positions) // self.BLOCK) * self.BLOCK
        # Future positions count as visible, so the mask keeps its shape; causality hides them.
        future = mask_BT.new_ones(len(mask_BT), length - mask_BT.shape[1])
        self.mask_BT = torch.cat([mask_BT, future], 1)
        # "reduce-overhead" records a CUDA graph; on a CPU it has no effect, so the default is
        # clearer.
        self.uses_graph = mask_BT.device.type == "cuda"
        mode = "reduce-overhead" if self.uses_graph else "default"
        kept = _static_cache(model, (len(mask_BT), length), mode)
        self.cache, self.compiled = kept.cache, kept.step

    def __call__(self, ids_BT: Tensor, grid_index_BT: Tensor | None = None) -> Tensor:
        """Feed ids; the hidden state [B,D] at the last of them."""
        # The prompt runs eagerly: its length differs from batch to batch and would be compiled each
        # time.
        transformer = self.model.transformer if self.is_first else self.compiled
        if not self.is_first:
            # No clamp to the context here: images fit it (`generate_images` checks), texts do not
            # come here.
            self.position_BT = self.position_BT[:, -1:] + 1
            # The last step's outputs may be overwritten: they were cloned.
            if self.uses_graph:
                torch.compiler.cudagraph_mark_step_begin()
        self.is_first = False
        out = self._forward(transformer, ids_BT, grid_index_BT, self.mask_BT)
        # A graph writes its next output to the same memory.
        return out.last_hidden_state[:, -1].clone()
