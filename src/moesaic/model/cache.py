"""Contiguous key/value cache of `generate`: simple, and the reference for paged serving.

Legend: B sequences, K key/value heads, S positions, C head width, H query heads.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from moesaic.errors import ModelError
from moesaic.model.attend import attend_cached
from moesaic.recipe import Model


class KeyValues(Protocol):
    """What one layer remembers of earlier positions."""

    def attend(self, start: int, q_BSHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, window: int | None) -> Tensor:
        """Remember the new keys and values, and attend over all: `[batch, seq, heads, width]`."""


class KeyValueCache(Protocol):
    """What all layers remember; `Transformer.hidden` continues it."""

    @property
    def layers(self) -> Sequence[KeyValues]:
        """One for each."""

    def reserve(self, new: int) -> int:
        """Start of the next `new` positions."""

    def advance(self, new: int) -> None:
        """All layers have written them."""


class LayerCache:
    """Keys and values of one layer, filled from the left."""

    def __init__(self, shape_BKSC: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | None) -> None:
        self.k_BKSC = torch.empty(shape_BKSC, dtype=dtype, device=device)
        self.v_BKSC = torch.empty(shape_BKSC, dtype=dtype, device=device)

    def append(self, start: int, k_BKSC: Tensor, v_BKSC: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions from `start` on; return views of everything so far."""
        end = start + k_BKSC.shape[2]
        self.k_BKSC[:, :, start:end] = k_BKSC
        self.v_BKSC[:, :, start:end] = v_BKSC
        return self.k_BKSC[:, :, :end], self.v_BKSC[:, :, :end]

    def attend(self, start: int, q_BSHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, window: int | None) -> Tensor:
        """Write from `start` on, then attend over everything so far, causally over what is new."""
        return attend_cached(q_BSHC, *self.append(start, k_BSKC.transpose(1, 2), v_BSKC.transpose(1, 2)), window)


class Cache:
    """Cache of all layers; `length` positions are filled. Raises ModelError when it would overflow."""

    def __init__(
        self, config: Model, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        shape = (batch, config.n_kv_heads, capacity, config.head_dim)
        self.layers = [LayerCache(shape, dtype, device) for _ in range(config.n_layers)]
        self.capacity = capacity
        self.length = 0

    def reserve(self, new: int) -> int:
        """Start of the next `new` positions. Call `advance` once all layers have written."""
        if self.length + new > self.capacity:
            raise ModelError(f"{self.length + new} tokens do not fit a cache of {self.capacity}; shorten the prompt")
        return self.length

    def advance(self, new: int) -> None:
        """Count `new` positions as filled."""
        self.length += new
