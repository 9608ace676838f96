"""Votes counted: by hand, against a likelihood searched by brute force, and by how often an interval holds."""

import numpy as np
import pytest
from scipy.optimize import minimize

from evaluation.votes import PRIOR, Entrant, Vote, sign_test, strengths, vote_summary

BASE, TUNED, HALF = (
    Entrant(run, name, s, "m") for run, name, s in [(None, "base", 1), ("r", "tuned", 1), ("r", "tuned", 0.5)]
)


def cast(columns: tuple[Entrant, ...], *choices: str) -> list[Vote]:
    """Votes in which the sides stand as they are."""
    return [Vote(columns, tuple(range(len(columns))), choice) for choice in choices]


def test_two_columns_by_hand() -> None:
    """8 of 10: p = 2 (45 + 10 + 1) / 1024; the interval is the textbook's 44.4 % to 97.5 %."""
    votes = cast((BASE, TUNED), *"BBBBBBBBAA", "tie", "bad", "bad")
    # The same with the sides shuffled: what counts is what stood at the place.
    votes[0] = Vote((BASE, TUNED), (1, 0), "A")
    (pair,) = vote_summary(votes).pairs
    assert pair[:6] == (TUNED, BASE, 8, 2, 1, 2) and pair.share == 0.8
    assert pair.p == pytest.approx(112 / 1024)
    assert [pair.low, pair.high] == pytest.approx([0.4439, 0.9748], abs=1e-4)
    assert vote_summary(votes).votes == 13 and not vote_summary(votes).rankings


def test_few_votes_and_none() -> None:
    assert sign_test(0, 0) == (None, 0.0, 1.0, 1.0)
    share, low, high, p = sign_test(5, 0)  # all won: (0.025) ^ (1/5) is the lower end, and p = 2 / 32
    assert (share, high) == (1.0, 1.0) and low == pytest.approx(0.025 ** (1 / 5)) and p == pytest.approx(1 / 16)
    assert vote_summary([]) == (0, (), ())
    assert vote_summary(cast((BASE, BASE), "A", "tie")) == (2, (), ())  # the same twice says nothing


def test_strengths_are_the_likeliest() -> None:
    """Pairs and threes mixed, with the prior's own contests, against a general minimiser."""
    member = np.array([[1.0, 1, 0], [0, 1, 1], [1, 1, 1]])
    times, wins = np.array([10.0, 8, 9]), np.array([9.0, 12, 6])

    def surprise(logs: np.ndarray) -> float:
        each = wins @ logs - times @ np.log(member @ np.exp(logs))
        return -float(each + PRIOR * (0.5 * logs - np.log1p(np.exp(logs))).sum())

    np.testing.assert_allclose(strengths(member, times, wins), minimize(surprise, np.zeros(3)).x, atol=1e-3)


def test_a_winner_of_everything_stays_finite() -> None:
    summary = vote_summary(cast((BASE, TUNED, HALF), *"BBBBB") + cast((HALF, BASE), "A"))
    (ranking,) = summary.rankings
    assert ranking.reference == BASE and [rank.entrant for rank in ranking.ranks] == [TUNED, HALF, BASE]
    best = ranking.ranks[0]
    assert 0.8 < best.chance < 0.995 and best.low < best.chance - 0.05 and best.votes == 5
    assert ranking.ranks[-1].chance == ranking.ranks[-1].low == 0.5  # the reference against itself


def test_what_no_vote_connects_is_not_compared() -> None:
    others = tuple(Entrant("q", f"checkpoint-{i}", 1.0, "other") for i in range(3))
    votes = cast((BASE, TUNED, HALF), "A", "B") + cast(others, "C", "tie")
    summary = vote_summary(votes)
    assert [len(ranking.ranks) for ranking in summary.rankings] == [3, 3]
    assert summary.rankings[1].reference is None
    assert not any({pair.first, pair.second} & set(others) and pair.second == BASE for pair in summary.pairs)


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Votes drawn from known strengths: in about 95 of 100 such evenings the true chance lies in the interval."""
    generator, truth = np.random.default_rng(7), {BASE: 1.0, TUNED: 2.0, HALF: 1.3}
    held, evenings = 0, 120
    for evening in range(evenings):
        votes = []
        for columns in [(BASE, TUNED), (TUNED, HALF), (BASE, HALF), (BASE, TUNED, HALF)] * 12:
            weights = np.array([truth[entrant] for entrant in columns])
            votes += cast(columns, "ABC"[generator.choice(len(columns), p=weights / weights.sum())])
        ranks = {rank.entrant: rank for rank in vote_summary(votes, 200, evening).rankings[0].ranks}
        held += ranks[TUNED].low <= 2 / 3 <= ranks[TUNED].high
    assert 0.90 <= held / evenings <= 0.99
