"""Work on (example, column) pairs in batches: from the cache where it is known, smaller where memory runs out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

from evaluation.cache import Cache, Value

T = TypeVar("T")


class Item(NamedTuple):
    """One example under one column."""

    example: int
    column: int


class Hooks(NamedTuple):
    """What a long piece of work tells, and asks."""

    on_done: Callable[[int], None] = lambda done: None
    """Told how many examples are done under every column."""
    cancelled: Callable[[], bool] = lambda: False
    """Asked between batches (and between tokens): whether to stop."""


class Batched(NamedTuple):
    """Results by item, how many of each column's were in the cache, and the budget that fitted into memory."""

    results: dict[Item, Value]
    from_cache: list[int]
    budget: int


def run_batched(
    order: Sequence[int],
    lengths: Sequence[int],
    columns: int,
    budget: int,
    work: Callable[[list[Item]], list[Value | None]],
    caches: Sequence[Cache] | None,
    keys: Sequence[str],
    hooks: Hooks,
) -> Batched:
    """A result for every example and column, all columns of an example in one batch; fewer if cancelled.

    Args:
        order: the examples in the order in which they are worked on.
        lengths: what a row of an example takes of the budget, [examples], falling in that order.
        columns: how many there are.
        budget: rows times longest in a batch, at most; halved as often as memory runs out. One row always fits.
        work: the results of a batch, in order; None for one that was cut short.
        caches: one a column, or None.
        keys: of each example in the caches, [examples].
        hooks: see Hooks.

    Raises:
        ValueError: a single row is too much for the memory.
    """
    results: dict[Item, Value] = {}
    for column, cache in enumerate(caches or []):
        for example, key in enumerate(keys):
            if (known := cache.get(key)) is not None:
                results[Item(example, column)] = known
    found = [sum(item.column == column for item in results) for column in range(columns)]
    groups = [[Item(i, c) for c in range(columns) if Item(i, c) not in results] for i in order]
    groups = [group for group in groups if group]
    left = len(groups)
    hooks.on_done(len(lengths) - left)
    while groups and not hooks.cancelled():
        chosen = _fill(groups, lengths, budget)
        # Rows of a column side by side: an adapter is then applied to one slice of the batch.
        batch = sorted((item for group in groups[:chosen] for item in group), key=lambda item: item.column)
        values = without_memory_error(work, batch)
        if values is None:
            budget = _halved(len(batch), lengths[batch[0].example])
            if chosen == 1:  # the columns of one example in two batches: better than none
                groups[:1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        for item, value in zip(batch, values, strict=True):
            if value is not None:
                results[item] = value
                if caches is not None:
                    caches[item.column].put(keys[item.example], value)
        groups = groups[chosen:]
        hooks.on_done(len(lengths) - len({group[0].example for group in groups}))
    return Batched(results, found, budget)


def _fill(groups: Sequence[Sequence[Item]], lengths: Sequence[int], budget: int) -> int:
    """How many groups, from the first and longest on, fit into the budget; at least one."""
    longest, rows, count = lengths[groups[0][0].example], 0, 0
    for group in groups:
        rows += len(group)
        if count and rows * longest > budget:
            break
        count += 1
    return count


def _halved(rows: int, longest: int) -> int:
    if rows == 1:
        raise ValueError("The memory is too small for a single example: evaluate with a smaller max_new_tokens.")
    return rows * longest // 2


def without_memory_error(work: Callable[[list[Item]], T], batch: list[Item]) -> T | None:
    """What `work` gives, or None where it ran out of memory; what it had taken is given back."""
    try:
        return work(batch)
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:  # torch's CPU allocator has no class of its own
        if "DefaultCPUAllocator" not in str(error):
            raise
    # Here, not in the except clause: while the error lives, so do the tensors of its frames.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
