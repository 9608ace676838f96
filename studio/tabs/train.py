"""Fine-tune: a form, what it would lead to, and whichever run is chosen. The page holds no state of a run."""

from typing import Any, NamedTuple

import gradio as gr

from finetune.config import TrainConfig
from finetune.job import start_training
from studio.form import about_file, checked_config, offer_runs
from studio.limits import Limits, person
from studio.tabs import train_check, train_data, train_form, train_watch

PROGRESS = gr.Progress()  # as a default it has Gradio hand over the call's own


class Train(NamedTuple):
    """What leads from here to other tabs: the buttons are shown when the chosen run has an adapter."""

    compare_now: gr.Button
    evaluate_now: gr.Button
    merge_now: gr.Button
    run: gr.Dropdown


def build(page: gr.Blocks, limits: Limits) -> Train:
    """Wire the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = train_form.build()
            own = train_data.build()
        with gr.Column(scale=5, min_width=300):
            plan = train_check.build()
            watch = train_watch.build(page)

    inputs = [*own.inputs(), *form.inputs()]
    config_of = _reader(form, len(own.inputs()))

    def checked(progress: gr.Progress = PROGRESS, *given: Any) -> list[Any]:
        try:
            return train_check.check(config_of(given), progress)
        except ValueError as error:
            raise gr.Error(about_file(error, given[0]), duration=None) from error

    def started(request: gr.Request, *given: Any) -> tuple[Any, Any]:
        """Start a run: the choice of runs with the new one chosen; the plan is folded."""
        try:
            config, label = config_of(given), given[len(own.inputs())]
            run = limits.start(person(request).runs, lambda: start_training(config, label))
        except ValueError as error:
            raise gr.Error(about_file(error, given[0]), duration=None) from error
        return offer_runs(run.id), gr.update(open=False)

    hidden: dict[str, Any] = {"api_visibility": "private"}
    form.check.click(checked, inputs, plan.outputs(), show_progress_on=plan.memory, **hidden)
    begun = form.start.click(started, inputs, [watch.run, plan.box], show_progress_on=watch.run, **hidden)
    begun.success(None, watch.run, None, js=train_watch.REMEMBER, **hidden)
    return Train(watch.compare_now, watch.evaluate_now, watch.merge_now, watch.run)


def _reader(form: train_form.Form, count: int) -> Any:
    """A function from what the handlers get to a checked config; the first `count` values are of the own rows."""

    def config_of(given: tuple[Any, ...]) -> TrainConfig:
        upload, hub, found, *mapping = given[:count]
        rest = given[count:]
        columns = train_data.chosen_columns(found, tuple(mapping))
        return checked_config(rest[0], form.values(rest), upload, hub, columns)

    return config_of
