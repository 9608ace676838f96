"""Of the API that programs may call: the runs and their evaluations."""

from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from evaluation.config import EvalConfig
from evaluation.jobs import start_evaluation
from evaluation.report import EvalReport, table
from finetune.config import TrainConfig, parse, with_settings
from finetune.config import preset as find_preset
from finetune.job import start_training
from finetune.model import ALIASES, is_local
from finetune.readers import HUB_ID
from finetune.run import Job, Run, find_run, list_runs
from studio.limits import Limits, person

Result = TypeVar("Result")


def starter(limits: Limits) -> Callable[..., Any]:
    """The endpoint; on a GPU the chat's model makes room for the run."""

    def start(
        preset: str = "quick-demo",
        model: str = "",
        rows: int = 0,
        steps: int = 0,
        data: str = "",
        request: gr.Request = None,
    ) -> str:
        """Start a training run. It goes on by itself: ask for its status.

        Args:
            preset: Where all settings come from that are not given.
            model: An alias such as smollm2-135m, or a hub id.
            rows: How many training rows to take.
            steps: Optimizer steps.
            data: Hub id of a data set; empty for Dolly.

        Returns:
            The run's id.
        """

        config = _said(lambda: _config(preset, model, rows, steps, data))
        run = _said(lambda: limits.start(person(request).runs, lambda: start_training(config, preset)))
        return run.id

    return start


def evaluator(limits: Limits) -> Callable[..., Any]:
    """The endpoint."""

    def evaluate(
        run: str = "latest",
        rows: int = 64,
        max_new_tokens: int = 128,
        columns: str = "base,tuned",
        request: gr.Request = None,
    ) -> str:
        """Score a run's columns on rows that it never saw. It goes on by itself: ask for the run's status, then report.

        Args:
            run: Id of the run; "latest" is the newest one that has an adapter.
            rows: How many held-out rows.
            max_new_tokens: Longest answer.
            columns: What is compared, the first with each of the others.

        Returns:
            The evaluation's id.
        """

        def make() -> Job:
            asked = {"rows": rows, "max_new_tokens": max_new_tokens, "columns": columns}
            return start_evaluation(tuned_run(run), parse(EvalConfig, asked))

        return _said(lambda: limits.start(person(request).runs, make)).id

    return evaluate


def stop(run: str) -> str:
    """Ask a run to stop at its next step; its adapter is kept.

    Args:
        run: Id of the run.

    Returns:
        What happens now.
    """
    found = _said(lambda: find_run(run))
    found.request_stop()
    return f"{found.id} stops at its next step and keeps its adapter."


def status(run: str = "latest") -> dict[str, Any]:
    """Where a run stands.

    Args:
        run: Id of the run; "latest" is the newest one.

    Returns:
        id, state (queued, preparing, running, finished, stopped, failed or died), step, losses, has_adapter,
        checkpoints and evaluations.
    """
    return _said(lambda: _status(find_run(run)))


def report(run: str = "latest") -> dict[str, Any]:
    """The newest evaluation of a run.

    Args:
        run: Id of the run; "latest" is the newest one that has an adapter.

    Returns:
        verdict (in words) and scores (by category and metric, with intervals).
    """

    def newest() -> dict[str, Any]:
        found = tuned_run(run)
        file = next((f for e in found.evaluations() if (f := e.path / "report.json").exists()), None)
        if file is None:
            raise ValueError(f"{found.id} has no report yet: evaluate it, and wait until its status says finished.")
        read = EvalReport.model_validate_json(file.read_text())
        return {"evaluation": file.parent.name, "verdict": read.verdict, "scores": table(read.scores)}

    return _said(newest)


def runs() -> list[dict[str, Any]]:
    """All runs, newest first, each with id, label, model, state and has_adapter."""
    return [
        {"id": run.id, "label": record["label"], "model": record["config"]["model"], "state": run.status()["state"]}
        | {"has_adapter": run.has_adapter()}
        for run in list_runs()
        for record in [run.config()]
    ]


def tuned_run(name: str) -> Run:
    """The run of that id; "latest" is the newest that has an adapter. Raises ValueError if there is none."""
    with_adapter = (run for run in list_runs() if run.has_adapter())
    return (name == "latest" and next(with_adapter, None)) or find_run(name)


def _config(preset_name: str, model: str, rows: int, steps: int, data: str) -> TrainConfig:
    """As on the page: names, and no paths. Raises ValueError with a sentence."""
    if model and is_local(model):
        raise ValueError(f"Here a model is one of {', '.join(ALIASES)} or a hub id; for a folder use the command line.")
    if data and (is_local(data) or not HUB_ID.fullmatch(data)):
        raise ValueError("Here data is a data set's hub id; for a file use the page, or the command line.")
    given = {"model": model, "rows": rows, "steps": steps, "data": data}
    return with_settings(find_preset(preset_name), {name: value for name, value in given.items() if value})


def _status(run: Run) -> dict[str, Any]:
    events = run.metrics()[0]
    losses = [{k: e[k] for k in ("step", "loss", "validation_loss") if k in e} for e in events]
    return run.status() | {
        "id": run.id,
        "losses": [loss for loss in losses if len(loss) > 1],
        "has_adapter": run.has_adapter(),
        "checkpoints": [step for step, _ in run.checkpoints()],
        "evaluations": [{"id": e.id, "state": e.status()["state"]} for e in run.evaluations()],
    }


def _said(call: Callable[[], Result]) -> Result:
    """What it returns; its ValueError as a sentence for the caller."""
    try:
        return call()
    except ValueError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
