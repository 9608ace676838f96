"""Blind votes counted: pairs by an exact sign test, many columns by a Bradley–Terry fit, each with its interval."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Values = NDArray[np.float64]
LETTERS = "ABCD"
TIE, BAD = "tie", "bad"
PRIOR = 0.5  # contests of each entrant with one of average strength, half of them won: keeps the fit finite
ROUNDS = 500  # of the fit, at most
CLOSE = 1e-6  # in log-strength: the fit has settled


class Entrant(NamedTuple):
    """What stood in a column. The base has no run, so it is known by its model."""

    run: str | None
    name: str
    strength: float
    model: str


class Vote(NamedTuple):
    """One blind vote on the answers to one prompt.

    Attributes:
        columns: what was compared.
        order: which column stood where: place i showed column order[i].
        choice: the place that was chosen ("A" is the first), "tie", or "bad" where none was good.
        conversation, exchange: what was voted on.
        time: when, seconds since 1970.
        owner: whose vote it is.
    """

    columns: tuple[Entrant, ...]
    order: tuple[int, ...]
    choice: str
    conversation: str = ""
    exchange: int = 0
    time: float = 0.0
    owner: str = ""

    @property
    def winner(self) -> Entrant | None:
        """What was chosen; None for "tie" and "bad"."""
        return None if self.choice in (TIE, BAD) else self.columns[self.order[LETTERS.index(self.choice)]]


class Pair(NamedTuple):
    """Votes that say something on two entrants.

    Attributes:
        wins, losses, ties, bad: of `first` over `second`.
        share: of the decided votes that `first` won, with `low` and `high`; None where none is decided.
        p: two-sided, of "which one is chosen is a coin's throw".
    """

    first: Entrant
    second: Entrant
    wins: int
    losses: int
    ties: int
    bad: int
    share: float | None
    low: float
    high: float
    p: float


class Rank(NamedTuple):
    """An entrant's place: its chance to be chosen over the reference, with its 95 % interval, and its votes."""

    entrant: Entrant
    chance: float
    low: float
    high: float
    votes: int


class Ranking(NamedTuple):
    """Entrants that votes connect, best first, held against `reference` (None: against one of average strength)."""

    reference: Entrant | None
    ranks: tuple[Rank, ...]


class VoteSummary(NamedTuple):
    """How many votes, each pair that met (most decided first), a ranking of each group of three or more."""

    votes: int
    pairs: tuple[Pair, ...]
    rankings: tuple[Ranking, ...]


def vote_summary(votes: Sequence[Vote], resamples: int = 400, seed: int = 0) -> VoteSummary:
    """What the votes say. A vote on the same thing in two columns says nothing and is left out.

    Args:
        votes: in any order.
        resamples, seed: of the rankings' intervals.
    """
    telling = [vote for vote in votes if len(set(vote.columns)) == len(vote.columns) > 1]
    met = dict.fromkeys(pair for vote in telling for pair in combinations(sorted(vote.columns, key=_base_last), 2))
    pairs = [_pair(first, second, telling) for first, second in met]
    pairs.sort(key=lambda pair: -(pair.wins + pair.losses))
    rankings = [_ranking(group, telling, resamples, seed) for group in _connected(telling) if len(group) > 2]
    return VoteSummary(len(votes), tuple(pairs), tuple(rankings))


def sign_test(wins: int, losses: int) -> tuple[float | None, float, float, float]:
    """(share, low, high, p) of wins among the decided votes.

    The interval is the exact one of Clopper & Pearson 1934 (doi 10.1093/biomet/26.4.404), p the exact two-sided sign
    test (Dixon & Mood 1946, doi 10.1080/01621459.1946.10501898): ties say nothing on the direction and are left out.
    """
    decided = wins + losses
    if not decided:
        return None, 0.0, 1.0, 1.0
    test = binomtest(wins, decided)
    interval = test.proportion_ci(0.95, "exact")
    return wins / decided, float(interval.low), float(interval.high), float(test.pvalue)


