"""Prefix reuse: a further turn of the same conversation computes only what is new.

What the last call left in the cache is kept with the token ids that made it. A row keeps as many slots as its new
prompt begins with; slots that are not its own (padding, what came after its end) are masked out, and positions count
only what is seen, so rows may keep different lengths.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache


class Start(NamedTuple):
    """Where a call begins: a cache, tokens and mask of its slots [rows, slots], and each row's ids still to compute."""

    cache: Any
    tokens: Tensor
    mask: Tensor
    rest: list[list[int]]


class Prefix:
    """The cache of the last call, for the next one; it holds memory until `drop`.

    Attributes:
        prefilled: prompt tokens that the last call computed, [rows].
    """

    def __init__(self) -> None:
        self.prefilled: list[int] = []
        self.drop()

    def drop(self) -> None:
        """Forget what is kept."""
        self._key: Hashable = None
        self._cache: Any = None
        self._tokens = self._mask = torch.zeros(0, 0, dtype=torch.long)

    def start(self, base: Any, prompts: Sequence[Sequence[int]], key: Hashable) -> Start:
        """Take what is kept, as far as it fits; nothing is kept until `keep`.

        Args:
            base: the causal LM.
            prompts: token ids of each row.
            key: what decides what a token's cache entry is beside the tokens: base, adapters, strengths.
        """
        cache, tokens, mask, kept_key = self._cache, self._tokens, self._mask, self._key
        self.drop()
        device = next(base.parameters()).device
        empty = torch.zeros(len(prompts), 0, dtype=torch.long, device=device)
        start = Start(DynamicCache(config=base.config), empty, empty, [list(p) for p in prompts])
        if cache is not None and kept_key == key and len(tokens) == len(prompts):
            start = _cut(Start(cache, tokens, mask, start.rest)) or start
        self.prefilled = [len(ids) for ids in start.rest]
        return start if _fits_window(base, start) else self.start(base, prompts, key)

    def keep(self, cache: Any, tokens: Tensor, mask: Tensor, key: Hashable) -> None:
        """Keep a cache whose slots hold `tokens` [rows, slots], of which `mask` says which are the row's own."""
        self._cache, self._tokens, self._mask, self._key = cache, tokens, mask, key


def _fits_window(base: Any, start: Start) -> bool:
    """A sliding window counts slots, not positions: with gaps in it, or past it, a kept cache can't be cut."""
    window = getattr(base.config.get_text_config(), "sliding_window", None)
    kept = start.tokens.shape[1]
    return kept == 0 or window is None or kept + max(map(len, start.rest)) < window


def _cut(kept: Start) -> Start | None:
    """`kept` with only the slots that the prompts in `rest` begin with, or None where that is none for every row."""
    slots, mask, rest = [], torch.zeros_like(kept.mask), []
    for row, (tokens, own, prompt) in enumerate(zip(kept.tokens.tolist(), kept.mask.tolist(), kept.rest, strict=True)):
        same, end = 0, 0
        for slot, (token, is_own) in enumerate(zip(tokens, own, strict=True)):
            if not is_own:
                continue
            if same >= len(prompt) - 1 or token != prompt[same]:  # one token at least must give the next logits
                break
            same, end = same + 1, slot + 1
            mask[row, slot] = 1
        slots.append(end)
        rest.append(prompt[same:])
    length = max(slots)
    if length == 0:
        return None
    if surplus := kept.tokens.shape[1] - length:
        kept.cache.crop(-surplus)
    return Start(kept.cache, kept.tokens[:, :length], mask[:, :length], rest)
