"""Whole examples in fixed token budgets, packed into one row or padded side by side, and the collators for both.

Attention stays within an example: see finetune/attention.py, which is told where each one starts.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from finetune.data import IGNORED, Example

Batch = list[Example]  # the examples of one micro-batch


def pack(examples: Sequence[Example], tokens_per_batch: int, seed: int = 0) -> list[Batch]:
    """Best-fit decreasing: the longest example first, each into the fullest pack that still has room.

    An example longer than the budget gets a pack of its own: nothing is cut. The packs come out in an order drawn
    from `seed`, since the first ones made hold the longest examples.
    """
    packs: list[Batch] = []
    room: list[tuple[int, int]] = []  # (tokens left, index of the pack), ascending
    for example in sorted(examples, key=lambda e: (-len(e.ids), e.ids)):
        size = len(example.ids)
        place = bisect_left(room, (size, -1))
        if place < len(room):
            left, index = room.pop(place)
        else:
            left, index = max(tokens_per_batch, size), len(packs)
            packs.append([])
        packs[index].append(example)
        insort(room, (left - size, index))
    random.Random(seed).shuffle(packs)
    return packs


def group(examples: Sequence[Example], tokens_per_batch: int, seed: int = 0) -> list[Batch]:
    """Examples of similar length side by side: rows times the longest of them stay within the budget, padding included.

    An example longer than the budget gets a batch of its own. The order of the batches is drawn from `seed`.
    """
    batches: list[Batch] = []
    for example in sorted(examples, key=lambda e: (-len(e.ids), e.ids)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].ids) <= tokens_per_batch:
            batches[-1].append(example)
        else:
            batches.append([example])
    random.Random(seed).shuffle(batches)
    return batches


def collate_padded(batch: Sequence[Batch], pad_id: int) -> dict[str, Any]:
    """input_ids, labels and attention_mask, each [examples, longest], padded on the right."""
    (examples,) = batch
    longest = max(len(e.ids) for e in examples)

    def padded(values: Sequence[int], fill: int) -> list[int]:
        return [*values, *[fill] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([padded(e.ids, pad_id) for e in examples]),
        "labels": torch.tensor([padded([IGNORED, *e.labels[1:]], IGNORED) for e in examples]),
        "attention_mask": torch.tensor([padded([1] * len(e.ids), 0) for e in examples]),
    }


class Fixed(NamedTuple):
    """One shape for every pack of a run, for compiled layers: they are compiled once for each shape they meet."""

    tokens: int
    examples: int
    longest: int

    @classmethod
    def of(cls, batches: Sequence[Batch], tokens_per_batch: int) -> "Fixed":
        """The smallest shape that holds every one of `batches`, and a filling example besides."""
        longest = max(len(e.ids) for batch in batches for e in batch)
        sizes = [sum(len(e.ids) for e in batch) for batch in batches]
        tokens = max(tokens_per_batch, *sizes)
        filling = max(tokens - size for size in sizes)
        return cls(tokens, max(map(len, batches)) + 1, max(longest, filling))


def collate_packed(batch: Sequence[Batch], fixed: Fixed | None = None) -> dict[str, Any]:
    """One pack as tensors: input_ids, labels and position_ids, each [1, tokens]; cu_seq_lens_q [examples + 1].

    The first token of an example is never a target, or the last of its neighbour would have to predict it. With
    `fixed`, a last example without loss fills the pack, and empty ones make up the number. `max_length_q` and
    `real_tokens`, which leaves the filling out, are ints.
    """
    (examples,) = batch
    ids = [token for e in examples for token in e.ids]
    labels = [label for e in examples for label in (IGNORED, *e.labels[1:])]
    positions = [position for e in examples for position in range(len(e.ids))]
    starts = [0, *accumulate(len(e.ids) for e in examples)]
    longest = max(len(e.ids) for e in examples)
    if fixed is not None:
        filling = fixed.tokens - len(ids)
        ids, labels, positions = ids + [0] * filling, labels + [IGNORED] * filling, [*positions, *range(filling)]
        starts += [fixed.tokens] * (fixed.examples + 1 - len(starts))
        longest = fixed.longest
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens_q": torch.tensor(starts, dtype=torch.int32),
        "max_length_q": longest,
        "real_tokens": starts[len(examples)],
    }


def divide(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A collated batch in up to `parts` batches of about equal tokens, cut between examples alone."""
    if "cu_seq_lens_q" not in batch:
        rows = zip(*(tensor.chunk(parts) for tensor in batch.values()), strict=True)
        return [dict(zip(batch, tensors, strict=True)) for tensors in rows]
    starts: list[int] = batch["cu_seq_lens_q"].unique().tolist()
    cuts = sorted({min(starts, key=lambda s: abs(s - starts[-1] * part / parts)) for part in range(parts + 1)})
    return [_between(batch, starts, start, end) for start, end in pairwise(cuts)]


def _between(batch: dict[str, Any], starts: list[int], start: int, end: int) -> dict[str, Any]:
    part = {name: batch[name][:, start:end] for name in ("input_ids", "labels", "position_ids")}
    within = [s - start for s in starts if start <= s <= end]
    ends = torch.tensor(within, dtype=torch.int32, device=batch["input_ids"].device)
    return part | {"cu_seq_lens_q": ends, "max_length_q": batch["max_length_q"], "real_tokens": end - start}
