"""The results of one evaluation on the Evaluate tab: verdict, chart, table, examples, downloads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from evaluation.report import OVERALL
from finetune.run import find_run
from studio.views import evaluate as view
from studio.views import examples, files

HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# The browser takes the file that the server has just made: its link stands in the hidden button's value.
TAKE = """file => { if (!file) return; const link = document.createElement("a"); link.href = file.url;
link.download = file.orig_name || file.path.split("/").pop(); document.body.append(link);
link.click(); link.remove(); }"""
FILES = (
    ("page", "Report, HTML"),
    ("report", "Report, JSON"),
    ("examples", "Examples, CSV"),
    ("comparator", "LLM Comparator, JSON"),
)


class Results(NamedTuple):
    """What is drawn again for another evaluation, in this order."""

    whole: gr.Column
    column: gr.Dropdown
    verdict: gr.HTML
    metric: gr.Dropdown
    chart: gr.Plot
    category: gr.Dropdown
    table: gr.HTML
    findings: gr.HTML
    only: gr.Dropdown
    by: gr.Dropdown
    number: gr.State
    examples: gr.HTML
    place: gr.Markdown
    back: gr.Button
    on: gr.Button


def build(run: gr.Dropdown, evaluation: gr.Dropdown) -> tuple[Results, list[Any]]:
    """Make the components and wire what they do to each other; returns what `draw` fills, and what it is given."""
    with gr.Column(visible=False, elem_id="eval-results") as whole:
        column = gr.Dropdown([], label="Compared with the first column", elem_id="eval-column", visible=False)
        verdict = gr.HTML(elem_id="verdict")
        _downloads(run, evaluation, column)
        with gr.Row():
            with gr.Column(min_width=320, scale=2):
                metric = gr.Dropdown([], label="Chart of", elem_id="eval-metric")
                chart = gr.Plot(show_label=False, elem_id="loss-chart")
            with gr.Column(min_width=320, scale=3):
                category = gr.Dropdown([], label="Table of", elem_id="eval-category")
                table = gr.HTML(elem_id="scores")
        findings = gr.HTML(elem_id="findings")
        gr.Markdown("### Examples")
        with gr.Row():
            only = gr.Dropdown([], label="Category", elem_id="example-category")
            by = gr.Dropdown([], label="Score", elem_id="example-metric")
            order = gr.Dropdown(examples.ORDERS, value="gain", label="Order", elem_id="example-order")
        number = gr.State(0)
        shown = gr.HTML(elem_id="examples")
        with gr.Row(elem_classes="pager"):
            back = gr.Button("Previous", elem_id="examples-back", size="sm", scale=0, min_width=110)
            place = gr.Markdown(elem_id="examples-place")
            on = gr.Button("Next", elem_id="examples-on", size="sm", scale=0, min_width=110)
    results = Results(
        whole, column, verdict, metric, chart, category, table, findings, only, by, number, shown, place, back, on
    )
    asked = [run, evaluation, column, metric, category, only, by, order]
    column.input(draw, asked, list(results), **HIDDEN)
    metric.input(_chart, [run, evaluation, column, metric], chart, **HIDDEN)
    category.input(_table, [run, evaluation, column, category], table, **HIDDEN)
    pages, page = [number, shown, place, back, on], [run, evaluation, column, only, by, order]
    for chosen in (only, by, order):
        chosen.input(_first_page, page, pages, **HIDDEN)
    back.click(_turned(-1), [*page, number], pages, **HIDDEN)
    on.click(_turned(+1), [*page, number], pages, **HIDDEN)
    return results, asked


def _downloads(run: gr.Dropdown, evaluation: gr.Dropdown, column: gr.Dropdown) -> None:
    taken = gr.DownloadButton(elem_classes="unseen")
    with gr.Row(elem_classes="downloads"):
        for kind, label in FILES:
            button = gr.Button(f"↓ {label}", size="sm", scale=0, min_width=150, elem_id=f"download-{kind}")
            button.click(_download(kind), [run, evaluation, column], taken, **HIDDEN).success(
                None, taken, None, js=TAKE
            )


def draw(
    run_id: str | None,
    chosen: str | None,
    column: str | None,
    metric: str | None,
    category: str | None,
    only: str | None,
    by: str | None,
    order: str,
) -> list[Any]:
    """All of it for an evaluation; what is chosen stays chosen where the report has it."""
    found = _found(run_id, chosen)
    if found is None:
        return [gr.update(visible=False), *[gr.skip()] * (len(Results._fields) - 1)]
    report = found.report
    columns = report.columns[1:]
    column = _kept(column, columns)
    scores = view.of_column(report, column)
    keys = list(dict.fromkeys(s.metric for s in scores))
    metric = _kept(metric, keys)
    categories = view.category_choices(report)
    category = _kept(category, [value for _, value in categories], OVERALL)
    lines = examples.index(found.samples)
    names = examples.categories(lines)
    scored = examples.metrics(lines)
    by = _kept(by, scored)
    only = _kept(only, [examples.EVERY, *names])
    return [
        gr.update(visible=True),
        gr.update(choices=columns, value=column, visible=len(columns) > 1, label=f"Compared with {report.columns[0]}"),
        view.verdict_html(report, column),
        gr.update(choices=view.metric_choices(keys), value=metric),
        view.score_chart(report, column, metric) if scores else None,
        gr.update(choices=categories, value=category),
        view.score_table(scores, category),
        view.findings_html(report),
        gr.update(choices=view.example_categories(names), value=only),
        gr.update(choices=view.metric_choices(scored), value=by),
        *_page(found, column, only, by, order, 0),
    ]


def _found(run_id: str | None, chosen: str | None) -> view.Found | None:
    """Raises gr.Error for a run that is gone or a report that can't be read."""
    if not run_id or not chosen:
        return None
    try:
        return view.found(find_run(run_id), chosen)
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error


