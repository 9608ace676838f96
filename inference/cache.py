"""Keys and values that grow in place.

transformers' cache concatenates at every token: all that is kept is copied, and as no freed piece is large enough for
the next one, memory fills with holes. Here a layer has room for the next tokens behind what it holds.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 32  # tokens that a layer is given room for at a time


def growing_cache(base: Any) -> DynamicCache:
    """An empty cache for `base`; layers with a sliding window stay transformers' own."""
    cache = DynamicCache(config=base.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class GrowingLayer(DynamicLayer):
    """DynamicLayer, whose keys and values are the first part of something longer."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take the next tokens' [rows, heads, time, width]; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = _appended(self.keys, key_states), _appended(self.values, value_states)
        return self.keys, self.values


def _appended(kept: Tensor, more: Tensor) -> Tensor:
    """Both one after the other, [rows, heads, time, width]: in the place of `kept` where there is room behind it."""
    rows, heads, added, width = more.shape
    length = kept.shape[-2] if kept.numel() else 0
    total = length + added
    if length and total <= kept.stride(1) // width:  # the strides tell how long it really is, also after a crop
        whole = kept.as_strided((rows, heads, total, width), kept.stride())
    else:
        whole = more.new_empty(rows, heads, -(-total // BLOCK) * BLOCK, width)[:, :, :total]
        if length:
            whole[:, :, :length] = kept
    whole[:, :, length:] = more
    return whole
