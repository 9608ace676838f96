"""Fine-tune, before the start: the plan, the rows, and one example with its mask."""

from typing import Any, NamedTuple

import gradio as gr

from finetune import plan
from finetune.config import TrainConfig
from studio.views import plan as plan_view


class Plan(NamedTuple):
    """Where a checked plan is shown."""

    box: gr.Accordion
    memory: gr.HTML
    data: gr.HTML
    example: gr.HTML

    def outputs(self) -> list[Any]:
        return [self.box, self.memory, self.data, self.example]


def build() -> Plan:
    """The place for it, hidden until something was checked."""
    with gr.Accordion("Before the start", open=True, visible=False, elem_id="plan") as box:
        memory = gr.HTML(elem_id="plan-memory")
        with gr.Accordion("The rows", open=True):
            data = gr.HTML(elem_id="plan-data")
        with gr.Accordion("One example, token by token", open=True):
            example = gr.HTML(elem_id="plan-example")
    return Plan(box, memory, data, example)


def check(config: TrainConfig, progress: gr.Progress) -> list[Any]:
    """The plan of a run, shown. Raises ValueError with what the run itself would say."""
    progress(0.1, desc="Reading the rows")
    made = plan.make(config, say=lambda said: progress(0.3, desc=said))
    progress(1.0, desc="Done")
    return [
        gr.update(visible=True, open=True),
        plan_view.plan(made),
        plan_view.data(made.data),
        plan_view.example(made.data.example, made.data.template),
    ]
