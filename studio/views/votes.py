"""Blind votes for people: one sentence, and a table."""

from collections.abc import Callable

import pandas as pd

from evaluation.votes import Entrant, Pair, Ranking, VoteSummary
from finetune.run import find_run
from studio import sides
from studio.conversation import MOST_STRENGTH_ON_PAGE, Side

Naming = Callable[[Entrant], str]
COLUMNS = ["compared", "votes", "chosen", "not chosen", "tie", "both bad", "share", "95 % interval", "p"]
CLEAR = 0.05


def entrant_name(entrant: Entrant) -> str:
    """As on the Compare tab, with its run; the base with its model."""
    if entrant.run is None:
        return f"Base of {entrant.model}"
    strength = min(max(entrant.strength, 0.0), MOST_STRENGTH_ON_PAGE)
    (name,) = sides.names([Side(run=entrant.run, name=entrant.name, strength=strength)])
    return f"{name} · {_run_name(entrant.run)}"


def vote_sentence(summary: VoteSummary, name: Naming = entrant_name) -> str:
    """What the votes say on the pair with the most decided votes; text, not Markdown."""
    if not summary.votes:
        return "No votes yet: turn on Blind under Compare, ask something, and choose."
    count = "1 vote" if summary.votes == 1 else f"{summary.votes} votes"
    if not summary.pairs:
        return f"{count}, none of them between two different columns."
    pair = summary.pairs[0]
    decided = pair.wins + pair.losses
    if pair.share is None:
        return f"{count}; none decides between {name(pair.first)} and {name(pair.second)} yet."
    ahead = pair if pair.wins >= pair.losses else _turned(pair)
    said = (
        f"{count}. {name(ahead.first)} was chosen over {name(ahead.second)} in {ahead.wins} of {decided} decided votes "
        f"({ahead.share:.0%}; 95 % interval {ahead.low:.0%} to {ahead.high:.0%}; sign test p = {ahead.p:.2g})"
    )
    return f"{said}: a clear preference." if pair.p < CLEAR else f"{said}: not enough to tell."


def vote_table(summary: VoteSummary, name: Naming = entrant_name) -> pd.DataFrame:
    """A line a pair, then a line a rank where three or more were compared."""
    rows = [_pair_row(pair, name) for pair in summary.pairs]
    for ranking in summary.rankings:
        rows += _ranking_rows(ranking, name)
    return pd.DataFrame(rows, columns=COLUMNS)


def _pair_row(pair: Pair, name: Naming) -> list[str]:
    counts = [pair.wins, pair.losses, pair.ties, pair.bad]
    share = "–" if pair.share is None else f"{pair.share:.0%}"
    interval = "–" if pair.share is None else f"{pair.low:.0%} – {pair.high:.0%}"
    return [
        f"{name(pair.first)} over {name(pair.second)}",
        str(sum(counts)),
        *map(str, counts),
        share,
        interval,
        "–" if pair.share is None else f"{pair.p:.2g}",
    ]


def _ranking_rows(ranking: Ranking, name: Naming) -> list[list[str]]:
    """Chances to be chosen over the reference, by the Bradley–Terry fit."""
    against = name(ranking.reference) if ranking.reference else "one of average strength"
    return [
        [
            f"Bradley–Terry: {name(rank.entrant)} over {against}",
            str(rank.votes),
            *["–"] * 4,
            f"{rank.chance:.0%}",
            f"{rank.low:.0%} – {rank.high:.0%}",
            "–",
        ]
        for rank in ranking.ranks
        if rank.entrant != ranking.reference
    ]


def _run_name(run_id: str) -> str:
    try:
        return sides.run_name(find_run(run_id))
    except ValueError:  # it has been deleted since
        return run_id


def _turned(pair: Pair) -> Pair:
    """The same from the other side."""
    share = None if pair.share is None else 1 - pair.share
    return pair._replace(
        first=pair.second,
        second=pair.first,
        wins=pair.losses,
        losses=pair.wins,
        share=share,
        low=1 - pair.high,
        high=1 - pair.low,
    )
