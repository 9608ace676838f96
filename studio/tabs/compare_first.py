"""Compare's first visit: nothing is tuned yet, so one click makes a first adapter, and its progress is shown here."""

from typing import Any

import gradio as gr

from finetune.config import preset
from finetune.job import start_training
from finetune.run import ENDED, list_runs
from studio import view
from studio.limits import Limits, person
from studio.tabs.compare_columns import HIDDEN

PRESET = "quick-demo"
TO_FINE_TUNE = (
    "() => [...document.querySelectorAll('[role=tab]')].find((t) => /Fine-tune/.test(t.textContent))?.click()"
)


class First:
    """The card, shown while no run has an adapter; its timer ticks only then."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        config = preset(PRESET)
        with gr.Column(elem_id="first", visible=False) as self.card:
            gr.Markdown(
                "**Nothing is tuned here yet, so the base answers alone.** A first adapter takes "
                f"{config.training.steps} short steps: minutes on two CPU cores. Go on asking meanwhile.",
                elem_id="first-why",
            )
            with gr.Row(elem_id="first-acts"):
                self.make = gr.Button(
                    "Make your first adapter", variant="primary", elem_id="make-first", scale=0, min_width=250
                )
                self.watch = gr.Button("Watch it", elem_id="watch-first", scale=0, min_width=110, visible=False)
                self.status = gr.Markdown(elem_id="first-status")
        self.timer = gr.Timer(1.0, active=False)
        self.parts = [self.card, self.make, self.watch, self.status, self.timer]
        self.make.click(self._make, None, self.parts, **HIDDEN)
        self.watch.click(None, None, None, js=TO_FINE_TUNE, api_visibility="private")

    def show(self) -> list[Any]:
        """Updates of `parts`, as the runs' folders have it."""
        runs = list_runs()
        if is_over():
            return [gr.update(visible=False), gr.skip(), gr.skip(), "", gr.Timer(active=False)]
        going = bool(runs) and runs[0].status()["state"] not in ENDED
        line = view.progress(runs[0] if runs else None, "")
        shown = [gr.update(visible=not going), gr.update(visible=going)]
        return [gr.update(visible=True), *shown, line, gr.Timer(active=True)]

    def _make(self, request: gr.Request) -> list[Any]:
        """Start the run; a second click while one goes starts none."""
        try:
            if not any(run.status()["state"] not in ENDED for run in list_runs()):
                config = preset(PRESET)
                self.limits.start(person(request).runs, lambda: start_training(config, PRESET))
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error
        return self.show()


def is_over() -> bool:
    """Whether some run has an adapter, which ends the first visit."""
    return any(run.has_adapter() for run in list_runs())
