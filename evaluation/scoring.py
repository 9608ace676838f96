"""Samples to scores: every measure, overall and by category, each column against the first, with what is sure of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evaluation.measures import MEASURES, Measure
from evaluation.report import OVERALL, Sample, Score
from evaluation.stats import (
    Values,
    further_examples,
    holm,
    paired_difference,
    permutation_p,
    sign_test_p,
    tally,
    weighted_mean,
)

CORPUS = ("bleu", "chrf")


class _Paired(NamedTuple):
    """Scores of two columns on the same examples and how much an example counts, each [examples]."""

    base: Values
    tuned: Values
    weights: Values


def score(samples: Sequence[Sample], labels: Sequence[str] = ("base", "tuned"), seed: int = 0) -> list[Score]:
    """Every measure that the samples have: over all of them first, then by category, p corrected over the categories.

    Args:
        samples: examples with their values under every column.
        labels: the columns; each but the first is compared with the first.
        seed: of the bootstrap and the permutation test.
    """
    categories = [OVERALL, *sorted({sample.category for sample in samples})]
    scores = []
    for category in categories:
        chosen = [s for s in samples if category in (OVERALL, s.category)]
        for column in range(1, len(labels)):
            for measure in MEASURES.values():
                there = [s for s in chosen if measure.key in s.values]
                if there:
                    scores.append(_score(measure, category, there, column, labels[column], seed))
    return _corrected(scores)


def _score(measure: Measure, category: str, samples: Sequence[Sample], column: int, label: str, seed: int) -> Score:
    base, tuned, weights = pairs = _paired(measure, samples, column)
    difference = paired_difference(*pairs, seed=seed)
    better = measure.higher_is_better
    counted = tally(base, tuned, better)._asdict() if better is not None else {}
    if measure.source == "judge":  # signs alone: the permutation test has an exact form
        p = sign_test_p(counted["wins"], counted["losses"])
    else:
        p = permutation_p(*pairs, seed=seed)
    return Score(
        metric=measure.key,
        category=category,
        column=label,
        examples=len(samples),
        base=weighted_mean(base, weights),
        tuned=weighted_mean(tuned, weights),
        difference=difference.mean,
        low=difference.low,
        high=difference.high,
        higher_is_better=better,
        p=p,
        p_holm=p,
        further_examples=further_examples(*pairs),
        **counted,
        **_corpus(measure, samples, column),
    )


def _paired(measure: Measure, samples: Sequence[Sample], column: int) -> _Paired:
    values = np.array([s.values[measure.key] for s in samples], dtype=np.float64)
    counts = {
        "examples": [1] * len(samples),
        "tokens": [s.tokens for s in samples],
        "bytes": [s.bytes for s in samples],
    }
    return _Paired(values[:, 0], values[:, column], np.array(counts[measure.weight], dtype=np.float64))


def _corpus(measure: Measure, samples: Sequence[Sample], column: int) -> dict[str, float]:
    if measure.key not in CORPUS:
        return {}
    from evaluation.metrics import corpus_scores

    references = [s.reference for s in samples]
    values = [corpus_scores([s.answers[i] for s in samples], references)[measure.key] for i in (0, column)]
    return {"corpus_base": values[0], "corpus_tuned": values[1]}


def _corrected(scores: Sequence[Score]) -> list[Score]:
    """Holm's correction within each measure and column, over the categories; the overall score stands by itself."""
    families: dict[tuple[str, str], list[int]] = {}
    for at, s in enumerate(scores):
        if s.category != OVERALL:
            families.setdefault((s.metric, s.column), []).append(at)
    corrected = list(scores)
    for members in families.values():
        for at, p in zip(members, holm([scores[i].p or 0.0 for i in members]), strict=True):
            corrected[at] = scores[at].model_copy(update={"p_holm": p})
    return corrected
