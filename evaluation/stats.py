"""Is the difference real? Both columns answered the same examples, so they are compared example by example."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, norm, t

Values = NDArray[np.float64]
TIE = 1e-9  # two scores closer than this are equal
EXACT_UP_TO = 12  # examples up to which every way to flip the signs is tried


class Difference(NamedTuple):
    """Weighted mean of tuned minus that of base, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Tally(NamedTuple):
    """On how many examples tuned was better, equal, worse."""

    wins: int
    ties: int
    losses: int


def weighted_mean(values: Values, weights: Values) -> float:
    return float(np.average(values, weights=weights))


def paired_difference(base: Values, tuned: Values, weights: Values, resamples: int = 4000, seed: int = 0) -> Difference:
    """The paired bootstrap: examples are drawn, both their scores kept (Efron & Tibshirani 1993, ch. 13).

    The percentiles are the expanded ones of Hesterberg 2015 (doi 10.1080/00031305.2015.1089789, section 4.2): the plain
    2.5 and 97.5 are too narrow for few examples, by the factor that also tells Student's t from the normal.

    Args:
        base, tuned: a score an example, [examples].
        weights: how much an example counts, [examples]: its tokens for a mean over tokens, else 1.
        resamples: how many times a set of examples is drawn.
        seed: of the draws.

    Raises:
        ValueError: no examples, or not equally many scores.
    """
    _check(base, tuned, weights)
    n = len(base)
    counts = _draws(n, resamples, seed)
    means = (counts @ (weights * (tuned - base))) / (counts @ weights)
    tail = norm.cdf(t.ppf(0.025, n - 1) * np.sqrt(n / (n - 1))) if n > 1 else 0.0
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(weighted_mean(tuned - base, weights), float(low), float(high))


def permutation_p(base: Values, tuned: Values, weights: Values, flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p value of "which of the two said it makes no difference": each pair's sign is flipped at random.

    The paired sign-flip permutation test (Fisher 1935; Good 2005, "Permutation, Parametric and Bootstrap Tests of
    Hypotheses", section 3.2). All 2^n flips for few examples; else random ones, with the identity counted among them,
    p = (1 + as extreme) / (1 + flips), so that p is never 0 (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585).

    Args:
        base, tuned, weights: as in `paired_difference`.
        flips: random ways to flip the signs, where not all of them are tried.
        seed: of the random flips.

    Raises:
        ValueError: as in `paired_difference`.
    """
    _check(base, tuned, weights)
    terms = weights * (tuned - base)
    n = len(terms)
    # A hair below, so that a flip that gives the same sum in another order of rounding counts as as extreme.
    observed = abs(terms.sum()) - 1e-12 * np.abs(terms).sum()
    if n <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ terms) >= observed))
    generator = np.random.default_rng(seed)
    extreme, done = 0, 0
    while done < flips:
        rows = min(flips - done, max(1, 4_000_000 // n))
        signs = 1.0 - 2.0 * generator.integers(0, 2, (rows, n), dtype=np.int8)
        extreme += int((np.abs(signs @ terms) >= observed).sum())
        done += rows
    return (1 + extreme) / (1 + flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for how many they are, in the order given (Holm 1979, "A simple sequentially rejective multiple
    test procedure"): the smallest is multiplied by m, the next by m - 1, …, none below the one before, none above 1."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def tally(base: Values, tuned: Values, higher_is_better: bool) -> Tally:
    """Wins, ties and losses of tuned."""
    better = (tuned - base) if higher_is_better else (base - tuned)
    wins, losses = int((better > TIE).sum()), int((better < -TIE).sum())
    return Tally(wins, len(better) - wins - losses, losses)


def sign_test_p(wins: int, losses: int) -> float:
    """Two-sided exact p value of "each decided example goes either way with equal chance" (Arbuthnott 1710; Conover
    1999, "Practical Nonparametric Statistics", section 3.4). Ties say nothing and are left out; 1 without any example.
    """
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def share_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n, by the binomial's own tails (Clopper & Pearson 1934, doi 10.1093/biomet/26.4.404).

    It leaves out 0.5 exactly where the sign test has p < 5 %: the two never contradict each other.
    """
    hits = share * n
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def further_examples(base: Values, tuned: Values, weights: Values) -> int | None:
    """About how many more examples would settle the sign of a difference as large as the one now seen.

    The normal 95 % interval of a mean has half-width 1.96 sd / sqrt(n) (Cochran 1977, "Sampling Techniques", 4.6); it
    leaves out 0 once n > (1.96 sd / mean)^2. For a weighted mean, sd is that of w (d - mean) / mean(w), the linearised
    ratio estimator (Cochran 1977, 6.4). An estimate from the data at hand: the difference may turn out smaller.

    Returns:
        0 where it is settled by this rule; None where there is no difference to settle, or fewer than two examples.

    Raises:
        ValueError: as in `paired_difference`.
    """
    _check(base, tuned, weights)
    mean = weighted_mean(tuned - base, weights)
    if len(base) < 2 or abs(mean) < TIE:
        return None
    spread = float(np.std(weights * (tuned - base - mean) / weights.mean(), ddof=1))
    needed = math.floor((1.96 * spread / mean) ** 2) + 1
    return max(0, needed - len(base))


@lru_cache(maxsize=1)
def _draws(n: int, resamples: int, seed: int) -> Values:
    """How often each of n examples is drawn, [resamples, n]: the same for every metric on the same examples."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _check(base: Values, tuned: Values, weights: Values) -> None:
    if not len(base) or not len(base) == len(tuned) == len(weights):
        raise ValueError("A paired comparison needs the same examples, at least one, on both sides.")