def strengths(member: Values, won: Values, weights: Values) -> Values:
    """Log-strengths under which the choices are likeliest, [sets, entrants].

    P(i is chosen among S) = w_i / sum of w over S: Bradley & Terry 1952 (doi 10.2307/2334029) for pairs, Luce 1959 for
    more. Found by the MM iteration of Hunter 2004 (doi 10.1214/aos/1079120141), in which PRIOR contests with an
    entrant of strength 1 keep a winner of everything finite (a gamma prior, as in Caron & Doucet 2012).

    Args:
        member: 1 where an entrant stands in a contest, [contests, entrants].
        won: the share of a contest that an entrant won, [sets, contests, entrants] or without sets.
        weights: how often a contest took place, [contests].
    """
    wins = (won * weights[:, None]).sum(-2)
    logs = np.zeros_like(wins)
    for _ in range(ROUNDS):
        strength = np.exp(logs)
        faced = (weights / (strength @ member.T)) @ member + PRIOR / (strength + 1)
        settled, logs = logs, np.log((wins + PRIOR / 2) / faced)
        if np.abs(logs - settled).max() < CLOSE:
            break
    return logs


def _pair(first: Entrant, second: Entrant, votes: Iterable[Vote]) -> Pair:
    both = [vote for vote in votes if first in vote.columns and second in vote.columns]
    wins, losses = (sum(vote.winner == entrant for vote in both) for entrant in (first, second))
    ties, bad = (sum(vote.choice == choice for vote in both) for choice in (TIE, BAD))
    return Pair(first, second, wins, losses, ties, bad, *sign_test(wins, losses))


def _ranking(group: list[Entrant], votes: Sequence[Vote], resamples: int, seed: int) -> Ranking:
    """The fit and its interval by the parametric bootstrap (Efron & Tibshirani 1993, section 6.5): each decided vote is
    cast again by the fitted strengths. Drawing the votes themselves again would find no doubt in five wins of five.
    A tie counts as an equal share for each, and stays one."""
    at = {entrant: i for i, entrant in enumerate(group)}
    votes = [vote for vote in votes if vote.columns[0] in at]
    member, won = np.zeros((len(votes), len(group))), np.zeros((len(votes), len(group)))
    for row, vote in enumerate(votes):
        member[row, [at[entrant] for entrant in vote.columns]] = 1
        won[row] = member[row] / len(vote.columns) if vote.winner is None else 0
        if vote.winner is not None:
            won[row, at[vote.winner]] = 1
    reference = next((entrant for entrant in group if entrant.name == "base"), None)
    weights = np.ones(len(votes))
    fitted = strengths(member, won, weights)
    again = _cast_again(member, won, fitted, resamples, np.random.default_rng(seed))
    drawn = strengths(member, again, weights)
    chances, spread = _chances(fitted, at.get(reference)), _chances(drawn, at.get(reference))
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    ranks = [
        Rank(entrant, float(chances[i]), float(low[i]), float(high[i]), int(member[:, i].sum()))
        for entrant, i in at.items()
    ]
    return Ranking(reference, tuple(sorted(ranks, key=lambda rank: -rank.chance)))


def _cast_again(member: Values, won: Values, logs: Values, resamples: int, generator: np.random.Generator) -> Values:
    """[resamples, contests, entrants]: decided contests won anew by the strengths, by Gumbel's maximum."""
    noise = generator.gumbel(size=(resamples, *member.shape))
    drawn = np.where(member > 0, logs + noise, -np.inf)
    winners = np.eye(member.shape[1])[drawn.argmax(-1)]
    decided = won.max(-1) == 1
    return np.where(decided[:, None], winners, won)


def _chances(logs: Values, reference: int | None) -> Values:
    """The chance of each to be chosen over the reference."""
    against = logs.mean(-1, keepdims=True) if reference is None else logs[..., [reference]]
    chances: Values = 1 / (1 + np.exp(against - logs))
    return chances


def _connected(votes: Iterable[Vote]) -> list[list[Entrant]]:
    """Groups of entrants that votes hold together; strengths of two groups can't be compared."""
    groups: list[dict[Entrant, None]] = []
    for vote in votes:
        touched = [group for group in groups if any(entrant in group for entrant in vote.columns)]
        groups = [group for group in groups if group not in touched]
        groups.append(dict.fromkeys(entrant for group in [*touched, vote.columns] for entrant in group))
    return [list(group) for group in groups]


def _base_last(entrant: Entrant) -> tuple[bool, str, str, float]:
    """Sorts what was tuned first, so that a pair says how it does against the base."""
    return entrant.name == "base", entrant.run or "", entrant.name, entrant.strength
