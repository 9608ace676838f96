"""Fine-tune, the form: a preset, the everyday settings, and every other one folded away, made from their fields."""

from typing import Any, NamedTuple

import gradio as gr

from finetune.config import preset, preset_help, preset_names
from finetune.model import ALIASES
from studio.settings import EVERYDAY, Setting, groups, settings, shown

FIRST_PRESET = "quick-demo"


class Form(NamedTuple):
    """The chosen preset, a component for each setting by its name, and the two buttons."""

    preset: gr.Radio
    fields: dict[str, Any]
    check: gr.Button
    start: gr.Button

    def inputs(self) -> list[Any]:
        """What a handler gets: the preset's name, then each setting's value in the order of `fields`."""
        return [self.preset, *self.fields.values()]

    def values(self, given: tuple[Any, ...]) -> dict[str, Any]:
        """Those values by setting, the preset's name left out."""
        return dict(zip(self.fields, given[1:], strict=True))


def build() -> Form:
    """The form, with the first preset chosen and filled in."""
    names = sorted(preset_names(), key=lambda name: name != FIRST_PRESET)
    chosen = gr.Radio(names, value=FIRST_PRESET, label="Preset", elem_id="preset")
    about = gr.Markdown(preset_help(FIRST_PRESET), elem_id="preset-help")
    values = shown(preset(FIRST_PRESET))
    made = {s.name: component(s, values[s.name]) for s in settings() if s.name in EVERYDAY}
    with gr.Row():
        check = gr.Button("Check", elem_id="check", min_width=96)
        start = gr.Button("Start", variant="primary", elem_id="start", min_width=96)
    gr.Markdown("*Check* tells memory, time and what the rows become, before it starts.", elem_classes="figures")
    with gr.Accordion("All settings", open=False, elem_id="all-settings"):
        for title, members in groups().items():
            with gr.Accordion(title, open=False):
                made |= {s.name: component(s, values[s.name]) for s in members}
    form = Form(chosen, made, check, start)
    chosen.input(
        _fill(list(made)),
        chosen,
        [about, *made.values()],
        show_progress="hidden",
        api_visibility="private",
        queue=False,
    )
    return form


def component(setting: Setting, value: Any) -> Any:
    """A setting as what one can change. Bounds are checked by the config, whose sentence names the setting."""
    common: dict[str, Any] = {
        "value": value,
        "label": setting.label,
        "info": setting.help,
        "elem_id": setting.name.replace("_", "-"),
    }
    if setting.name == "model":
        return gr.Dropdown(list(ALIASES), allow_custom_value=True, **common)
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), **common)
    if setting.kind == "switch":
        return gr.Checkbox(**common)
    if setting.kind in ("integer", "number"):
        whole = setting.kind == "integer"
        return gr.Number(precision=0 if whole else None, step=1 if whole else 0.0001, **common)
    return gr.Textbox(max_lines=1, **common)


def _fill(names: list[str]) -> Any:
    def fill(chosen: str) -> list[Any]:
        values = shown(preset(chosen))
        return [preset_help(chosen), *(values[name] for name in names)]

    return fill
