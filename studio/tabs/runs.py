"""Runs: all there are, one in detail, two side by side; name, note, merge, export, delete."""

from hashlib import sha256
from typing import Any, NamedTuple

import gradio as gr

from finetune.about import NAME_LIMIT, NOTE_LIMIT, read_about, write_about
from finetune.disk import delete_run
from finetune.run import Run, list_runs
from studio import view
from studio.form import offer_runs
from studio.limits import Limits
from studio.tabs import products
from studio.tabs.results import HIDDEN
from studio.views import runs as shown

# A click anywhere on a line says which run; the line's button keeps the focus when the list is drawn again.
SAY_WHICH = """let held = null;
element.addEventListener("focusin", event => { held = event.target.dataset.run || null; });
element.addEventListener("focusout", event => { if (event.relatedTarget) held = null; });
element.addEventListener("click", event => {
  const line = event.target.closest("[data-run]");
  if (line) trigger("click", {chosen: line.dataset.run});
});
watch("value", () => {
  if (held && document.activeElement === document.body)
    element.querySelector(`button[data-run="${CSS.escape(held)}"]`)?.focus({preventScroll: true});
});"""


class Runs(NamedTuple):
    """What the page wires to other tabs."""

    run: gr.Dropdown
    compare_now: gr.Button
    evaluate_now: gr.Button


def build(page: gr.Blocks, limits: Limits) -> Runs:
    """Wire the tab."""
    listed = gr.HTML(elem_id="run-list", js_on_load=SAY_WHICH)
    used = gr.Markdown(elem_id="disk", elem_classes="figures")
    with gr.Row(elem_classes="act"):
        run = gr.Dropdown([], label="Run", elem_id="run", scale=3, min_width=240)
        compare_now = gr.Button("Compare now", elem_id="run-compare-now", min_width=130, scale=0, interactive=False)
        evaluate_now = gr.Button("Evaluate", elem_id="run-evaluate-now", min_width=130, scale=0, interactive=False)
    with gr.Row():
        facts = gr.HTML(elem_id="run-facts", min_width=320)
        with gr.Column(min_width=320):
            name, note = _about(run)
    _settings(page, run)
    made = products.build(run, limits)
    _deletion(run)

    seen = gr.State({})  # a digest of everything as the page shows it: only what is another now is sent
    drawn = [listed, used, facts, *made, compare_now, evaluate_now, run]
    watching: dict[str, Any] = {"fn": _watch, "inputs": [run, seen], "outputs": [*drawn, seen], **HIDDEN}
    listed.click(_choose, run, run, **HIDDEN)
    run.change(_read_about, run, [name, note], **HIDDEN).then(**watching)
    page.load(offer_runs, None, run, **HIDDEN).then(**watching)
    gr.Timer(2.0).tick(**watching)
    return Runs(run, compare_now, evaluate_now)


def _about(run: gr.Dropdown) -> tuple[gr.Textbox, gr.Textbox]:
    name = gr.Textbox(
        label="Name", placeholder="What you call it", max_lines=1, max_length=NAME_LIMIT, elem_id="run-name"
    )
    note = gr.Textbox(
        label="Note", placeholder="What you tried, what came of it", lines=3, max_length=NOTE_LIMIT, elem_id="run-note"
    )
    save = gr.Button("Save name and note", size="sm", elem_id="save-about")
    gr.on([save.click, name.submit], _write_about, [run, name, note], run, **HIDDEN)
    return name, note


def _settings(page: gr.Blocks, run: gr.Dropdown) -> None:
    with gr.Accordion("Settings", open=False, elem_id="settings-section"):
        other = gr.Dropdown([("the defaults", "")], value="", label="Beside", elem_id="other-run")
        everything = gr.Checkbox(label="Also what is the same", elem_id="all-settings")
        table = gr.HTML(elem_id="run-settings")
    asked = [run, other, everything]
    gr.on([run.change, other.input, everything.input, page.load], _draw_settings, asked, table, **HIDDEN)
    other.focus(_offer_others, [run, other], other, **HIDDEN)


