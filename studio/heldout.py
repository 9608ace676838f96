"""Held-out rows as prompts: what a run has never seen, with the answers that people gave."""

import random
from collections.abc import Sequence
from functools import lru_cache

from evaluation.config import EvalConfig
from evaluation.jobs import scored_rows
from finetune import data
from finetune.config import TrainConfig
from finetune.run import find_run
from studio.conversation import Conversation

ANY = "any category"


def run_of(conversation: Conversation) -> str | None:
    """The run whose held-out rows are meant: that of the first column which has one."""
    return next((side.run for side in conversation.sides if side.run), None)


@lru_cache(maxsize=4)
def held_out(run: str | None) -> tuple[data.Row, ...]:
    """The test part of a run's data; of the default data where there is no run. Raises ValueError with a sentence."""
    if run is not None:
        return tuple(scored_rows(find_run(run), EvalConfig(rows=None)).rows.rows)
    config = TrainConfig()
    return tuple(data.select(config, data.load_rows(config.data)).test)


def categories(rows: Sequence[data.Row]) -> list[str]:
    """What can be asked for."""
    return [ANY, *sorted({row.category for row in rows if row.category})]


def another(rows: Sequence[data.Row], category: str, last: data.Row | None) -> data.Row:
    """A row of that category, another one than the last where there is one. Raises ValueError where there is none."""
    fitting = [row for row in rows if category in (ANY, row.category)]
    if not fitting:
        raise ValueError(f"No held-out row is of the category {category!r}: choose another one.")
    return random.choice([row for row in fitting if row != last] or fitting)
