"""Evaluate: score base and tuned on held-out rows as a process of its own, and show what came out."""

from typing import Any

import gradio as gr

from evaluation.config import EvalConfig
from evaluation.jobs import start_evaluation
from evaluation.report import EvalReport
from finetune.config import parse
from finetune.run import Job, find_run
from studio import view
from studio.form import offer_tuned


def build(page: gr.Blocks) -> None:
    """Wire the tab."""
    fields = EvalConfig.model_fields
    with gr.Row():
        run = gr.Dropdown([], label="Run", scale=3, elem_id="eval-run", info="A run that has an adapter.")
        rows = gr.Number(
            fields["rows"].default,
            label="Held-out rows",
            info=fields["rows"].description,
            precision=0,
            elem_id="eval-rows",
        )
        length = gr.Number(
            fields["max_new_tokens"].default,
            label="Longest answer, in tokens",
            info=fields["max_new_tokens"].description,
            precision=0,
            elem_id="eval-length",
        )
        with gr.Column(scale=1, min_width=120):
            start = gr.Button("Evaluate", variant="primary", elem_id="evaluate")
            stop = gr.Button("Stop", elem_id="stop-eval")
    status = gr.Markdown(elem_id="eval-status")
    verdict = gr.Markdown(elem_id="verdict")
    with gr.Row():
        loss = gr.Plot(show_label=False, elem_id="loss-chart")
        rouge = gr.Plot(show_label=False, elem_id="rouge-chart")
    table = gr.Dataframe(label="Scores", interactive=False, wrap=True, elem_id="scores")
    shown = gr.State("")  # the report that the page shows: it is drawn again only when there is another one

    outputs = [status, verdict, loss, rouge, table, shown]
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    start.click(_start, [run, rows, length], None, api_name="evaluate").then(_watch, [run, shown], outputs, **hidden)
    stop.click(_stop, run, None, api_visibility="private")
    run.change(_watch, [run, shown], outputs, **hidden)
    run.focus(offer_tuned, run, run, **hidden)
    page.load(offer_tuned, None, run, **hidden).then(_watch, [run, shown], outputs, **hidden)
    gr.Timer(1.0).tick(_watch, [run, shown], outputs, **hidden)


def _start(run_id: str | None, rows: float | None, length: float | None) -> None:
    """Start an evaluation of a run."""
    if not run_id:
        raise gr.Error("There is no tuned model yet: make one under Fine-tune.")
    try:
        start_evaluation(find_run(run_id), parse(EvalConfig, {"rows": rows, "max_new_tokens": length}))
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error


def _stop(run_id: str | None) -> None:
    evaluation = _newest(run_id)
    if evaluation:
        evaluation.request_stop()


def _newest(run_id: str | None) -> Job | None:
    found = find_run(run_id).evaluations() if run_id else []
    return found[0] if found else None


def _watch(run_id: str | None, shown: str) -> tuple[Any, ...]:
    """The newest evaluation's progress, and the newest report."""
    evaluations = find_run(run_id).evaluations() if run_id else []
    status = view.progress(evaluations[0] if evaluations else None, "Not evaluated yet.")
    reported = next((job for job in evaluations if (job.path / "report.json").exists()), None)
    key = str(reported.path) if reported else f"none {run_id}"
    if key == shown:
        return (status, *[gr.skip()] * 4, shown)
    report = EvalReport.model_validate_json((reported.path / "report.json").read_text()) if reported else None
    charts = [view.score_chart(report, metric) if report else None for metric in ("loss", "rouge_l")]
    return (status, view.plain(report.verdict) if report else "", *charts, view.score_table(report), key)