def _deletion(run: gr.Dropdown) -> None:
    with gr.Accordion("Delete", open=False, elem_id="delete-section"):
        ask = gr.Button("Delete this run …", variant="stop", elem_id="delete", scale=0)
        with gr.Group(visible=False, elem_id="really") as really:
            question = gr.Markdown(elem_id="delete-question", padding=True)
            with gr.Row():
                no = gr.Button("Keep it", elem_id="delete-no")
                yes = gr.Button("Delete it for ever", variant="stop", elem_id="delete-yes")
        asked = gr.State("")  # the run that the question names: no other one is deleted
    question_parts = [really, question, asked]
    ask.click(_ask, run, question_parts, **HIDDEN)
    no.click(_unasked, None, question_parts, **HIDDEN)
    run.change(_unasked, None, question_parts, **HIDDEN)
    yes.click(_delete, [run, asked], run, **HIDDEN)


def _choose(run_id: str | None, event: gr.EventData) -> Any:
    """The run whose line was clicked, if there is one."""
    chosen = event._data.get("chosen") if isinstance(event._data, dict) else None
    return offer_runs(chosen) if chosen in [run.id for run in list_runs()] else gr.skip()


def _read_about(run_id: str | None) -> tuple[str, str]:
    about = read_about(_run(run_id).path) if run_id else None  # type: ignore[union-attr]
    return (about.name, about.note) if about else ("", "")


def _write_about(run_id: str | None, name: str, note: str) -> Any:
    run = _run(run_id)
    if run is None:
        raise gr.Error("There is no run to name yet.")
    try:
        write_about(run.path, name, note)
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error
    gr.Info("Kept.")
    return offer_runs(run.id)


def _draw_settings(run_id: str | None, other_id: str | None, everything: bool) -> str:
    return shown.settings_html(_run(run_id), _run(other_id), everything)


def _offer_others(run_id: str | None, other_id: str | None) -> Any:
    choices = [("the defaults", ""), *view.run_choices([run for run in list_runs() if run.id != run_id])]
    return gr.update(choices=choices, value=other_id if other_id in [value for _, value in choices] else "")


def _ask(run_id: str | None) -> tuple[Any, str, str]:
    run = _run(run_id)
    if run is None:
        raise gr.Error("There is no run to delete.")
    return gr.update(visible=True), shown.deletion(run), run.id


def _unasked() -> tuple[Any, str, str]:
    return gr.update(visible=False), "", ""


def _delete(run_id: str | None, asked: str) -> Any:
    run = _run(run_id)
    if run is None or run.id != asked:
        raise gr.Error("Another run is chosen now than the one you were asked about: press Delete again.")
    try:
        delete_run(run)
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error
    gr.Info("It is deleted.")
    return offer_runs()


def _run(run_id: str | None) -> Run | None:
    """The chosen run; None where none is, or where it is gone meanwhile."""
    return next((run for run in list_runs() if run.id == run_id), None) if run_id else None


def _watch(run_id: str | None, seen: dict[str, str]) -> list[Any]:
    """Everything that may have changed, read from the runs' folders; only what did is sent."""
    runs = list_runs()
    run = next((r for r in runs if r.id == run_id), None) or next(iter(runs), None)
    chosen = run.id if run else None
    is_ready = {"interactive": run is not None and run.has_adapter()}
    now = [
        shown.list_html(runs, chosen),
        shown.disk_line(),
        shown.facts_html(run),
        *products.watch(run),
        is_ready,
        is_ready,
        {"choices": view.run_choices(runs)} | ({} if chosen == run_id else {"value": chosen}),
    ]
    digests = {str(at): sha256(repr(value).encode()).hexdigest()[:16] for at, value in enumerate(now)}
    sent = [
        gr.skip() if digests[str(at)] == seen.get(str(at)) else gr.update(**v) if isinstance(v, dict) else v
        for at, v in enumerate(now)
    ]
    return [*sent, gr.skip() if digests == seen else digests]
