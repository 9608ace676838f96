"""Evaluate: score a run's columns on held-out rows as a process of its own, and show what came out."""

import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from evaluation.config import EvalConfig
from evaluation.jobs import start_evaluation
from evaluation.leaderboard import leaderboards
from evaluation.measures import MEASURES
from evaluation.probe_text import OWN
from finetune.config import parse
from finetune.run import Run, find_run, list_runs, runs_folder
from studio import view
from studio.form import offer_choices, offer_tuned
from studio.limits import Limits, person
from studio.tabs import results
from studio.tabs.results import HIDDEN
from studio.views import evaluate as shown

FIRST_COLUMNS = ["base", "tuned"]


class Evaluate(NamedTuple):
    """What the page wires to other tabs."""

    run: gr.Dropdown
    votes: gr.Column
    """Empty: the counts of the votes go here."""


def build(page: gr.Blocks, limits: Limits) -> Evaluate:
    """Wire the tab."""
    run, asked, start, stop = _form()
    status = gr.Markdown(elem_id="eval-status")
    evaluation = gr.Dropdown([], label="Evaluation", elem_id="evaluation", visible=False)
    drawn, given = results.build(run, evaluation)
    with gr.Column(elem_id="votes") as votes:
        pass
    gr.Markdown("### Leaderboard\nEvery run's newest evaluation, best first. One table holds what was scored alike.")
    board = gr.HTML(elem_id="leaderboard")
    seen = gr.State({})  # what the page shows, in a few words: it is drawn again only when that is something else
    report = gr.State("")

    watching: dict[str, Any] = {"fn": _watch, "inputs": [run, evaluation, seen, report], **HIDDEN}
    watching["outputs"] = [status, stop, evaluation, board, seen, report]
    start.click(_starter(limits), [run, *asked], None, api_visibility="private").then(**watching)
    stop.click(_stop, run, None, api_visibility="private")
    run.change(_offer_columns, run, asked[2], **HIDDEN).then(**watching)
    run.focus(partial(offer_choices, with_adapter=True), None, run, **HIDDEN)
    asked[2].focus(_offer_choices, run, asked[2], **HIDDEN)
    evaluation.input(**watching)
    report.change(results.draw, given, list(drawn), **HIDDEN)
    page.load(offer_tuned, None, run, **HIDDEN).then(**watching)
    gr.Timer(1.0).tick(**watching)
    return Evaluate(run, votes)


def _form() -> tuple[gr.Dropdown, list[Any], gr.Button, gr.Button]:
    """The run; rows, longest answer, columns and metrics; start and stop."""
    fields = EvalConfig.model_fields
    with gr.Row():
        run = gr.Dropdown([], label="Run", elem_id="eval-run", info="A run that has an adapter.", min_width=240)
        columns = gr.Dropdown(
            FIRST_COLUMNS,
            value=FIRST_COLUMNS,
            multiselect=True,
            allow_custom_value=True,
            label="Columns",
            info="The first is compared with each of the others. A number is the adapter at that strength.",
            elem_id="eval-columns",
            min_width=240,
        )
        metrics = gr.Dropdown(
            [(measure.name, key) for key, measure in MEASURES.items() if measure.source != "judge"],
            multiselect=True,
            label="Metrics",
            info="Nothing chosen: all of them.",
            elem_id="eval-metrics",
            min_width=240,
        )
    with gr.Row():
        rows = gr.Number(
            fields["rows"].default,
            label="Held-out rows",
            info=fields["rows"].description,
            precision=0,
            elem_id="eval-rows",
            min_width=240,
        )
        length = gr.Number(
            fields["max_new_tokens"].default,
            label="Longest answer, in tokens",
            info=fields["max_new_tokens"].description,
            precision=0,
            elem_id="eval-length",
            min_width=240,
        )
        with gr.Column(min_width=240):
            probe = gr.Checkbox(
                label="Forgetting probe",
                info="Also how far each column departs from the first on text that is no instruction.",
                elem_id="eval-probe",
            )
        with gr.Row(elem_classes="go"):
            start = gr.Button("Evaluate", variant="primary", elem_id="evaluate", min_width=110)
            stop = gr.Button("Stop", elem_id="stop-eval", min_width=110, interactive=False)
    return run, [rows, length, columns, metrics, probe], start, stop


