"""Whole examples in fixed token budgets, packed into one row or padded side by side, and the collators for both.

Attention stays within an example: see finetune/attention.py, which is told where each one starts.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

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


def collate_packed(batch: Sequence[Batch]) -> dict[str, Any]:
    """One pack as tensors: input_ids, labels and position_ids, each [1, tokens]; cu_seq_lens_q [examples + 1].

    The first token of an example is never a target, or the last of its neighbour would have to predict it.
    """
    (examples,) = batch
    return {
        "input_ids": torch.tensor([[token for e in examples for token in e.ids]]),
        "labels": torch.tensor([[label for e in examples for label in (IGNORED, *e.labels[1:])]]),
        "position_ids": torch.tensor([[position for e in examples for position in range(len(e.ids))]]),
        "cu_seq_lens_q": torch.tensor([0, *accumulate(len(e.ids) for e in examples)], dtype=torch.int32),
    }


def divide(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A collated batch in up to `parts` batches of about equal tokens, cut between examples alone."""
    if "cu_seq_lens_q" not in batch:
        rows = zip(*(tensor.chunk(parts) for tensor in batch.values()), strict=True)
        return [dict(zip(batch, tensors, strict=True)) for tensors in rows]
    starts: list[int] = batch["cu_seq_lens_q"].tolist()
    cuts = sorted({min(starts, key=lambda s: abs(s - starts[-1] * part / parts)) for part in range(parts + 1)})
    return [_between(batch, starts, start, end) for start, end in pairwise(cuts)]


def _between(batch: dict[str, Any], starts: list[int], start: int, end: int) -> dict[str, Any]:
    part = {name: tensor[:, start:end] for name, tensor in batch.items() if name != "cu_seq_lens_q"}
    within = [s - start for s in starts if start <= s <= end]
    return part | {"cu_seq_lens_q": torch.tensor(within, dtype=torch.int32, device=batch["input_ids"].device)}
