"""Fine-tune: start a run as a process of its own, and watch whichever run is chosen. The page holds no state of it."""

from typing import Any

import gradio as gr

from finetune.config import fields, preset, preset_names
from finetune.job import start_training
from finetune.model import ALIASES
from finetune.run import ENDED, Run, find_run
from inference.engine import Engine
from studio import view
from studio.form import offer_runs, train_config

FIRST_PRESET = "quick-demo"


def build(page: gr.Blocks, engine: Engine) -> None:
    """Wire the tab."""
    help_text = {name: info.description for name, info in fields().items()}
    first = preset(FIRST_PRESET)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            chosen = gr.Dropdown(preset_names(), value=FIRST_PRESET, label="Preset", elem_id="preset")
            model = gr.Dropdown(
                list(ALIASES),
                value=first.model,
                label="Model",
                info=help_text["model"],
                allow_custom_value=True,
                elem_id="model",
            )
            rows = gr.Number(first.rows, label="Rows", info=help_text["rows"], precision=0, elem_id="rows")
            steps = gr.Number(
                first.training.steps, label="Steps", info=help_text["steps"], precision=0, elem_id="steps"
            )
            with gr.Accordion("Your own rows", open=False):
                kinds = ".jsonl, .json, .csv or .parquet"
                data = gr.File(label=f"Instruction, context, response, category: {kinds}", type="filepath")
            start = gr.Button("Start", variant="primary", elem_id="start")
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                run = gr.Dropdown([], label="Run", elem_id="train-run", scale=4)
                stop = gr.Button("Stop", elem_id="stop-run", scale=1, min_width=96)
            facts = gr.Markdown(elem_classes="figures")
            status = gr.Markdown(elem_id="train-status")
            loss = gr.LinePlot(
                x="step",
                y="loss",
                color="kind",
                color_map={"training": view.BASE_COLOUR, "validation": view.TUNED_COLOUR},
                title="Loss",
                height=280,
                elem_id="loss-plot",
            )
            with gr.Accordion("Log", open=False):
                log = gr.Textbox(show_label=False, lines=12, max_lines=12, interactive=False, elem_id="train-log")

    watched = [facts, status, loss, log, stop]
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    chosen.change(_fill, chosen, [model, rows, steps], **hidden)
    started = start.click(_start, [chosen, model, rows, steps, data], run, api_name="train")
    started.success(lambda: _make_room(engine), None, None, **hidden)
    started.then(_watch, run, watched, **hidden)
    stop.click(_stop, run, None, api_name="stop")
    run.change(_watch, run, watched, **hidden)
    run.focus(offer_runs, run, run, **hidden)
    page.load(offer_runs, None, run, **hidden).then(_watch, run, watched, **hidden)
    gr.Timer(1.0).tick(_watch, run, watched, **hidden)


def _fill(name: str) -> tuple[str, int | None, int | None]:
    config = preset(name)
    return config.model, config.rows, config.training.steps


def _start(name: str, model: str, rows: float | None, steps: float | None, data: str | None) -> Any:
    """Start a run; returns the choice of runs with the new one chosen."""
    try:
        run = start_training(train_config(name, model, rows, steps, data), name)
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error
    return offer_runs(run.id)


def _make_room(engine: Engine) -> None:
    if engine.make_room():
        gr.Info("The chat's model has left the GPU to the run. It is loaded again with your next prompt.")


def _stop(run_id: str | None) -> None:
    """Ask a run to stop at its next step; its adapter is kept."""
    if run_id:
        find_run(run_id).request_stop()
        gr.Info("It stops at its next step and keeps its adapter.")


def _watch(run_id: str | None) -> tuple[Any, ...]:
    """Everything that is shown of a run, read from its folder."""
    run: Run | None = find_run(run_id) if run_id else None
    going = run is not None and run.status()["state"] not in ENDED
    return (
        view.run_facts(run),
        view.progress(run, "No run yet. Everything is chosen: press Start."),
        view.loss_frame(run),
        run.log_tail() if run else "",
        gr.update(interactive=going),
    )
