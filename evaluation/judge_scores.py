"""Judgements to preferences: win rate, sign test and position bias, overall and by category."""

from collections import Counter
from collections.abc import Sequence

from evaluation.findings import Judgement, Preference
from evaluation.report import OVERALL, Sample
from evaluation.stats import holm, share_interval, sign_test_p


def preferences(samples: Sequence[Sample], labels: Sequence[str]) -> list[Preference]:
    """A preference a column, over all samples first, then by category, p corrected over the categories."""
    found: list[Preference] = []
    for column in range(1, len(labels)):
        overall = preference(labels[column], OVERALL, [s.judgements[column - 1] for s in samples])
        categories = [
            preference(labels[column], name, [s.judgements[column - 1] for s in samples if s.category == name])
            for name in sorted({sample.category for sample in samples})
        ]
        corrected = holm([p.p for p in categories])
        found.append(overall)
        found += [p.model_copy(update={"p_holm": h}) for p, h in zip(categories, corrected, strict=True)]
    return found


def preference(column: str, category: str, judgements: Sequence[Judgement]) -> Preference:
    """What these judgements say together; shares and intervals are None where nothing was decided or chosen."""
    outcomes = Counter(judgement.outcome for judgement in judgements)
    wins, losses = outcomes["win"], outcomes["loss"]
    p = sign_test_p(wins, losses)
    share, first = (wins / (wins + losses) if wins + losses else None), first_share(judgements)
    low, high = share_interval(share, wins + losses) if share is not None else (None, None)
    first_low, first_high = share_interval(*first) if first else (None, None)
    return Preference(
        column=column,
        category=category,
        wins=wins,
        ties=outcomes["tie"],
        losses=losses,
        failed=outcomes["failed"],
        contradicted=sum(j.choices in (["first"] * 2, ["second"] * 2) for j in judgements),
        win_rate=share,
        low=low,
        high=high,
        p=p,
        p_holm=p,
        first_share=first[0] if first else None,
        first_low=first_low,
        first_high=first_high,
    )


def first_share(judgements: Sequence[Judgement]) -> tuple[float, int] | None:
    """Share of the choices that fell on what stood first, and on how many examples one was made; None where nowhere.

    Only examples with both replies count: with one order alone, preferring a column would look like a bias. The two
    choices of an example lean on each other, so its interval is that of a share of so many examples, not of twice as
    many choices; a judge that never contradicts itself has exactly one half.
    """
    chosen = [[c for c in j.choices if c in ("first", "second")] for j in judgements if j.choices and all(j.choices)]
    chosen = [choices for choices in chosen if choices]
    choices = [choice for both in chosen for choice in both]
    return (choices.count("first") / len(choices), len(chosen)) if choices else None
