"""A conversation on the Compare tab as one value: what stands in each column, how it is asked, and what was said.

The page's chats are drawn from it, the store keeps it, exports and links are made of it.
"""

import uuid
from collections.abc import Callable
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from finetune.prompt import Turn
from inference.columns import MOST_STRENGTH
from inference.sampling import Sampling

MOST_COLUMNS = 4
MOST_STRENGTH_ON_PAGE = 1.5
assert MOST_STRENGTH_ON_PAGE <= MOST_STRENGTH

T = TypeVar("T")


class Frozen(BaseModel):
    """A value: never changed, only replaced."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def with_(self, **values: Any) -> Self:
        """The same with other values, which are ours and not checked again."""
        return self.model_copy(update=values)


class Side(Frozen):
    """What stands in a column."""

    run: str | None = None
    """Id of the run whose adapter answers; None where no run is concerned (the base alone)."""
    name: str = "base"
    """"base", "tuned", "checkpoint-40" or "merged", as in inference.columns.resolve."""
    strength: float = Field(default=1.0, ge=0, le=MOST_STRENGTH_ON_PAGE)
    """What the adapter's output is multiplied by; means nothing for the base and for a merged model."""


class Settings(Frozen):
    """How every column is asked."""

    system: str = ""
    """What stands before the turns; empty: the template's own."""
    sampling: Sampling = Sampling()
    max_new_tokens: int = Field(default=192, ge=1, le=4096)
    """Longest answer, in tokens."""


class Said(Frozen):
    """One column's answer, with its figures."""

    text: str
    tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    stop: str | None = None
    """"end", "length", "cancelled"; None while it is being written, and before it is asked for."""

    @property
    def is_open(self) -> bool:
        """Whether the answer is still to be given, or to go on."""
        return self.stop is None

    @property
    def tokens_per_second(self) -> float:
        """As inference.decode.Answer has it: tokens after the first, over the time since the first."""
        after = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / after if self.tokens > 1 and after > 0 else 0.0


class Exchange(Frozen):
    """A prompt and what each column said to it, in the order of the columns."""

    prompt: str
    answers: tuple[Said, ...] = ()
    reference: str = ""
    """The answer that the prompt's row has, where it came from a held-out row."""
    context: str = ""
    """What the prompt's row gives to read with it; the template has a place for it, as in training."""


class Conversation(Frozen):
    """The whole of it."""

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Random, so that a link can't be guessed."""
    sides: tuple[Side, ...] = (Side(), Side(name="tuned"))
    settings: Settings = Settings()
    exchanges: tuple[Exchange, ...] = ()
    blind: bool = False
    """Whether names are hidden until a vote."""
    order: tuple[int, ...] = ()
    """Which column stands where: place i shows column order[i]. Empty: as they are. Blind mode shuffles it."""

    def places(self) -> tuple[int, ...]:
        """The columns in the order in which they stand."""
        return self.order or tuple(range(len(self.sides)))

    def history(self, column: int, exchange: int = -1) -> list[Turn]:
        """A column's own turns up to that exchange; the last one is without a response while it is to be answered."""
        exchanges = self.exchanges[: exchange + 1 or None]
        answers = [e.answers[column] if column < len(e.answers) else Said(text="") for e in exchanges]
        return [
            Turn(e.prompt, e.context, None if said.is_open else said.text)
            for e, said in zip(exchanges, answers, strict=True)
        ]

    def gaps(self) -> list[tuple[int, list[int]]]:
        """(exchange, columns) of the answers that are still to be given, in the order in which they are to be."""
        found = [(i, [c for c, said in enumerate(e.answers) if said.is_open]) for i, e in enumerate(self.exchanges)]
        return [(exchange, columns) for exchange, columns in found if columns]

    def ask(self, prompt: str, context: str = "", reference: str = "") -> Self:
        """With a further prompt that no column has answered yet."""
        exchange = Exchange(
            prompt=prompt, context=context, reference=reference, answers=(Said(text=""),) * len(self.sides)
        )
        return self.with_(exchanges=(*self.exchanges, exchange))

    def say(self, exchange: int, said: dict[int, Said]) -> Self:
        """With these answers (column to answer) to that exchange."""
        old = self.exchanges[exchange]
        new = old.with_(answers=tuple(said.get(column, answer) for column, answer in enumerate(old.answers)))
        return self.with_(exchanges=(*self.exchanges[:exchange], new, *self.exchanges[exchange + 1 :]))

    def again(self) -> Self:
        """With the last prompt to be answered anew by every column."""
        last = self.exchanges[-1]
        return self.undo().ask(last.prompt, last.context, last.reference)

    def undo(self) -> Self:
        """Without the last exchange."""
        return self.with_(exchanges=self.exchanges[:-1])

    def halted(self) -> Self:
        """With answers that were being written taken for stopped where they are."""
        return self._answered(lambda said: said.with_(stop="cancelled") if said.is_open and said.tokens else said)

    def put(self, column: int, side: Side) -> Self:
        """With that side in a column. Its answers were another's, so they go; the prompts and the others' stay."""
        sides = tuple(side if i == column else old for i, old in enumerate(self.sides))
        emptied = [
            e.with_(answers=tuple(Said(text="") if i == column else said for i, said in enumerate(e.answers)))
            for e in self.exchanges
        ]
        return self.with_(sides=sides, exchanges=tuple(emptied))

    def add(self, side: Side) -> Self:
        """With one column more, which has answered nothing yet."""
        assert len(self.sides) < MOST_COLUMNS
        exchanges = tuple(e.with_(answers=(*e.answers, Said(text=""))) for e in self.exchanges)
        order = (*self.order, len(self.sides)) if self.order else ()
        return self.with_(sides=(*self.sides, side), exchanges=exchanges, order=order)

    def drop(self, column: int) -> Self:
        """Without that column and what it said."""
        assert len(self.sides) > 1

        def rest(values: tuple[T, ...]) -> tuple[T, ...]:
            return values[:column] + values[column + 1 :]

        exchanges = tuple(e.with_(answers=rest(e.answers)) for e in self.exchanges)
        order = tuple(c - (c > column) for c in self.order if c != column)
        return self.with_(sides=rest(self.sides), exchanges=exchanges, order=order)

    def _answered(self, change: Callable[[Said], Said]) -> Self:
        exchanges = tuple(e.with_(answers=tuple(map(change, e.answers))) for e in self.exchanges)
        return self.with_(exchanges=exchanges)
