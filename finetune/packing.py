"""Whole examples packed into fixed token budgets, and the collator that turns a pack into one row of a batch.

Attention stays within an example: see finetune/attention.py, which is told where each one starts.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from finetune.data import IGNORED, Example

Pack = list[Example]


def pack(examples: Sequence[Example], tokens_per_batch: int, seed: int = 0) -> list[Pack]:
    """Best-fit decreasing: the longest example first, each into the fullest pack that still has room.

    An example longer than the budget gets a pack of its own: nothing is cut. The packs come out in an order drawn
    from `seed`, since the first ones made hold the longest examples.
    """
    packs: list[Pack] = []
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


def collate(batch: Sequence[Pack]) -> dict[str, Any]:
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
