"""What the lens is asked about an exchange of a conversation, and what a blind vote on it says."""

from collections.abc import Sequence
from typing import NamedTuple

from evaluation.votes import Entrant
from finetune.prompt import Turn
from inference.columns import Column, Subject
from inference.engine import Engine
from inference.lens import Lens, Score
from studio import sides
from studio.conversation import Conversation
from studio.views.keeping import BLIND

ALONE = (
    "Side by side on one text stand the base and adapters, two at least. A merged model or a DoRA adapter can't share "
    "a pass with them: add another column."
)


class Looked(NamedTuple):
    """The lens on an answer: whose it is, and the names of the columns that it was looked at under."""

    lens: Lens
    whose: str
    names: list[str]


class Crossed(NamedTuple):
    """Scores [answers][columns]; whose answers ("" is the reference); the columns' names; what a person should know."""

    scores: list[list[Score]]
    answers: list[str]
    names: list[str]
    note: str


def look(engine: Engine, conversation: Conversation, exchange: int, column: int) -> Looked:
    """A column's answer, token by token, under every column that can share a pass. Waits for the model.

    Raises:
        ValueError: the conversation is blind; the answer is empty; fewer than two columns can share a pass.
    """
    asked, columns, shared = _shared(conversation)
    names = sides.names(conversation.sides)
    text = conversation.exchanges[exchange].answers[column].text
    if not text.strip():
        raise ValueError(f"The answer of {names[column]} has no words to look at.")
    history, system = _asked(conversation, column, exchange), conversation.settings.system
    lens = engine.lens(asked, [columns[c] for c in shared], history, text, system)
    return Looked(lens, names[column], [names[c] for c in shared])


def cross(engine: Engine, conversation: Conversation, exchange: int) -> Crossed:
    """Every answer, and the reference where there is one, under every column that can share a pass.

    Each is scored as the answer to its own column's conversation, the reference to the first one's. Waits for the
    model; raises as `look`.
    """
    asked, columns, shared = _shared(conversation)
    names = sides.names(conversation.sides)
    said = conversation.exchanges[exchange]
    texts = [(names[c], _asked(conversation, c, exchange), said.answers[c].text) for c in conversation.places()]
    if said.reference:
        texts.append(("", _asked(conversation, shared[0], exchange), said.reference))
    under, system = [columns[c] for c in shared], conversation.settings.system
    scores = [engine.cross(asked, under, history, [text], system)[0] for _, history, text in texts]
    left_out = [name for c, name in enumerate(names) if c not in shared]
    note = (
        f"{' and '.join(left_out)} can't share a pass with the base, so nothing is scored under it." if left_out else ""
    )
    return Crossed(scores, [whose for whose, _, _ in texts], [names[c] for c in shared], note)


def entrants(conversation: Conversation) -> tuple[Entrant, ...]:
    """The columns as a vote names them. Raises ValueError where one is no longer there."""
    model = sides.resolve(conversation.sides)[0].model
    return tuple(
        Entrant(None, sides.BASE_KEY, 1.0, model)
        if side.run is None or side.name == sides.BASE_KEY
        else Entrant(side.run, side.name, side.strength if sides.has_strength(side) else 1.0, model)
        for side in conversation.sides
    )


def _shared(conversation: Conversation) -> tuple[Subject, list[Column], list[int]]:
    """The base and how it is asked; all columns; those of them that can share a pass, in the order of the sides."""
    if conversation.blind:
        raise ValueError(BLIND)
    asked, columns = sides.resolve(conversation.sides)
    shared = [c for c, side in enumerate(conversation.sides) if not sides.answers_apart(side)]
    if len(shared) < 2:
        raise ValueError(ALONE)
    return asked, columns, shared


def _asked(conversation: Conversation, column: int, exchange: int) -> Sequence[Turn]:
    """A column's turns up to that prompt, which is still to be answered."""
    *before, last = conversation.history(column, exchange)
    return [*before, last._replace(response=None)]
