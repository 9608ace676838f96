"""Greedy answers of every column to the held-out prompts, all columns of a prompt in the same batch."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from finetune.data import Row
from finetune.prompt import Template, Turn
from inference.decode import Answer, decode
from inference.lora import Placed
from inference.sampling import Sampling

BATCH_EXAMPLES = 8


def greedy_answers(
    base: Any,
    template: Template,
    rows: Sequence[Row],
    columns: int,
    place: Callable[[int], Sequence[Placed]],
    max_new_tokens: int,
    on_batch: Callable[[int], None] = lambda done: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[list[Answer]]:
    """One Answer a row and column, [rows][columns]; fewer rows if cancelled.

    Arguments as in `likelihood.response_nll` and `decode`.
    """
    prompts = [template.encode_prompt([Turn(row.instruction, row.context)]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
    results: dict[int, list[Answer]] = {}
    for start in range(0, len(order), BATCH_EXAMPLES):
        chosen = order[start : start + BATCH_EXAMPLES]
        batch = [prompts[i] for i in chosen for _ in range(columns)]
        steps = decode(base, template, batch, place(len(chosen)), Sampling(), max_new_tokens, cancelled)
        (answers,) = deque(steps, maxlen=1)  # the last look is the whole
        for at, i in enumerate(chosen):
            results[i] = answers[at * columns : (at + 1) * columns]
        on_batch(len(results))
        if cancelled():
            break
    return [results[i] for i in range(len(rows)) if i in results]
