"""python -m evaluation look RUN STEP: a small evaluation of a living run's checkpoint, for the run that waits for it.

It takes no turn on the device: the run has it, and gives a part of it away while it waits. The rows are validation
rows: what is looked at while training can't be what is reported at its end.
"""

import os
from typing import Any

from evaluation.config import EvalConfig
from evaluation.jobs import check
from evaluation.report import OVERALL, EvalReport
from finetune.job import explain
from finetune.run import Job, Reporter, Run, create_job

ROWS = 16
MAX_NEW_TOKENS = 64
METRICS = "loss,rouge_l,chrf,stopped,repetition"


class _Guest(Job):
    """A job in another process's turn: it stops with its host, whatever became of that."""

    def stop_requested(self) -> bool:
        return super().stop_requested() or os.getppid() != HOST


HOST = os.getppid()


def look(run: Run, step: int) -> dict[str, Any]:
    """Score that checkpoint against the base; the report lies in the run's looks/. {} where the host has gone.

    Returns:
        base and tuned of each metric, and the rows they are over.

    Raises:
        ValueError: there is no such checkpoint, or nothing to score it on.
    """
    config = EvalConfig(
        rows=ROWS,
        max_new_tokens=MAX_NEW_TOKENS,
        columns=f"base,checkpoint-{step}",
        metrics=METRICS,
        part="validation",
    )
    check(run, config)
    record = {"run": run.id, "step": step, "config": config.model_dump()}
    made, lock = create_job(run.path / "looks", f"step-{step}", record)
    job = _Guest(made.path)
    reporter = Reporter(job)
    try:
        from evaluation.evaluate_run import evaluate_run

        report = evaluate_run(run, job, reporter)
        reporter.end()
    except BaseException as error:
        reporter.fail(explain(error, job))
        raise
    finally:
        os.close(lock)
    return figures(report) if report else {}


def figures(report: EvalReport) -> dict[str, Any]:
    """What is drawn over the steps."""
    overall = {s.metric: {"base": s.base, "tuned": s.tuned} for s in report.scores if s.category == OVERALL}
    return {"rows": report.rows} | overall
