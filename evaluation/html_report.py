"""report.html: the whole of a report in one file. No script, nothing from elsewhere, every text escaped."""

from collections.abc import Sequence
from html import escape

from evaluation.html_findings import judge_section, judged_texts, probe_section
from evaluation.measures import MEASURES
from evaluation.report import OVERALL, EvalReport, Sample, Score, table

SHOWN_SAMPLES = 200
WIDTH, LABELS, ROW = 640, 170, 26  # pixels of a plot: whole, its labels, one line

STYLE = """
:root { color-scheme: light dark; --text: #1c2330; --soft: #5b6675; --back: #fff; --line: #d9dee6; --base: #6b7a90;
  --good: #1a7f4b; --bad: #c0392b; --none: #6b7a90; }
@media (prefers-color-scheme: dark) { :root { --text: #e7ebf0; --soft: #9aa6b5; --back: #14181f; --line: #313946;
  --base: #93a1b5; --good: #4cc38a; --bad: #ff7b6b; --none: #93a1b5; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
.verdict { font-size: 1.15rem; border-left: 4px solid var(--base); padding-left: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th.number, td.number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.better { color: var(--good); } .worse { color: var(--bad); } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 24rem; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; } svg .axis { stroke: var(--line); }
svg .mark { stroke: var(--none); fill: var(--none); stroke-width: 2; }
svg .mark.better { stroke: var(--good); fill: var(--good); } svg .mark.worse { stroke: var(--bad); fill: var(--bad); }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; font: 13px/1.45 ui-monospace, monospace; }
.soft { color: var(--soft); }
"""


def html_report(report: EvalReport, samples: Sequence[Sample]) -> str:
    """The page, whole. Everything that a person, a row or a model wrote is escaped."""
    title = f"Evaluation of {report.run}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        "".join(f"<p>{escape(note)}</p>" for note in report.notes),
        _plots(report.scores),
        "<h2>Scores</h2>",
        '<p class="soft">Change: paired by example, with its 95 % bootstrap interval. p: paired sign-flip permutation '
        "test, Holm-corrected over the categories.</p>",
        _score_table(report.scores),
        judge_section(report.judge, report.columns[0]) if report.judge else "",
        probe_section(report.probe, report.columns[0]) if report.probe else "",
        "<h2>What was compared</h2>",
        _facts(report),
        f"<h2>Examples</h2>{_examples(report, samples)}",
        "</body></html>",
    ]
    return "\n".join(parts)


def _plots(scores: Sequence[Score]) -> str:
    figures = []
    for column in dict.fromkeys(s.column for s in scores):
        for key, measure in MEASURES.items():
            chosen = [s for s in scores if s.metric == key and s.column == column]
            if chosen and measure.headline:
                better = {True: "higher is better", False: "lower is better", None: ""}[measure.higher_is_better]
                caption = escape(f"{measure.name}, change of {column} ({better})")
                figures.append(f"<figure><figcaption>{caption}</figcaption>{whiskers(chosen)}</figure>")
    return f'<h2>Change by category</h2><div class="plots">{"".join(figures)}</div>'


def whiskers(scores: Sequence[Score]) -> str:
    """An SVG with a line a category: the change, its 95 % interval, and where no change would be."""
    low, high = min(0.0, *(s.low for s in scores)), max(0.0, *(s.high for s in scores))
    span = (high - low) or 1.0
    low, span = low - 0.05 * span, 1.1 * span

    def x(value: float) -> float:
        return round(LABELS + (value - low) / span * (WIDTH - LABELS - 10), 1)

    height = ROW * (len(scores) + 1)
    parts = [f'<line class="axis" x1="{x(0)}" x2="{x(0)}" y1="4" y2="{height - ROW}"/>']
    for at, s in enumerate(scores):
        y = ROW * at + ROW / 2 + 4
        name = escape("overall" if s.category == OVERALL else s.category.replace("_", " "))
        kind = s.verdict if s.verdict in ("better", "worse") else ""
        parts.append(
            f'<text x="0" y="{y + 4}">{name} ({s.examples})</text>'
            f'<g class="mark {kind}"><title>{s.difference:+.4f} [{s.low:+.4f}, {s.high:+.4f}], {s.verdict}</title>'
            f'<line x1="{x(s.low)}" x2="{x(s.high)}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{x(s.difference)}" cy="{y}" r="4"/></g>'
        )
    parts += [
        f'<text x="{x(value)}" y="{height - 6}" text-anchor="middle">{value:+.3g}</text>'
        for value in sorted({min(s.low for s in scores), 0.0, max(s.high for s in scores)})
    ]
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _score_table(scores: Sequence[Score]) -> str:
    rows = table(scores)
    if not rows:
        return ""
    head = "".join(f'<th class="{_cell_kind(name, "")}">{escape(name)}</th>' for name in rows[0])
    body = []
    for row in rows:
        kinds = [_cell_kind(name, str(row["verdict"])) for name in row]
        cells = [f'<td class="{kind}">{escape(str(v))}</td>' for kind, v in zip(kinds, row.values(), strict=True)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell_kind(name: str, verdict: str) -> str:
    if name == "verdict":
        return verdict if verdict in ("better", "worse") else ""
    return "" if name in ("category", "metric", "column") else "number"


def _facts(report: EvalReport) -> str:
    shown = report.model_dump(exclude={"scores", "verdict", "notes", "columns", "column_facts", "judge", "probe"})
    for column in report.column_facts:
        shown[f"column {column.label}"] = column.model_dump(exclude={"label"})
    lines = [
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(_in_words(value))}</td></tr>"
        for name, value in shown.items()
    ]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(part)}" for name, part in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _examples(report: EvalReport, samples: Sequence[Sample]) -> str:
    more = len(samples) - SHOWN_SAMPLES
    told = f'<p class="soft">The first {SHOWN_SAMPLES}; {more} more are in samples.csv.</p>' if more > 0 else ""
    return told + "".join(_example(report, sample) for sample in samples[:SHOWN_SAMPLES])


def _example(report: EvalReport, s: Sample) -> str:
    flag = f" · trained on ({s.leak})" if s.leak else ""
    head = escape(f"{s.category}{flag}: {s.instruction[:120]}")
    texts = [("prompt", f"{s.instruction}\n\n{s.context}".strip()), ("reference", s.reference)]
    texts += [(f"{label}, {stop}", a) for label, stop, a in zip(report.columns, s.stops, s.answers, strict=False)]
    texts += judged_texts(s, report.columns)
    figures = [f"{MEASURES[key].name} {' | '.join(f'{v:.3f}' for v in values)}" for key, values in s.values.items()]
    body = "".join(f'<div class="soft">{escape(name)}</div><pre>{escape(text)}</pre>' for name, text in texts)
    return f'<details><summary>{head}</summary>{body}<p class="soft">{escape(" · ".join(figures))}</p></details>'
