"""Columns that share the base are scored in one batch; a merged model or a DoRA adapter has a pass of its own."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from evaluation.batches import Batched, Hooks, Item
from evaluation.cache import Cache, Value
from evaluation.columns import Side
from inference import apart
from inference.columns import Column
from inference.lora import load_adapter


class Pass(NamedTuple):
    """Columns that are scored together."""

    columns: list[int]
    """Their places among all columns."""
    sides: list[Side]
    open: Callable[[], AbstractContextManager[Any]]
    """The model that answers for them, for as long as the context lasts."""


Work = Callable[[Any, Sequence[Side], Sequence[Cache] | None, Hooks], Batched]


def passes(base: Any, columns: Sequence[Column]) -> list[Pass]:
    """The columns of one base together, each other one alone. Raises ValueError where an adapter can't be had."""
    alone = [place for place, column in enumerate(columns) if apart.is_apart(column)]
    together = [place for place in range(len(columns)) if place not in alone]
    shared = [columns[place] for place in together]
    adapters = {c.adapter: load_adapter(c.adapter, base) for c in shared if c.adapter and c.strength}
    sides = [Side(adapters.get(c.adapter) if c.adapter else None, c.strength) for c in shared]
    found = [Pass(together, sides, partial(nullcontext, base))] if together else []
    return found + [Pass([p], [Side(None, 0.0)], partial(apart.its_model, base, columns[p])) for p in alone]


def in_passes(
    all_passes: Sequence[Pass], examples: int, caches: Sequence[Cache] | None, hooks: Hooks, work: Work
) -> Batched:
    """`work` of every pass, one after the other, as if it had been one; progress counts a share of each example."""
    results: dict[Item, Value] = {}
    found, budgets = [0] * sum(len(p.columns) for p in all_passes), []
    for number, (columns, sides, open_model) in enumerate(all_passes):

        def done(count: int, number: int = number) -> None:
            hooks.on_done((number * examples + count) // len(all_passes))

        own = None if caches is None else [caches[column] for column in columns]
        with open_model() as model:
            batched = work(model, sides, own, Hooks(done, hooks.cancelled))
        results |= {Item(item.example, columns[item.column]): value for item, value in batched.results.items()}
        for column, count in zip(columns, batched.from_cache, strict=True):
            found[column] = count
        budgets.append(batched.budget)
    return Batched(results, found, min(budgets))
