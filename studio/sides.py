"""What can stand in a column of the Compare tab, what it is called, and what the engine is asked for it."""

import time
from collections.abc import Sequence

from finetune.config import TrainConfig
from finetune.run import Run, find_run, list_runs
from inference.columns import BASE, Column, Subject, subject
from studio import view
from studio.conversation import Conversation, Side

BASE_KEY = "base"


def choices() -> list[tuple[str, str]]:
    """(label, key) of everything that can stand in a column: the base, then each run's, newest first."""
    return [("Base", BASE_KEY)] + [
        (f"{_what(name)} · {run_name(run)}", f"{run.id}/{name}") for run in list_runs() for name in _has(run)
    ]


def to_key(side: Side) -> str:
    """A side as a chooser's value, without its strength."""
    return f"{side.run}/{side.name}" if side.run and side.name != BASE_KEY else BASE_KEY


def to_side(key: str, strength: float = 1.0) -> Side:
    """A chooser's value as a side. Whether it is there is asked when it is to answer."""
    run, _, name = key.partition("/")
    return Side(run=run, name=name, strength=strength) if name else Side()


def has_strength(side: Side) -> bool:
    """Whether a strength means something there."""
    return side.name not in (BASE_KEY, "merged")


def settle(conversation: Conversation) -> Conversation:
    """With the newest adapter where a side wants one and names no run; where there is none, without that side."""
    newest = next((run.id for run in list_runs() if run.has_adapter()), None)
    while any(_is_unnamed(side) for side in conversation.sides):
        column = next(i for i, side in enumerate(conversation.sides) if _is_unnamed(side))
        if newest:
            conversation = conversation.put(column, conversation.sides[column].with_(run=newest))
        elif len(conversation.sides) == 1:
            conversation = conversation.put(column, Side())
        else:
            conversation = conversation.drop(column)
    return conversation


def resolve(sides: Sequence[Side]) -> tuple[Subject, list[Column]]:
    """The one base of all the sides, and each as the engine's column.

    Raises:
        ValueError: a side is not there, or two of them can't share a base or a way of being asked.
    """
    runs = list(dict.fromkeys(side.run for side in sides if side.run and side.name != BASE_KEY))
    subjects = [subject(find_run(run)) for run in runs]
    for run, its in zip(runs, subjects, strict=True):
        if its.sha256 != subjects[0].sha256:
            raise ValueError(
                f"{run} was trained on another model than {runs[0]}: a comparison has one base, choose runs of one."
            )
        if its.template != subjects[0].template:
            raise ValueError(
                f"{run} was trained with the {its.template} template and {runs[0]} with {subjects[0].template}: "
                "all columns are asked alike, so choose runs of one template."
            )
    default = TrainConfig()
    return subjects[0] if subjects else Subject(default.model, default.revision), [_column(side) for side in sides]


def names(sides: Sequence[Side]) -> list[str]:
    """Short names of the columns; the run's is added where it takes that to tell two of them apart."""
    short = [_what(side.name) + (f" × {side.strength:g}" if _is_scaled(side) else "") for side in sides]
    return [
        f"{name} · {_run_name(side.run)}" if short.count(name) > 1 and side.run else name
        for name, side in zip(short, sides, strict=True)
    ]


def answers_apart(side: Side) -> bool:
    """Whether the side is answered in a pass of its own: a merged model, or DoRA."""
    if side.name == BASE_KEY or side.run is None:
        return False
    return side.name == "merged" or bool(find_run(side.run).config()["config"]["lora"]["dora"])


def run_name(run: Run) -> str:
    """A run's label and when it was asked for."""
    asked = time.localtime((run.path / "config.json").stat().st_mtime)
    return f"{run.config()['label']} {time.strftime('%d %b %H:%M', asked)}"


def _run_name(run_id: str) -> str:
    try:
        return run_name(find_run(run_id))
    except ValueError:  # it has been deleted since
        return run_id


def _has(run: Run) -> list[str]:
    return [name for name in view.side_choices(run) if name != "tuned" or run.has_adapter()]


def _column(side: Side) -> Column:
    if side.name == BASE_KEY or side.run is None:
        return BASE
    return view.side_column(find_run(side.run), side.name, side.strength)


def _what(name: str) -> str:
    return name.capitalize().replace("Checkpoint-", "Step ")


def _is_scaled(side: Side) -> bool:
    return has_strength(side) and side.strength != 1


def _is_unnamed(side: Side) -> bool:
    return side.name != BASE_KEY and side.run is None
