"""The decode step of all rows as one CUDA graph over a cache of fixed size: launched once, not once an operation.

At a few rows a step is bound by the host, which must launch thousands of small kernels (7B, two rows: 220 ms a step
where the GPU works for 13). A graph is kept for the next call and captured again only when what it holds has changed:
the base, the adapters and their strengths, the number of rows, the size of the cache.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

SLOTS = 128  # a cache is a multiple of this, so that conversations of similar length share a graph
WARM_UP = 2  # steps before the capture, for libraries that set themselves up in their first calls


class Step:
    """One token more for every row, growing the cache that it was given."""

    def __init__(self, base: Any, cache: Any) -> None:
        self.base, self.cache = base, cache

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [rows, vocabulary] after ids [rows, time]; mask [rows, slots] says which slots are a row's own."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits: Tensor = self.base(
            input_ids=ids,
            attention_mask=None if mask.all() else mask,  # plain causal attention has faster kernels
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def give_back(self) -> None:
        """The cache that it was given holds all tokens again."""


class Captured(Step):
    """The same from static buffers, as a graph on a GPU (on a CPU, for tests, the same operations one by one)."""

    def __init__(self, base: Any, cache: Any, rows: int, slots: int, keep_alive: Any) -> None:
        """
        Args:
            base: with whatever is placed on it.
            cache: one like those that `begin` will be given.
            rows: of the batch.
            slots: of the cache; the last token has one too.
            keep_alive: tensors that the graph reads and that nobody else may hold on to.
        """
        device = next(base.parameters()).device
        super().__init__(base, cache)
        self.slots, self.keep_alive = slots, keep_alive
        self.static = Cache(layers=[StaticLayer(max_cache_len=slots) for _ in cache.layers])
        for layer, like in zip(self.static.layers, cache.layers, strict=True):
            layer.lazy_initialization(like.keys, like.values)
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.mask = torch.zeros(rows, 1, 1, slots, dtype=torch.bool, device=device)
        self.begun_at = self.steps = 0
        self.logits: Tensor | None = None
        self.graph = self._capture() if device.type == "cuda" else None

    def begin(self, cache: Any, mask: Tensor) -> None:
        """Go on from `cache`, whose slots are a row's own where mask [rows, slots] is 1."""
        self.cache, self.begun_at, self.steps = cache, mask.shape[1], 0
        self.mask.zero_()[:, 0, 0, : mask.shape[1]] = mask.bool()
        self.positions.copy_(mask.sum(-1, keepdim=True))
        self.slot.fill_(mask.shape[1])
        for layer, given in zip(self.static.layers, cache.layers, strict=True):
            layer.keys[:, :, : mask.shape[1]] = given.keys
            layer.values[:, :, : mask.shape[1]] = given.values
            layer.cumulative_length.fill_(mask.shape[1])
            given.keys, given.values = given.keys[:0].clone(), given.values[:0].clone()  # not held twice

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.ids.copy_(ids)
        self.steps += 1
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        assert self.logits is not None
        return self.logits

    def give_back(self) -> None:
        if self.cache is None:
            return
        length = self.begun_at + self.steps
        for layer, given in zip(self.static.layers, self.cache.layers, strict=True):
            given.keys, given.values = layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone()
        self.cache = None

    def _run(self) -> None:
        self.mask.index_fill_(3, self.slot, True)
        self.logits = self.base(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.static,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.slot.add_(1)
        self.positions.add_(1)

    def _capture(self) -> torch.cuda.CUDAGraph:
        self.mask.index_fill_(3, self.slot, True)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        return graph


class Captures:
    """The one captured step that is kept between calls; it holds memory until `drop`.

    Attributes:
        count: captures so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self.drop()

    def drop(self) -> None:
        """Forget it."""
        self._key: Hashable = None
        self._kept: Captured | None = None

    def step(self, base: Any, cache: Any, mask: Tensor, room: int, key: Hashable, keep_alive: Any) -> Step:
        """What continues from `cache` for up to `room` tokens; uncaptured where that can't be captured.

        Args:
            base: with the adapters placed on it.
            cache: as the prefill left it.
            mask: [rows, slots], which of its slots are a row's own.
            room: most tokens still to come.
            key: what decides what a step computes: base, adapters, strengths.
            keep_alive: what was placed.
        """
        slots = -(-(mask.shape[1] + room) // SLOTS) * SLOTS
        window = getattr(base.config.get_text_config(), "sliding_window", None)
        if not all(isinstance(layer, DynamicLayer) for layer in cache.layers) or (window and slots > window):
            return Step(base, cache)
        if (key, len(mask)) != self._key or self._kept is None or self._kept.slots < slots:
            self.drop()
            self._kept = Captured(base, cache, len(mask), slots, keep_alive)
            self._key = (key, len(mask))
            self.count += 1
        self._kept.begin(cache, mask)
        return self._kept
