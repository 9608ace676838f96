"""Compare's folds: how every column is asked, and prompts from held-out rows."""

from typing import Any

import gradio as gr
from pydantic import ValidationError

from inference.sampling import Sampling
from studio.conversation import Settings
from studio.tabs.compare_columns import HIDDEN

EXACT, OWN = "Exact (greedy)", "Your own"
PRESETS = {
    EXACT: Sampling(),
    "Balanced": Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.05),
    "Creative": Sampling(temperature=1.1, min_p=0.05, repetition_penalty=1.05),
}
LABELS = {
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "min_p": "Min-p",
    "repetition_penalty": "Repetition penalty",
    "seed": "Seed",
}
# (least, most, step) of the sliders: what a person tries; the command line and /v1 take all that Sampling does.
RANGES = {"temperature": (0, 2, 0.05), "top_p": (0.05, 1, 0.05), "min_p": (0, 0.5, 0.01)}
RANGES |= {"repetition_penalty": (1, 2, 0.01)}


class Asking:
    """The settings' components, in a fold."""

    def __init__(self) -> None:
        first, help_text = Settings(), {n: i.description for n, i in Sampling.model_fields.items()}
        with gr.Accordion("How they are asked", open=False, elem_id="asking"):
            self.preset = gr.Radio([*PRESETS, OWN], value=EXACT, label="Sampling", elem_id="sampling-preset")
            self.system = gr.Textbox(
                "", label="System prompt", info=Settings.model_fields["system"].description, lines=2, elem_id="system"
            )
            self.length = gr.Slider(
                16,
                1024,
                first.max_new_tokens,
                step=16,
                label="Longest answer, in tokens",
                elem_id="length",
            )
            with gr.Accordion("All of the sampling", open=False, elem_id="sampling"), gr.Row():
                self.sampling = [self._field(name, str(help_text[name])) for name in Sampling.model_fields]
        self.parts = [self.system, self.length, self.preset, *self.sampling]
        self.inputs = [self.system, self.length, *self.sampling]
        self.preset.input(_fill, self.preset, self.sampling, **HIDDEN)
        for field in self.sampling[:-1]:  # another seed is no other way of choosing
            gr.on([field.input], _name, self.sampling, self.preset, **HIDDEN)

    def _field(self, name: str, info: str) -> Any:
        value, shared = getattr(Sampling(), name), {"label": LABELS[name], "info": info, "elem_id": f"sampling-{name}"}
        if name in RANGES:
            least, most, step = RANGES[name]
            return gr.Slider(least, most, value, step=step, min_width=220, **shared)
        return gr.Number(value, precision=0, min_width=220, **shared)

    def show(self, settings: Settings) -> list[Any]:
        """Updates of `parts`."""
        values = [getattr(settings.sampling, name) for name in Sampling.model_fields]
        return [settings.system, settings.max_new_tokens, _name(*values), *values]


def read(system: str | None, length: float, *values: float) -> Settings:
    """The components' values as settings. Raises ValueError with a sentence."""
    named = dict(zip(Sampling.model_fields, values, strict=True))
    missing = [LABELS[name] for name, value in named.items() if value is None]
    if missing:
        raise ValueError(f"{missing[0]} is empty: give a number.")
    try:
        return Settings(system=(system or "").strip(), max_new_tokens=int(length), sampling=Sampling(**named))
    except ValidationError as error:
        first = error.errors()[0]
        where = LABELS.get(str(first["loc"][-1]), str(first["loc"][-1]))
        raise ValueError(
            f"{where}: {first['msg'][0].lower()}{first['msg'][1:]} (given: {first['input']!r})."
        ) from error


def _fill(name: str) -> list[Any]:
    """A preset's values; the seed stays."""
    if name not in PRESETS:
        return [gr.skip()] * len(Sampling.model_fields)
    return [gr.skip() if field == "seed" else getattr(PRESETS[name], field) for field in Sampling.model_fields]


def _name(*values: float) -> str:
    """The preset that these values are."""
    now = dict(zip(Sampling.model_fields, values, strict=True))
    same = (name for name, preset in PRESETS.items() if preset.model_dump() | {"seed": now["seed"]} == now)
    return next(same, OWN)
