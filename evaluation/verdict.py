"""The verdict in words, with "no detectable difference" as a result like any other."""

from collections.abc import Iterable, Sequence

from evaluation.measures import MEASURES
from evaluation.report import MIN_EXAMPLES, OVERALL, Score

WORDS = {
    "better": "better on",
    "worse": "worse on",
    "no detectable difference": "no detectable difference on",
    "too few to tell": "too few examples to tell on",
}
CATEGORY_METRICS = ("loss", "rouge_l", "exact_match")  # what the sentences on categories speak of
WORTH_NAMING = 2000  # a difference that takes more examples than this is as good as none


def verdict(scores: Sequence[Score]) -> str:
    """A few sentences: what is better and worse overall, in which categories, and what would settle the rest."""
    columns = dict.fromkeys(s.column for s in scores)
    return " ".join(_of_column(column, [s for s in scores if s.column == column]) for column in columns)


def _of_column(column: str, scores: Sequence[Score]) -> str:
    overall = [s for s in scores if s.category == OVERALL]
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
