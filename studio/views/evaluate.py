"""An evaluation as the page shows it: what can be asked, the verdict, the table, the chart, the leaderboard."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from evaluation.html_findings import judge_section, probe_section
from evaluation.leaderboard import Board, Line
from evaluation.measures import MEASURES
from evaluation.report import OVERALL, EvalReport, Score, read_report, table
from evaluation.verdict import verdict
from finetune.run import ENDED, Job, Run
from studio import view
from studio.views.examples import EVERY

STRENGTHS = ("0.25", "0.5", "0.75", "1.25", "1.5")
EVERY_CATEGORY = "*"
ORDER = ("metric", "category", "base", "tuned", "change", "verdict", "p", "wins/ties/losses", "examples")
NUMBERS = ("examples", "base", "tuned", "change", "p", "wins/ties/losses")
HEADS = {"examples": "n", "change": "change [95 % interval]", "p": "p (Holm)"}


class Found(NamedTuple):
    """An evaluation that has a report."""

    job: Job
    report: EvalReport

    @property
    def samples(self) -> Path:
        return self.job.path / "samples.jsonl"


def column_choices(run: Run, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(label, name) of what can be compared: parts of the run, and other runs on the same weights."""
    choices = [("base", "base"), ("tuned", "tuned")]
    choices += [(f"tuned at strength {strength}", strength) for strength in STRENGTHS]
    choices += [(f"checkpoint-{step}", f"checkpoint-{step}") for step, _ in run.checkpoints()]
    if run.has_merged():
        choices.append(("merged", "merged"))
    mine = run.facts().get("model_sha256")
    others = [r for r in runs if r.id != run.id and mine and r.facts().get("model_sha256") == mine and r.has_adapter()]
    return [*choices, *((f"{label} (another run)", name) for label, name in view.run_choices(others))]


def metric_choices(keys: Sequence[str]) -> list[tuple[str, str]]:
    """(label, key), and which way is better."""
    ways = {True: "higher is better", False: "lower is better", None: "neither way is better"}
    return [(f"{MEASURES[key].name} ({ways[MEASURES[key].higher_is_better]})", key) for key in keys]


