"""Fine-tune, one's own rows: a file or a hub data set, its columns mapped, and a preview of what is understood."""

from typing import Any, NamedTuple

import gradio as gr

from finetune.readers import READERS
from studio import own_rows, view
from studio.own_rows import LABELS, PARTS, Found
from studio.views import plan as plan_view

NONE = ("(none)", "")


class OwnRows(NamedTuple):
    """What says which rows to train on."""

    file: gr.File
    hub: gr.Textbox
    found: gr.State
    columns: list[gr.Dropdown]

    def inputs(self) -> list[Any]:
        """What a handler gets: file, hub id, what was found in it, and the column of each part."""
        return [self.file, self.hub, self.found, *self.columns]


def build() -> OwnRows:
    """The folded part of the form."""
    kinds = ", ".join(READERS)
    with gr.Accordion("Your own rows", open=False, elem_id="own-rows"):
        file = gr.File(label=f"A file of rows ({kinds})", type="filepath", height=120, elem_id="data-file")
        hub = gr.Textbox(
            label="Or a data set on the hub",
            info="owner/name or owner/name@revision. Neither: Dolly, or our sample where no hub is reachable.",
            max_lines=1,
            elem_id="data-hub",
            submit_btn="Look",
        )
        found = gr.State(None)
        with gr.Column(visible=False) as mapping:
            gr.Markdown("Which column is what?")
            with gr.Row():
                columns = [
                    gr.Dropdown([NONE], value="", label=LABELS[part], min_width=130, elem_id=f"column-{part}")
                    for part in PARTS
                ]
        says = gr.Markdown(elem_id="data-says")
        table = gr.HTML(elem_id="data-preview")
    hidden: dict[str, Any] = {"api_visibility": "private"}
    looked = [found, mapping, *columns, says, table]
    gr.on([file.upload, file.clear, hub.submit], _look, [file, hub], looked, show_progress_on=says, **hidden)
    for column in columns:
        column.input(_preview, [found, *columns], [says, table], show_progress="hidden", **hidden)
    return OwnRows(file, hub, found, columns)


def chosen_columns(found: Found | None, mapping: tuple[str | None, ...]) -> str | None:
    """The setting `columns`. Raises ValueError for a column that can't be named in it."""
    return own_rows.columns_setting(found, dict(zip(PARTS, mapping, strict=True))) if found else None


def _look(file: str | None, hub: str | None) -> list[Any]:
    """What was found, the choice of columns, a sentence and a preview; what can't be read is a sentence too."""
    try:
        found = own_rows.look(file, hub)
    except ValueError as error:
        return [None, gr.update(visible=False), *[gr.skip()] * len(PARTS), _sentence(str(error)), ""]
    if found is None:
        return [None, gr.update(visible=False), *[gr.update(choices=[NONE], value="")] * len(PARTS), "", ""]
    choices = [NONE, *((name, name) for name in found.columns)]
    lists = [gr.update(choices=choices, value=found.usual.get(part, "")) for part in PARTS]
    mapping = tuple(found.usual.get(part, "") for part in PARTS)
    return [found, gr.update(visible=True), *lists, *_preview(found, *mapping)]


def _preview(found: Found | None, *mapping: str | None) -> tuple[str, str]:
    """A sentence and the first rows under that choice of columns."""
    if found is None:
        return "", ""
    try:
        seen = own_rows.preview(found, dict(zip(PARTS, mapping, strict=True)))
    except ValueError as error:
        return _sentence(str(error)), ""
    return _sentence(seen.sentence), plan_view.preview(seen.rows)


def _sentence(text: str) -> str:
    return view.plain(text)
