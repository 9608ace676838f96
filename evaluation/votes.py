"""Blind votes counted: pairs by an exact sign test, many columns by a Bradley–Terry fit, each with its interval."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv

Values = NDArray[np.float64]
LETTERS = "ABCD"
TIE, BAD = "tie", "bad"
PRIOR = 0.5  # contests of each entrant with one of average strength, half of them won: keeps the fit finite
ROUNDS = 500  # of the fit, at most
CLOSE = 1e-4  # in log-strength: the fit has settled


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
    low = float(betaincinv(wins, losses + 1, 0.025)) if wins else 0.0
    high = float(betaincinv(wins + 1, losses, 0.975)) if losses else 1.0
    return wins / decided, low, high, min(1.0, 2 * float(bdtr(min(wins, losses), decided, 0.5)))


def strengths(member: Values, times: Values, wins: Values) -> Values:
    """Log-strengths under which the choices are likeliest, of the shape of `wins`.

    P(i is chosen among S) = w_i / sum of w over S: Bradley & Terry 1952 (doi 10.2307/2334029) for pairs, Luce 1959 for
    more. Found by the MM iteration of Hunter 2004 (doi 10.1214/aos/1079120141), in which PRIOR contests with an
    entrant of strength 1 keep a winner of everything finite (a gamma prior, as in Caron & Doucet 2012).

    Args:
        member: 1 where an entrant stands in a line-up, [line-ups, entrants].
        times: how often a line-up was voted on, [line-ups].
        wins: how often an entrant was chosen, a tie being an equal share for each, [entrants] or [sets, entrants].
    """
    logs = np.zeros_like(wins)
    for _ in range(ROUNDS):
        strength = np.exp(logs)
        faced = (times / (strength @ member.T)) @ member + PRIOR / (strength + 1)
        before, logs = logs, np.log((wins + PRIOR / 2) / faced)
        # Only the prior says where all of them lie together, and MM would creep there: a step of Newton's goes at once.
        beats = 1 / (1 + np.exp(-logs))
        logs += (0.5 - beats).sum(-1, keepdims=True) / (beats * (1 - beats)).sum(-1, keepdims=True)
        if np.abs(logs - before).max() < CLOSE:
            break
    return logs


def _pair(first: Entrant, second: Entrant, votes: Iterable[Vote]) -> Pair:
    both = [vote for vote in votes if first in vote.columns and second in vote.columns]
    wins, losses = (sum(vote.winner == entrant for vote in both) for entrant in (first, second))
    ties, bad = (sum(vote.choice == choice for vote in both) for choice in (TIE, BAD))
    return Pair(first, second, wins, losses, ties, bad, *sign_test(wins, losses))


def _ranking(group: list[Entrant], votes: Sequence[Vote], resamples: int, seed: int) -> Ranking:
    """The fit and its interval by the parametric bootstrap (Efron & Tibshirani 1993, section 6.5): each decided vote is
    cast again by the fitted strengths, a tie stays one. Drawing the votes themselves again would find no doubt in five
    wins of five."""
    at = {entrant: i for i, entrant in enumerate(group)}
    votes = [vote for vote in votes if vote.columns[0] in at]
    line_ups = list(dict.fromkeys(frozenset(vote.columns) for vote in votes))
    member = np.array([[float(entrant in line_up) for entrant in group] for line_up in line_ups])
    decided, tied = np.zeros(len(line_ups)), np.zeros(len(line_ups))
    wins = np.zeros(len(group))
    for vote in votes:
        which = line_ups.index(frozenset(vote.columns))
        (tied if vote.winner is None else decided)[which] += 1
        if vote.winner is not None:
            wins[at[vote.winner]] += 1
    shares = (tied / member.sum(1)) @ member
    fitted = strengths(member, decided + tied, wins + shares)
    again = _cast_again(member, decided, fitted, resamples, np.random.default_rng(seed))
    drawn = strengths(member, decided + tied, again + shares)
    reference = next((entrant for entrant in group if entrant.name == "base"), None)
    against = None if reference is None else at[reference]
    chances = _chances(fitted, against)
    low, high = np.quantile(_chances(drawn, against), [0.025, 0.975], axis=0)
    ranks = [
        Rank(entrant, float(chances[i]), float(low[i]), float(high[i]), int((decided + tied) @ member[:, i]))
        for entrant, i in at.items()
    ]
    return Ranking(reference, tuple(sorted(ranks, key=lambda rank: -rank.chance)))


def _cast_again(member: Values, decided: Values, logs: Values, sets: int, generator: np.random.Generator) -> Values:
    """How often each is chosen where the decided votes are cast anew by the strengths, [sets, entrants]."""
    chosen = member * np.exp(logs)
    chosen /= chosen.sum(1, keepdims=True)
    draws = [generator.multinomial(int(n), p, size=sets) for n, p in zip(decided, chosen, strict=True)]
    return np.sum(draws, axis=0).astype(np.float64)


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
