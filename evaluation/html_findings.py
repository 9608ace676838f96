"""The judge's and the probe's parts of report.html."""

from collections.abc import Iterable, Sequence
from html import escape

from evaluation.findings import Departure, JudgeReport, Preference, ProbeReport
from evaluation.report import OVERALL, Sample
from evaluation.verdict import judge_sentence, probe_sentence

OUTCOMES = {"win": "better", "loss": "worse", "tie": "a tie", "failed": "no clear reply"}


def judge_section(report: JudgeReport, first: str) -> str:
    """Who won how often, by category, and what the judging took."""
    sentences = [judge_sentence(report.judge, p, first) for p in report.preferences if p.category == OVERALL]
    head = ("category", "column", "wins", "ties", "losses", "failed", "win rate", "p (Holm)", "first chosen")
    rows = [_preference(p) for p in report.preferences]
    return "\n".join(
        [
            "<h2>The judge</h2>",
            *(f"<p>{escape(sentence)}</p>" for sentence in sentences),
            '<p class="soft">Both orders are asked: a win is what both agree on, a contradiction is a tie. Win rate: '
            "wins among what was decided, with its 95 % interval (Clopper & Pearson). p: sign test over what was "
            "decided, Holm-corrected over the categories. First chosen: 50 % is no position bias.</p>",
            html_table(head, rows, numbers_from=2),
            f'<p class="soft">{escape(_took(report))}</p>',
        ]
    )


def probe_section(report: ProbeReport, first: str) -> str:
    """How far each column is from the first one on text that is no instruction, by kind of text."""
    sentences = [probe_sentence(d, first) for d in report.departures if d.kind == OVERALL]
    head = ("text", "column", "passages", "tokens", "KL, nats a token", "99th percentile", "loss", "change of the loss")
    return "\n".join(
        [
            "<h2>Text that is no instruction</h2>",
            *(f"<p>{escape(sentence)}</p>" for sentence in sentences),
            f'<p class="soft">{escape(report.text)}. KL({escape(first)}‖column) of the next-token distributions; '
            "intervals by bootstrap over the passages.</p>",
            html_table(head, [_departure(d) for d in report.departures], numbers_from=2),
        ]
    )


def html_table(head: Iterable[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    """A table, everything escaped; the cells from that one on are numbers."""
    body = []
    for row in rows:
        kinds = ["number" if at >= numbers_from else "" for at in range(len(row))]
        cells = [f'<td class="{kind}">{escape(text)}</td>' for kind, text in zip(kinds, row, strict=True)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    names = "".join(
        f'<th class="{"number" if at >= numbers_from else ""}">{escape(name)}</th>' for at, name in enumerate(head)
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def judged_texts(sample: Sample, columns: Sequence[str]) -> list[tuple[str, str]]:
    """(heading, text) of what the judge made of an example: whom it chose in each order, and why."""
    found = []
    for label, judgement in zip(columns[1:], sample.judgements, strict=False):
        orders = ((columns[0], label), (label, columns[0]))
        replies = []
        for (first, second), choice, reason in zip(orders, judgement.choices, judgement.reasons, strict=False):
            chosen = {"first": first, "second": second, "tie": "neither", "": "no clear reply"}[choice]
            replies.append(f"{first} first: {chosen}" + (f"\n{reason}" if reason else ""))
        heading = f"the judge on {label}: {OUTCOMES[judgement.outcome]}"
        found.append((heading, "\n\n".join(replies) or "the same answer: not asked"))
    return found


def _preference(p: Preference) -> list[str]:
    counts = [str(value) for value in (p.wins, p.ties, p.losses, p.failed)]
    return [_name(p.category), p.column, *counts, _share(p.win_rate, p.low, p.high), f"{p.p_holm:.4f}", _first(p)]


def _first(p: Preference) -> str:
    return _share(p.first_share, p.first_low, p.first_high)


def _share(share: float | None, low: float | None, high: float | None) -> str:
    if share is None or low is None or high is None:
        return ""
    return f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _departure(d: Departure) -> list[str]:
    loss = f"{d.loss_base:.3f} → {d.loss_column:.3f}"
    change = f"{d.loss_change:+.3f} [{d.loss_low:+.3f}, {d.loss_high:+.3f}]"
    kl = f"{d.kl:.4f} [{d.kl_low:.4f}, {d.kl_high:.4f}]"
    return [_name(d.kind), d.column, str(d.passages), str(d.tokens), kl, f"{d.kl_p99:.3f}", loss, change]


def _took(report: JudgeReport) -> str:
    counts = report.counts
    parts = [f"{report.judge} at {report.address}" if report.address else f"{report.judge}, on this machine"]
    parts.append(f"prompt {report.prompt}" + (", the reference shown" if report.with_reference else ""))
    parts.append(f"{counts.calls} calls ({counts.retries} of them retries), {counts.from_cache} replies from the cache")
    parts.append(f"{counts.malformed} malformed replies, {counts.failed} questions failed")
    parts.append(f"{counts.prompt_tokens} prompt and {counts.completion_tokens} completion tokens")
    parts += [f"cost {report.cost:.4f}"] if report.cost is not None else []
    return " · ".join([*parts, f"{counts.seconds:.0f} s"])


def _name(category: str) -> str:
    return "overall" if category == OVERALL else category.replace("_", " ")
