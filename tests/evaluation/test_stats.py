"""Statistics against simulated truth."""

import numpy as np
import pytest

from evaluation.stats import (
    further_examples,
    holm,
    paired_difference,
    permutation_p,
    share_interval,
    sign_test_p,
    tally,
)


def test_intervals_cover_a_known_difference() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for experiment in range(500):
        base = generator.normal(2.5, 1.0, 100)
        tuned = base - 0.1 + generator.normal(0, 0.5, 100)
        difference = paired_difference(base, tuned, np.ones(100), resamples=1000, seed=experiment)
        covered += difference.low <= -0.1 <= difference.high
    assert 0.92 <= covered / 500 <= 0.98


def test_intervals_cover_where_examples_weigh_differently() -> None:
    """Weighted by tokens, as the loss is; a longer response has the smaller difference, so the weights matter."""
    generator = np.random.default_rng(3)
    covered, n = 0, 80
    big = np.random.default_rng(9)
    tokens = big.lognormal(4, 0.8, 400_000)
    truth = float(np.average(-10 / tokens, weights=tokens))
    for experiment in range(500):
        weights = generator.lognormal(4, 0.8, n)
        difference = -10 / weights + generator.normal(0, 0.3, n)
        found = paired_difference(np.zeros(n), difference, weights, resamples=1000, seed=experiment)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 500 <= 0.98


@pytest.mark.parametrize("n", [10, 60])  # every flip, and random ones
def test_the_permutation_test_is_wrong_as_often_as_it_says(n: int) -> None:
    """No difference in truth, 2,000 experiments: p < 5 % in 3 % to 7 % of them, also where examples weigh unequally."""
    generator = np.random.default_rng(4)
    wrong = 0
    for experiment in range(2000):
        base = generator.normal(2.5, 1.0, n)
        tuned = base + generator.normal(0, 0.5, n)
        weights = generator.lognormal(4, 0.8, n)
        wrong += permutation_p(base, tuned, weights, flips=999, seed=experiment) < 0.05
    assert 0.03 <= wrong / 2000 <= 0.07


def test_the_permutation_test_sees_a_difference() -> None:
    generator = np.random.default_rng(5)
    base = generator.normal(2.5, 1.0, 60)
    tuned = base - 0.3 + generator.normal(0, 0.5, 60)
    assert permutation_p(base, tuned, np.ones(60)) < 0.01
    assert permutation_p(base, base, np.ones(60)) == 1.0


def test_the_exact_test_by_hand() -> None:
    """Six pairs, all better by one: only the two flips to one side are as extreme, 2 of 64."""
    assert permutation_p(np.zeros(6), np.ones(6), np.ones(6)) == pytest.approx(2 / 64)


def test_pairing_sees_what_separate_error_bars_can_not() -> None:
    generator = np.random.default_rng(1)
    base = generator.normal(2.5, 1.0, 60)
    tuned = base - 0.05 + generator.normal(0, 0.02, 60)
    assert paired_difference(base, tuned, np.ones(60)).high < 0
    assert permutation_p(base, tuned, np.ones(60)) < 0.001
    assert 1.96 * base.std() / np.sqrt(60) > 0.2  # the bars of either side alone are wider than the gap by far


def test_weights_make_it_a_mean_over_tokens() -> None:
    base, tuned = np.array([1.0, 2.0]), np.array([0.0, 2.0])
    assert paired_difference(base, tuned, np.array([3.0, 1.0])).mean == pytest.approx(-0.75)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_wins_ties_losses() -> None:
    base, tuned = np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.0, 1.0, 0.0, 0.5])
    assert tally(base, tuned, higher_is_better=True) == (1, 1, 2)
    assert tally(base, tuned, higher_is_better=False) == (2, 1, 1)


def test_the_further_examples_do_settle_it() -> None:
    """With as many examples more as it says, an interval leaves out 0 in about half of the experiments, as it must at
    the border; with a quarter of them in far fewer, with four times as many in nearly all."""
    generator = np.random.default_rng(6)
    mean, spread = 0.1, 0.5
    pilot = np.tile([mean - spread, mean + spread], 25)
    more = further_examples(np.zeros(50), pilot, np.ones(50))
    assert more is not None and more + 50 == pytest.approx((1.96 * spread / mean) ** 2, rel=0.05)

    def settled(n: int) -> float:
        draws = generator.normal(mean, spread, (400, n))
        return float((np.abs(draws.mean(1)) > 1.96 * draws.std(1, ddof=1) / np.sqrt(n)).mean())

    assert settled((more + 50) // 4) < 0.3 < 0.4 < settled(more + 50) < 0.6 < 0.95 < settled(4 * (more + 50))


def test_no_difference_is_never_settled() -> None:
    assert further_examples(np.zeros(4), np.zeros(4), np.ones(4)) is None
    assert further_examples(np.zeros(40), np.ones(40), np.ones(40)) == 0


def test_the_sign_test_and_the_interval_of_a_share_never_disagree() -> None:
    assert sign_test_p(0, 0) == 1.0 and sign_test_p(5, 0) == pytest.approx(2 * 0.5**5)
    assert share_interval(0.0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    for n in range(1, 60):
        for wins in range(n + 1):
            low, high = share_interval(wins / n, n)
            assert low <= wins / n <= high and (low > 0.5 or high < 0.5) == (sign_test_p(wins, n - wins) < 0.05)
