"""The verdict in words, with "no detectable difference" as a result like any other."""

from collections.abc import Iterable, Sequence

from evaluation.findings import Departure, JudgeReport, Preference, ProbeReport
from evaluation.measures import MEASURES
from evaluation.report import MIN_EXAMPLES, OVERALL, SIGNIFICANT, Score

WORDS = {
    "better": "better on",
    "worse": "worse on",
    "no detectable difference": "no detectable difference on",
    "too few to tell": "too few examples to tell on",
}
CATEGORY_METRICS = ("loss", "rouge_l", "exact_match")  # what the sentences on categories speak of
WORTH_NAMING = 2000  # a difference that takes more examples than this is as good as none


def verdict(
    scores: Sequence[Score], judge: JudgeReport | None = None, probe: ProbeReport | None = None, first: str = "base"
) -> str:
    """A few sentences: what is better and worse overall, in which categories, what would settle the rest; then what
    the judge prefers, and how far each column is from the first one (named `first`) elsewhere."""
    columns = dict.fromkeys(s.column for s in scores)
    own = [s for s in scores if MEASURES[s.metric].source != "judge"]
    sentences = [_of_column(column, [s for s in own if s.column == column]) for column in columns]
    if judge:
        sentences += [judge_sentence(judge.judge, p, first) for p in judge.preferences if p.category == OVERALL]
    if probe:
        sentences += [probe_sentence(d, first) for d in probe.departures if d.kind == OVERALL]
    return " ".join(filter(None, sentences))


def judge_sentence(judge: str, p: Preference, first: str) -> str:
    """Whom the judge prefers, how surely, and how far it can be trusted."""
    if p.win_rate is None or p.low is None or p.high is None:
        start = f"The judge {judge} decided on no example for or against {p.column} ({_ties(p)})"
    else:
        test = f"sign test p {'< 0.001' if p.p < 0.001 else f'= {p.p:.3f}'}"
        test += "" if p.p < SIGNIFICANT else ", no detectable preference"
        start = (
            f"The judge {judge} preferred {p.column} to {first} in {100 * p.win_rate:.0f} % of the {p.decided} examples"
            f" that it decided (95 % interval {100 * p.low:.0f} to {100 * p.high:.0f} %, {test}; {_ties(p)})"
        )
    if p.first_share is None or p.first_low is None or p.first_high is None:
        return f"{start}."
    side = "what stands first" if p.bias_points >= 0 else "what stands second"
    found = f"{abs(p.bias_points):.0f} points for {side}" if round(p.bias_points) else "none"
    within = f"95 % interval {100 * p.first_low:.0f} to {100 * p.first_high:.0f} %"
    return f"{start}; position bias: {found} (it chose the first in {100 * p.first_share:.0f} %, {within})."


def probe_sentence(d: Departure, first: str) -> str:
    """How far a column departs from the first one where nobody instructed it."""
    change = d.loss_change
    if d.loss_low <= 0 <= d.loss_high:
        loss = f"its loss there did not change detectably ({change:+.3f}"
    else:
        loss = f"its loss there {'rose' if change > 0 else 'fell'} by {abs(change):.3f} ("
        loss += f"{d.loss_base:.3f} → {d.loss_column:.3f}"
    return (
        f"On text that is no instruction, {d.column} departs from {first} by {d.kl:.3f} nats a token "
        f"(95 % interval {d.kl_low:.3f} to {d.kl_high:.3f}, 99th percentile {d.kl_p99:.2f}); {loss}, 95 % interval of "
        f"the change {d.loss_low:+.3f} to {d.loss_high:+.3f})."
    )


def _ties(p: Preference) -> str:
    failed = f", {p.failed} without a reply" if p.failed else ""
    turned = f", {p.contradicted} of them because it chose otherwise in the other order" if p.contradicted else ""
    return f"{p.ties} ties{turned}{failed}"


def _of_column(column: str, scores: Sequence[Score]) -> str:
    overall = [s for s in scores if s.category == OVERALL]
    if not overall:
        return ""
    spoken = [s for s in overall if MEASURES[s.metric].headline] or overall
    by_verdict: dict[str, list[str]] = {}
    for s in spoken:
        by_verdict.setdefault(s.verdict, []).append(_with_figures(s) if s.metric in ("loss", "rouge_l") else _name(s))
    parts = [f"{words} {_list(by_verdict[v])}" for v, words in WORDS.items() if v in by_verdict]
    is_told = "better" in by_verdict or "worse" in by_verdict
    first = f"{column} is {'; '.join(parts)}." if is_told else f"{'; '.join(parts)}."
    if not is_told and column != "tuned":
        first = f"{column}: {first}"
    return " ".join([first[:1].upper() + first[1:], *_by_category(scores), *_what_would_settle(scores)])


def _by_category(scores: Sequence[Score]) -> list[str]:
    """Where it is clearly better or worse, category by category."""
    found: list[str] = []
    for verdict_word in ("better", "worse"):
        for metric in CATEGORY_METRICS:
            names = [
                s.category.replace("_", " ")
                for s in scores
                if s.metric == metric and s.category != OVERALL and s.verdict == verdict_word
            ]
            if names:
                found.append(f"{verdict_word} on {MEASURES[metric].name} in {_list(names)}")
    return [f"By category: {'; '.join(found)}."] if found else []


def _what_would_settle(scores: Sequence[Score]) -> list[str]:
    """The undecided differences that a few more examples may decide, the nearest first."""
    near = [
        s
        for s in scores
        if s.metric in CATEGORY_METRICS
        and s.verdict == "no detectable difference"
        and s.examples >= MIN_EXAMPLES
        and s.further_examples
        and s.further_examples <= WORTH_NAMING
    ]
    near.sort(key=lambda s: (s.category != OVERALL, s.further_examples or 0))
    told = [
        f"{s.further_examples} more examples would settle {_name(s)}"
        + ("" if s.category == OVERALL else f" in {s.category.replace('_', ' ')}")
        for s in near[:2]
    ]
    return [f"About {_list(told)}, if it stays as large as it looks now."] if told else []


def _with_figures(s: Score) -> str:
    return f"{_name(s)} ({s.base:.3f} → {s.tuned:.3f}, 95 % interval of the change {s.low:+.3f} to {s.high:+.3f})"


def _name(s: Score) -> str:
    return MEASURES[s.metric].name


def _list(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *before, last = list(names)
    return f"{', '.join(before)} and {last}" if before else last
