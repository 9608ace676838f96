"""Make an evaluation of a run: a job in the run's folder. Nothing here loads torch."""

from evaluation.config import EvalConfig
from finetune import data, job
from finetune.config import from_mapping
from finetune.run import Job, Run, create_job


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
    if not run.has_adapter():
        raise ValueError(f"{run.id} has no adapter yet ({run.status()['state']}): evaluate it when it has ended.")
    held_out(run, config.rows)


def held_out(run: Run, count: int | None) -> data.Rows:
    """The `test` part of the run's data, `count` rows of it. Raises ValueError if the data is not what it was."""
    record = run.config()
    config = from_mapping(record["config"])
    rows = data.load_rows(config.data, config.columns)
    if rows.sha256 != record["data"]["sha256"]:
        raise ValueError(
            f"The data is not what {run.id} was trained on (then {record['data']['source']}, now {rows.source}), "
            "so nothing is known to be held out: bring the old data back."
        )
    test = data.split_rows(rows.rows, config.holdout).test
    if not test:
        raise ValueError(f"{run.id} holds out no rows to score: train with a test_fraction above 0, or on more rows.")
    return rows._replace(rows=data.take(test, count))
