"""Prompts that stand twice in the data, and held-out prompts that nearly stand in the training rows.

The split keeps equal prompts on one side (see `data.place`); what is left to look for are prompts that nearly agree.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

from finetune.data import Row, normalized

SHINGLE_WORDS = 3
THRESHOLD = 0.8

Shingle = tuple[str, ...]


class Pair(NamedTuple):
    """A training row and a held-out row whose prompts nearly agree, and the Jaccard similarity of their shingles."""

    train: Row
    held_out: Row
    similarity: float


def repeated(rows: Sequence[Row]) -> int:
    """How many rows have a normalized prompt that stands in a row before them."""
    return len(rows) - len({normalized(row) for row in rows})


def near_duplicates(train: Sequence[Row], held_out: Sequence[Row], threshold: float = THRESHOLD) -> list[Pair]:
    """The closest training row of each held-out row that has one at `threshold` or above, the closest pairs first.

    Similarity is |A ∩ B| / |A ∪ B| over the prompts' sets of 3-word shingles, exact. Candidates come from an inverted
    index over the rarest shingles of each row alone, without losing a pair: two sets that are similar enough share at
    least ceil(threshold · size) shingles, so they share one among each set's (size − ceil(threshold · size) + 1)
    rarest. Common shingles ("what is the") are thereby skipped. This is the prefix filter of Chaudhuri, Ganti and
    Kaushik, "A primitive operator for similarity joins in data cleaning" (ICDE 2006).

    Args:
        train: rows that are trained on.
        held_out: rows that are not.
        threshold: least similarity of a pair, above 0 and at most 1.
    """
    counts: Counter[Shingle] = Counter()
    shingled = [[shingles(normalized(row)) for row in rows] for rows in (train, held_out)]
    for found in shingled[0] + shingled[1]:
        counts.update(found)
    # Rank by rarity; ties by the shingle itself, since a prefix filter needs one order for all.
    rank = {shingle: place for place, (shingle, _) in enumerate(sorted(counts.items(), key=lambda c: (c[1], c[0])))}
    sets, others = ([sorted(rank[shingle] for shingle in found) for found in side] for side in shingled)
    index: dict[int, list[int]] = {}
    for number, ranks in enumerate(sets):
        for shingle in _rarest(ranks, threshold):
            index.setdefault(shingle, []).append(number)
    pairs = []
    for row, ranks in zip(held_out, others, strict=True):
        candidates = {number for shingle in _rarest(ranks, threshold) for number in index.get(shingle, ())}
        best = max(_similar(set(ranks), sets, candidates, threshold), default=None)
        if best is not None:
            pairs.append(Pair(train[-best[1]], row, best[0]))
    return sorted(pairs, key=lambda pair: -pair.similarity)


def shingles(text: str) -> set[Shingle]:
    """Every three words in a row; a text of fewer words is one shingle, an empty one has none."""
    words = text.split()
    if len(words) <= SHINGLE_WORDS:
        return {tuple(words)} if words else set()
    return {tuple(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1)}


def _rarest(ranks: Sequence[int], threshold: float) -> Sequence[int]:
    """The part of a row's shingles (ascending by commonness) that any set similar enough must share one of."""
    return ranks[: len(ranks) - _least(len(ranks), threshold) + 1]


def _least(size: int, threshold: float) -> int:
    """Least number of shingles that a set of that size shares with a similar one; safe against rounding up."""
    return ceil(threshold * size - 1e-9)


def _similar(
    ranks: set[int], sets: Sequence[Sequence[int]], candidates: set[int], threshold: float
) -> Iterator[tuple[float, int]]:
    """(similarity, -number) of the candidates that are similar enough; the minus lets the first of equals win."""
    for number in candidates:
        size = len(sets[number])
        if min(size, len(ranks)) < threshold * max(size, len(ranks)) - 1e-9:
            continue  # even one within the other would be too little
        shared = len(ranks.intersection(sets[number]))
        similarity = shared / (size + len(ranks) - shared)
        if similarity >= threshold:
            yield similarity, -number
