"""Merge and export, on the Runs tab: both are jobs of the run, the page only starts, stops and watches them."""

from typing import Any, NamedTuple

import gradio as gr

from finetune.config import parse
from finetune.products import Merge, product, start_export, start_merge
from finetune.run import ENDED, Run, find_run
from studio import view
from studio.limits import Limits, person
from studio.tabs.results import HIDDEN, TAKE
from studio.views import files
from studio.views import products as shown

# A click on an export's button says which one.
SAY_WHICH = """element.addEventListener("click", event => {
  const button = event.target.closest("button[data-export]");
  if (button) trigger("click", {chosen: button.dataset.export});
});"""


class Products(NamedTuple):
    """What is drawn again while jobs go on."""

    merging: gr.Markdown
    certificate: gr.HTML
    stop: gr.Button
    exporting: gr.Markdown
    exports: gr.HTML


def build(run: gr.Dropdown, limits: Limits) -> Products:
    """Make and wire both."""
    fields = Merge.model_fields
    with gr.Accordion("Merge", open=False, elem_id="merge-section"):
        with gr.Row(equal_height=True):
            onto = gr.Radio(
                [("whichever is better", "auto"), ("bf16", "bf16"), ("nf4", "nf4")],
                value="auto",
                label="Onto",
                info=fields["onto"].description,
                elem_id="merge-onto",
                scale=3,
                min_width=280,
            )
            rows = gr.Number(
                fields["rows"].default,
                label="Rows",
                info=fields["rows"].description,
                precision=0,
                elem_id="merge-rows",
                min_width=180,
            )
            with gr.Column(min_width=120):
                merge = gr.Button("Merge", variant="primary", elem_id="merge")
                stop = gr.Button("Stop", elem_id="merge-stop", interactive=False)
        merging = gr.Markdown(elem_id="merge-status")
        certificate = gr.HTML(elem_id="certificate")
    with gr.Accordion("Export", open=False, elem_id="export-section"):
        with gr.Row(elem_classes="act"):
            kind = gr.Dropdown(shown.EXPORTS, value="adapter", label="What", elem_id="export-kind", min_width=280)
            export = gr.Button("Export", variant="primary", elem_id="export", min_width=120, scale=0)
        exporting = gr.Markdown(elem_id="export-status")
        exports = gr.HTML(elem_id="exports", js_on_load=SAY_WHICH)
        taken = gr.DownloadButton(elem_classes="unseen")

    merge.click(_merger(limits), [run, onto, rows], None, api_visibility="private")
    stop.click(_stop, run, None, api_visibility="private")
    export.click(_exporter(limits), [run, kind], None, api_visibility="private")
    exports.click(_take, run, taken, **HIDDEN).success(None, taken, None, js=TAKE)
    return Products(merging, certificate, stop, exporting, exports)


def watch(run: Run | None) -> list[Any]:
    """What stands in each of them."""
    merges = run.jobs("merges") if run else []
    exports = run.jobs("exports") if run else []
    export = exports[0] if exports else None
    is_going = any(job.status()["state"] not in ENDED for job in merges)
    return [
        view.progress(next(iter(merges), None), "A merge makes one standalone model of base and adapter."),
        shown.certificate_html(run),
        {"interactive": is_going},
        "" if export is None or product(export) else view.progress(export, ""),
        shown.exports_html(run),
    ]


def _merger(limits: Limits) -> Any:
    """Merge a run's adapter into its base, as a process of its own."""

    def merge(run_id: str | None, onto: str, rows: float | None, request: gr.Request) -> None:
        try:
            run, order = _chosen(run_id), parse(Merge, {"onto": onto, "rows": rows})
            limits.start(person(request).runs, lambda: start_merge(run, order))
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error
        gr.Info("The merge has started, and goes on if you close this page.")

    return merge


def _stop(run_id: str | None) -> None:
    for job in find_run(run_id).jobs("merges") if run_id else []:
        if job.status()["state"] not in ENDED:
            job.request_stop()
            gr.Info("It stops after the step it is at. What was merged before is still there.")


def _exporter(limits: Limits) -> Any:
    """Export a run for other software, as a process of its own."""

    def export(run_id: str | None, choice: str, request: gr.Request) -> None:
        try:
            run, order = _chosen(run_id), shown.export_order(choice)
            limits.start(person(request).runs, lambda: start_export(run, order))
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error

    return export


def _take(run_id: str | None, event: gr.EventData) -> Any:
    """The file of an export that the page names by its id, as a download."""
    try:
        chosen = event._data.get("chosen") if isinstance(event._data, dict) else None
        if chosen is None:
            return gr.skip()
        job = next((job for job in _chosen(run_id).jobs("exports") if job.id == chosen), None)
        made = product(job) if job else None
        if made is None or not made.is_file():
            raise ValueError("That export is not there any more: export again.")
        return str(files.offered(made, made.name))
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error


def _chosen(run_id: str | None) -> Run:
    if not run_id:
        raise ValueError("Choose a run first.")
    return find_run(run_id)
