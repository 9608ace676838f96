"""Make an evaluation of a run: a job in the run's folder. Which rows are scored is decided here; no torch is loaded."""

from typing import Literal, NamedTuple

from evaluation.columns import parse_columns
from evaluation.config import EvalConfig
from evaluation.probe_text import read_text
from finetune import data, job
from finetune.config import from_mapping
from finetune.duplicates import near_duplicates
from finetune.run import Job, Run, create_job


class Slice(NamedTuple):
    """The rows that are scored, what they are in words, and the rows that the run was trained on."""

    rows: data.Rows
    split: str
    trained_on: list[data.Row]


def create_evaluation(run: Run, config: EvalConfig) -> tuple[Job, int]:
    """A checked, new evaluation and the descriptor of its lock. Raises ValueError, and then nothing was made."""
    check(run, config)
    return create_job(run.path / "evals", "evaluation", {"run": run.id, "config": config.model_dump()})


def start_evaluation(run: Run, config: EvalConfig) -> Job:
    """Start an evaluation as a process that outlives this one. Raises ValueError, and then nothing was made."""
    evaluation, lock = create_evaluation(run, config)
    job.spawn(evaluation, lock, "evaluation")
    return evaluation


def check(run: Run, config: EvalConfig) -> None:
    """Refuse what can't be scored, before anything is made for it. Raises ValueError with a sentence."""
    parse_columns(config.columns, run)
    scored_rows(run, config)
    if config.probe is not None:
        read_text(config.probe)


def scored_rows(run: Run, config: EvalConfig) -> Slice:
    """The rows that `config` asks for, the same for every run on that data.

    They are the `test` part of the run's data, or its `validation` part; or the rows of `config.data`, unless that is
    the very data that the run was trained on, whose held-out part it is then.

    Raises:
        ValueError: the run's data is not what it was, or it holds out nothing.
    """
    record = run.config()
    config_then = from_mapping(record["config"])
    rows = data.load_rows(config_then.data, config_then.columns)
    if rows.sha256 != record["data"]["sha256"]:
        raise ValueError(
            f"The data is not what {run.id} was trained on (then {record['data']['source']}, now {rows.source}), "
            "so nothing is known to be held out: bring the old data back."
        )
    split = data.select(config_then, rows)
    if config.data is not None:
        other = data.load_rows(config.data, config.data_columns)
        if other.sha256 != rows.sha256:
            chosen = other._replace(rows=data.take(other.rows, config.rows))
            return Slice(chosen, f"{len(chosen.rows)} of {len(other.rows)} rows of {other.source}", split.train)
    held_out = split.test if config.part == "test" else split.validation
    if not held_out:
        part = f"{config.part}_fraction"
        raise ValueError(f"{run.id} holds out no rows to score: train with a {part} above 0, or on more rows.")
    chosen = rows._replace(rows=data.take(held_out, config.rows))
    words = f"{len(chosen.rows)} of {len(held_out)} held-out ({config.part}) rows of the run's data"
    return Slice(chosen, words, split.train)


Leak = Literal["", "same", "near"]


def leaks(rows: list[data.Row], trained_on: list[data.Row]) -> list[Leak]:
    """For each row "same" where its prompt, normalised as in `data.place`, was trained on; "near" where one was whose
    words nearly agree (see finetune/duplicates.py); else ""."""
    same = {data.place(row) for row in trained_on}
    near = {pair.held_out for pair in near_duplicates(trained_on, rows)}
    return ["same" if data.place(row) in same else "near" if row in near else "" for row in rows]
