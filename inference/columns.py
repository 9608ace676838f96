"""What stands side by side: a column is an adapter and a strength; the base is the column without one.

Nothing here loads torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from finetune.run import Run, find_run
from finetune.whole import is_whole


@dataclass(frozen=True)
class Column:
    """One side of a comparison.

    Attributes:
        label: what a person sees.
        adapter: folder of an adapter in PEFT's format; None is the base.
        strength: what the adapter's output is multiplied by: 0 is the base, 1 the adapter as trained.
        model: folder of a merged model, which answers in the base's place; then there is no adapter.
    """

    label: str
    adapter: Path | None = None
    strength: float = 1.0
    model: Path | None = None


BASE = Column("base", None, 0.0)


class Subject(NamedTuple):
    """What columns have in common: the base, how it is asked, and the fingerprint of its weights where one is known."""

    model: str
    revision: str | None = None
    template: Literal["auto", "dolly", "chat"] = "auto"
    sha256: str | None = None


def subject(run: Run) -> Subject:
    """The base of a run, asked as the run was trained. Raises ValueError while the run has not yet looked at it."""
    config, facts = run.config()["config"], run.facts()
    if "template" not in facts:
        raise ValueError(f"{run.id} has no adapter yet ({run.status()['state']}).")
    return Subject(config["model"], config["revision"], facts["template"], facts["model_sha256"])


MOST_STRENGTH = 8.0  # beyond this an adapter says nothing that means anything


def resolve(run: Run, names: str) -> list[Column]:
    """The columns of a comma-separated list, in its order.

    "base" is the model without an adapter, "tuned" with the run's; a number is the run's adapter at that strength;
    "checkpoint-40" is the run at that step, also while it still trains; "merged" is its merged model; another run's id
    is that run's adapter.

    Raises:
        ValueError: none named, or one that there is not.
    """
    columns = [_column(run, name.strip()) for name in names.split(",") if name.strip()]
    if not columns:
        raise ValueError(f"Name at least one column, such as base,tuned (given: {names!r}).")
    return columns


def _column(run: Run, name: str) -> Column:
    if name == "base":
        return BASE
    if name == "tuned":
        return Column(name, _adapter(run))
    if re.fullmatch(r"-?\d+(\.\d+)?", name):
        return at_strength(name, _adapter(run), float(name))
    if name == "merged":
        return Column(name, None, 0.0, run.merged())
    if name.startswith("checkpoint-"):
        return Column(name, _checkpoint(run, name))
    return Column(name, _adapter(_of_same_model(run, find_run(name))))


def at_strength(label: str, adapter: Path, strength: float) -> Column:
    """An adapter at a strength; at 0 it is the base. Raises ValueError for one that is too strong to mean anything."""
    if abs(strength) > MOST_STRENGTH:
        raise ValueError(f"A strength lies between -{MOST_STRENGTH:g} and {MOST_STRENGTH:g} (given: {strength:g}).")
    return Column(label, adapter, strength) if strength else Column(label, None, 0.0)


def _adapter(run: Run) -> Path:
    if not run.has_adapter():
        raise ValueError(f"{run.id} has no adapter yet ({run.status()['state']}).")
    return run.adapter


def _checkpoint(run: Run, name: str) -> Path:
    folder = run.path / "checkpoints" / name
    if not re.fullmatch(r"checkpoint-\d+", name) or not is_whole(folder):
        there = ", ".join(f"checkpoint-{step}" for step, _ in run.checkpoints()) or "none"
        raise ValueError(f"{run.id} has no whole {name}; there are: {there}.")
    return folder


def _of_same_model(run: Run, other: Run) -> Run:
    """`other`, if its adapter was trained on the weights that `run`'s was."""
    mine, its = run.facts().get("model_sha256"), other.facts().get("model_sha256")
    if mine is None or mine != its:
        raise ValueError(f"{other.id} was trained on another model than {run.id}: they can't share a base.")
    return other