def _starter(limits: Limits) -> Any:
    """Start an evaluation of a run. A judge is asked from the command line only: its key must not follow a page."""

    def start(
        run_id: str | None,
        rows: float | None,
        length: float | None,
        columns: list[str] | None,
        metrics: list[str] | None,
        probe: bool,
        request: gr.Request,
    ) -> None:
        if not run_id:
            raise gr.Error("There is no tuned model yet: make one under Fine-tune.")
        asked = {
            "rows": rows,
            "max_new_tokens": length,
            "columns": ",".join(columns or []),
            "metrics": ",".join(metrics or ["all"]),
            "probe": OWN if probe else None,
        }
        try:
            run, config = find_run(run_id), parse(EvalConfig, asked)
            limits.start(person(request).runs, lambda: start_evaluation(run, config))
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error

    return start


def _stop(run_id: str | None) -> None:
    """Ask the run's newest evaluation that has not ended to stop."""
    job = shown.unfinished(find_run(run_id).evaluations()) if run_id else None
    if job:
        job.request_stop()
        gr.Info("It stops after the batch it is at. Answers that were given are kept for the next time.")


def _offer_columns(run_id: str | None) -> Any:
    """What can be compared of a run; another run begins with base and tuned again."""
    return _offer_choices(run_id) | {"value": FIRST_COLUMNS}


def _offer_choices(run_id: str | None) -> Any:
    """The same, without a word on what is chosen."""
    return gr.update(choices=shown.column_choices(find_run(run_id), list_runs()) if run_id else FIRST_COLUMNS)


def _watch(run_id: str | None, chosen: str | None, seen: dict[str, Any], report: str) -> list[Any]:
    """Progress; and, where the page shows others, the evaluations, the leaderboard and the report's key."""
    runs = list_runs()
    run = next((r for r in runs if r.id == run_id), None)
    jobs = run.evaluations() if run else []
    going = shown.unfinished(jobs)
    status = view.progress(going or next(iter(jobs), None), "Not evaluated yet.")
    choices = shown.evaluation_choices(run, jobs) if run else []
    newest = next((f"{run.id}/{job.id}" for job in jobs if (job.path / "report.json").exists()), None) if run else None
    known, was = [value for _, value in choices], chosen
    if chosen not in known or newest != seen.get("newest"):
        chosen = newest or next(iter(known), None)
    standing = _standing(runs_folder(), int(time.monotonic()))
    new = {"choices": [list(choice) for choice in choices], "newest": newest, "chosen": chosen, "standing": standing}
    key = _key(run, chosen)
    same_list = all(new[name] == seen.get(name) for name in ("choices", "chosen"))
    value = {} if chosen == was else {"value": chosen}  # what a person has chosen meanwhile is not taken back
    return [
        status,
        gr.update(interactive=going is not None),
        gr.skip() if same_list else gr.update(choices=choices, visible=bool(choices), **value),
        gr.skip() if standing == seen.get("standing") else _board(runs, standing),
        gr.skip() if new == seen else new,
        gr.skip() if key == report else key,
    ]


@lru_cache(maxsize=4)
def _standing(folder: Path, moment: int) -> list[list[str]]:
    """What the leaderboard is made of: names, and which reports there are. Looked up once a second for all pages."""
    return [
        [run.id, run.name(), *(job.id for job in run.evaluations() if (job.path / "report.json").exists())]
        for run in list_runs()
    ]


def _board(runs: list[Run], standing: list[list[str]]) -> str:
    return shown.leaderboard_html(leaderboards(runs), {line[0]: line[1] for line in standing})


def _key(run: Run | None, chosen: str | None) -> str:
    """Another one for another report."""
    file = run.path / "evals" / chosen.rpartition("/")[2] / "report.json" if run and chosen else None
    return f"{chosen} {file.stat().st_mtime_ns}" if file and file.exists() else f"{chosen} none"
