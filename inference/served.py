"""Columns as model names, for whoever asks by name: "base:smollm2-135m", "<run id>", "<run id>@0.5"."""

from typing import NamedTuple

from finetune.config import TrainConfig
from finetune.run import Run, find_run, list_runs
from inference.columns import BASE, Column, Subject, resolve, subject

BASE_PREFIX = "base:"


class Served(NamedTuple):
    """A name's base and column."""

    subject: Subject
    column: Column


def names() -> list[str]:
    """Every model name: the bases that are in use here, then each run's adapter and checkpoints, newest first."""
    found = []
    for run in _runs():
        found += [run.id] if run.has_adapter() else []
        found += [f"{run.id}/checkpoint-{step}" for step, _ in run.checkpoints()]
    return [*(BASE_PREFIX + model for model in _bases()), *found]


def serve(name: str) -> Served:
    """The column of that name. A strength may follow a run's id: "<run id>@0.5".

    Raises:
        ValueError: there is no such model, or its run has no adapter yet.
    """
    if name.startswith(BASE_PREFIX):
        bases = _bases()
        model = name.removeprefix(BASE_PREFIX)
        if model not in bases:  # a name that anyone may send must not make this machine load what it likes
            raise ValueError(f"There is no model {name!r}; there are: {', '.join(names())}.")
        return Served(bases[model], BASE)
    run_id, at, strength = name.partition("@")
    run_id, slash, checkpoint = run_id.partition("/")
    run = find_run(run_id)
    (column,) = resolve(run, (strength or "none") if at else checkpoint if slash else "tuned")
    return Served(subject(run), column)


def _runs() -> list[Run]:
    return [run for run in list_runs() if "template" in run.facts()]


def _bases() -> dict[str, Subject]:
    """Each base by its name, asked as the newest run of it was trained; the default model is always there."""
    default = TrainConfig()
    bases = {default.model: Subject(default.model, default.revision)}
    for run in reversed(_runs()):
        bases[subject(run).model] = subject(run)
    return bases