def evaluation_choices(run: Run, jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """(label, RUN/EVALUATION) of a run's evaluations, newest first."""
    choices = []
    for job in jobs:
        asked = job.config()["config"]
        parts = [view.started(job), asked["columns"].replace(",", ", "), f"{asked['rows'] or 'all'} rows"]
        choices.append((" · ".join([*parts, job.status()["state"]]), f"{run.id}/{job.id}"))
    return choices


def found(run: Run, chosen: str | None) -> Found | None:
    """The evaluation of that run by its RUN/EVALUATION, if it has a report. Raises ValueError for a broken report."""
    for job in run.evaluations():
        if f"{run.id}/{job.id}" == chosen and (job.path / "report.json").exists():
            return Found(job, read_report(job.path / "report.json"))
    return None


def unfinished(jobs: Sequence[Job]) -> Job | None:
    """The newest that is still to come to its end."""
    return next((job for job in jobs if job.status()["state"] not in ENDED), None)


def of_column(report: EvalReport, column: str) -> list[Score]:
    return [s for s in report.scores if s.column == column]


def verdict_html(report: EvalReport, column: str) -> str:
    """The verdict on a column, its first sentence large, and what was compared on what."""
    scores, judge, probe = of_column(report, column), report.judge, report.probe
    if judge:
        judge = judge.model_copy(update={"preferences": [p for p in judge.preferences if p.column == column]})
    if probe:
        probe = probe.model_copy(update={"departures": [d for d in probe.departures if d.column == column]})
    first, _, rest = verdict(scores, judge, probe, report.columns[0]).partition(". ")
    overall = {s.verdict for s in scores if s.category == OVERALL and MEASURES[s.metric].headline}
    kind = {(True, False): "better", (False, True): "worse", (True, True): "mixed"}.get(
        ("better" in overall, "worse" in overall), "same"
    )
    facts = [
        f"{report.rows} examples: {report.split}" if report.split else f"{report.rows} examples",
        f"answers of up to {report.max_new_tokens} tokens",
        report.model,
        f"took {view.duration(report.seconds)}",
    ]
    more = "".join(f"<p>{escape(text)}</p>" for text in filter(None, (rest, *report.notes)))
    head = escape(first.removesuffix("."))
    return f'<div class="verdict {kind}"><h3>{head}.</h3>{more}<p class="quiet">{escape(" · ".join(facts))}</p></div>'


def findings_html(report: EvalReport) -> str:
    """What the judge and the probe found, as in report.html: sentences and tables, escaped there."""
    parts = [judge_section(report.judge, report.columns[0])] if report.judge else []
    parts += [probe_section(report.probe, report.columns[0])] if report.probe else []
    return f'<div class="findings">{"".join(parts)}</div>' if parts else ""


def category_choices(report: EvalReport) -> list[tuple[str, str]]:
    """(label, category), all examples first."""
    names = dict.fromkeys(s.category for s in report.scores)
    return [
        ("all examples together", OVERALL),
        *((_name(name), name) for name in names if name != OVERALL),
        ("every category, one by one", EVERY_CATEGORY),
    ]


def example_categories(names: Sequence[str]) -> list[tuple[str, str]]:
    """(label, category) to filter the examples by."""
    return [("every category", EVERY), *((_name(name), name) for name in names)]


def score_table(scores: Sequence[Score], category: str) -> str:
    """A table of one category's scores, or of all of them; the interval is that of the change."""
    chosen = table([s for s in scores if category in (s.category, EVERY_CATEGORY)])
    if not chosen:
        return "<p>No scores.</p>"
    names = [name for name in ORDER if category == EVERY_CATEGORY or name != "category"]
    heads = {name: HEADS.get(name, name) for name in names} | {"tuned": scores[0].column}
    head = "".join(
        f'<th scope="col" class="{"number" if name in NUMBERS else ""}">{escape(heads[name])}</th>' for name in names
    )
    body = "".join(f"<tr>{''.join(_cell(name, row) for name in names)}</tr>" for row in chosen)
    return (
        f'<div class="scroll" tabindex="0"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(name: str, row: dict[str, Any]) -> str:
    text = escape(str(row[name]))
    if name == "metric":
        return f'<th scope="row">{text}</th>'
    if name == "category":
        return f"<td>{escape('all' if row[name] == OVERALL else _name(row[name]))}</td>"
    if name == "verdict":
        return f'<td class="{text if text in ("better", "worse") else "same"}">{text}</td>'
    return f'<td class="number">{text}</td>' if name in NUMBERS else f"<td>{text}</td>"


def score_chart(report: EvalReport, column: str, metric: str) -> go.Figure:
    """Bars of base and another column by category; the whisker is the 95 % interval of its change from base."""
    scores = [s for s in of_column(report, column) if s.metric == metric]
    labels = [f"{_label(s.category)} ({s.examples})" for s in scores]
    whisker = {
        "type": "data",
        "array": [s.high - s.difference for s in scores],
        "arrayminus": [s.difference - s.low for s in scores],
        "thickness": 1.4,
        "width": 4,
        "color": view.WHISKER_COLOUR,
    }
    sides: list[dict[str, Any]] = [
        {"name": escape(report.columns[0]), "x": [s.base for s in scores], "marker_color": view.BASE_COLOUR},
        {"name": escape(column), "x": [s.tuned for s in scores], "marker_color": view.TUNED_COLOUR, "error_x": whisker},
    ]
    hover = "%{y}: %{x:.3f}<extra></extra>"
    figure = go.Figure([go.Bar(y=labels, orientation="h", hovertemplate=hover, **side) for side in sides])
    figure.update_layout(
        barmode="group",
        bargap=0.3,
        height=120 + 44 * len(scores),
        margin={"l": 8, "r": 12, "t": 44, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        modebar={"remove": ["lasso", "select", "zoom", "pan", "zoomin", "zoomout", "autoscale", "resetscale"]},
        dragmode=False,
    )
    figure.update_yaxes(
        autorange="reversed", automargin=True, ticks="outside", ticklen=6, tickcolor="rgba(0,0,0,0)", fixedrange=True
    )
    figure.update_xaxes(
        title={"text": MEASURES[metric].name, "standoff": 6, "font": {"size": 12}},
        nticks=5,
        tickangle=0,
        gridcolor="rgba(128,128,128,0.25)",
        zerolinecolor="rgba(128,128,128,0.5)",
        automargin=True,
        fixedrange=True,
    )
    return figure


def _label(category: str) -> str:
    """A category beside its bars; what is long is broken, so that a phone has room for the bars."""
    if category == OVERALL:
        return "<b>overall</b>"
    name = escape(_name(category))
    return name if len(name) < 14 else name.replace(" ", "<br>")


def leaderboard_html(boards: Sequence[Board], names: dict[str, str]) -> str:
    """All runs' newest reports, best first; only what was scored on the same rows stands in one table."""
    if not boards:
        return "<p>No run has been evaluated yet.</p>"
    return "".join(_board(board, names) for board in boards)


def _board(board: Board, names: dict[str, str]) -> str:
    heads = ("", "run", "column", "loss", "change", "", "ROUGE-L", "change", "")
    numbers = ("loss", "change", "ROUGE-L")
    head = "".join(f'<th scope="col" class="{"number" if name in numbers else ""}">{name}</th>' for name in heads)
    rows = "".join(_standing(number, line, names) for number, line in enumerate(board.lines, 1))
    return (
        f'<h4>{escape(board.title)}</h4><div class="scroll" tabindex="0"><table class="plain">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _standing(number: int, line: Line, names: dict[str, str]) -> str:
    name = escape(names.get(line.run, line.run))
    cells = f'<td class="number">{number}</td><th scope="row" title="{escape(line.run)}">{name}</th>'
    cells += f"<td>{escape(names.get(line.column, line.column))}</td>"
    for s in (line.loss, line.rouge_l):
        if s is None:
            cells += '<td class="number">–</td><td></td><td></td>'
            continue
        kind = s.verdict if s.verdict in ("better", "worse") else "same"
        cells += f'<td class="number">{s.base:.3f} → {s.tuned:.3f}</td>'
        cells += f'<td class="number">[{s.low:+.3f}, {s.high:+.3f}]</td><td class="{kind}">{s.verdict}</td>'
    return f"<tr>{cells}</tr>"


def _name(category: str) -> str:
    return category.replace("_", " ")