def _kept(value: str | None, there: Sequence[str], first: str | None = None) -> str:
    return value if value in there else first if first in there else next(iter(there), "")  # type: ignore[return-value]


def _chart(run_id: str | None, chosen: str | None, column: str, metric: str) -> Any:
    found = _found(run_id, chosen)
    return view.score_chart(found.report, column, metric) if found else gr.skip()


def _table(run_id: str | None, chosen: str | None, column: str, category: str) -> Any:
    found = _found(run_id, chosen)
    return view.score_table(view.of_column(found.report, column), category) if found else gr.skip()


def _first_page(run_id: str | None, chosen: str | None, column: str, only: str, by: str, order: str) -> list[Any]:
    found = _found(run_id, chosen)
    return _page(found, column, only, by, order, 0) if found else [gr.skip()] * 5


def _turned(pages: int) -> Any:
    def turn(
        run_id: str | None, chosen: str | None, column: str, only: str, by: str, order: str, number: int
    ) -> list[Any]:
        found = _found(run_id, chosen)
        return _page(found, column, only, by, order, number + pages) if found else [gr.skip()] * 5

    return turn


def _page(found: view.Found, column: str, only: str, by: str, order: str, number: int) -> list[Any]:
    """A page of the examples: its number, its HTML, where that is, and the two buttons."""
    report = found.report
    at = report.columns.index(column) if column in report.columns else 1
    page = examples.shown(found.samples, at, by, order, only, number)
    return [
        page.number,
        examples.examples_html(report, page, at, by),
        examples.place(page),
        gr.update(interactive=page.number > 0),
        gr.update(interactive=page.number < page.pages - 1),
    ]


def _download(kind: str) -> Any:
    def download(run_id: str | None, chosen: str | None, column: str) -> Any:
        found = _found(run_id, chosen)
        if found is None:
            raise gr.Error("Choose an evaluation that has ended.", duration=None)
        report = found.report
        try:
            at = report.columns.index(column) if column in report.columns else 1
            return str(files.evaluation_file(found.job, report, at, kind))
        except (ValueError, FileNotFoundError) as error:
            raise gr.Error(str(error), duration=None) from error

    return download
