"""Greedy answers of every column to the held-out prompts, all columns of a prompt in the same batch."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluation.batches import Batched, Hooks, Item, run_batched
from evaluation.cache import Cache, Value, ids_key
from evaluation.columns import Side, strengths
from finetune.data import Row
from finetune.prompt import Template, Turn
from inference.decode import decode
from inference.lora import Placed
from inference.sampling import Sampling

BATCH_ROWS = 32  # on a CPU a step of 32 rows costs little more than one of 8; halved where memory runs out
GREEDY = Sampling()


class Said(NamedTuple):
    """An answer, how many tokens it took, and why it ended ("end" or "length")."""

    text: str
    tokens: int
    stop: str


def prompts_of(template: Template, rows: Sequence[Row]) -> list[list[int]]:
    """Token ids that every column is asked with, [rows]."""
    return [template.encode_prompt([Turn(row.instruction, row.context)]) for row in rows]


def greedy_answers(
    base: Any,
    template: Template,
    rows: Sequence[Row],
    sides: Sequence[Side],
    max_new_tokens: int,
    caches: Sequence[Cache] | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - a constant
    batch_rows: int = BATCH_ROWS,
) -> Batched:
    """An answer a row and column, as `Said`'s fields; fewer if cancelled.

    Args:
        base: the causal LM.
        template: how a row is asked, and what ends an answer.
        rows: what is asked.
        sides: the columns.
        max_new_tokens: longest answer.
        caches: one a column, or None.
        hooks: see `Hooks`.
        batch_rows: rows of a batch, all columns together.

    Raises:
        ValueError: a single row is too much for the memory.
    """
    prompts = prompts_of(template, rows)

    def work(items: list[Item]) -> list[Value | None]:
        placed = [Placed(*pair) for pair in strengths([sides[item.column] for item in items])]
        batch = [prompts[item.example] for item in items]
        steps = decode(base, template, batch, placed, GREEDY, max_new_tokens, hooks.cancelled)
        (answers,) = deque(steps, maxlen=1)  # the last look is the whole
        return [None if a.stop == "cancelled" else Said(a.text, a.tokens, str(a.stop))._asdict() for a in answers]

    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))  # prompts of like length share a batch
    keys = [ids_key(prompt) for prompt in prompts]
    return run_batched(order, [1] * len(rows), len(sides), batch_rows, work, caches, keys, hooks)
