"""A key-value cache with room: a step writes its own position and copies nothing else.

transformers' `DynamicCache` concatenates, so that each step copies the keys and values of all
positions before it.

Shape legend: B rows, H heads, T positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

# Positions of room at least when a buffer is made; longer ones get a quarter of their length.
SMALLEST_ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keys and values of a layer, [B,H,T,D], as the filled part of larger buffers."""

    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new positions; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # The filled part is what all other methods of a layer look at.
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self._buffers is None or stop > self._buffers[0].shape[-2]:
            length = stop + max(SMALLEST_ROOM, stop // 4)
            self._buffers = (
                _with_room(self.keys, key_states, start, length),
                _with_room(self.values, value_states, start, length),
            )
        # In place: everything before `start` stays where it is.
        keys, values = self._buffers
        keys[..., start:stop, :] = key_states
        values[..., start:stop, :] = value_states
        self.keys, self.values = keys[..., :stop, :], values[..., :stop, :]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue with these rows, in this order; a row may repeat."""
        if self._buffers is None:
            return
        # With their room, so that the next step does not copy again.
        length = self.get_seq_length()
        keys, values = (buffer.index_select(0, beam_idx) for buffer in self._buffers)
        self._buffers = keys, values
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]


def _with_room(filled: Tensor | None, new: Tensor, start: int, length: int) -> Tensor:
    """A buffer of `length` positions that begins with the `start` filled ones."""
    batch, heads, _, width = new.shape
    buffer = torch.empty(batch, heads, length, width, dtype=new.dtype, device=new.device)
    # Before the first step there is nothing, not even a shape.
    if start and filled is not None:
        buffer[..., :start, :] = filled
    return buffer


def growing_cache(config: Any) -> Cache | None:
    """A cache for a model of plain attention in all layers; None for any other model.

    Args:
        config: of the model.
    """
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        # Not a model that transformers knows the layers of.
        return None
    # Windows, states and convolutions keep something else than all positions.
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return Cache(layers=[GrowingLayer() for _ in layers])
