"""A conversation on the Compare tab as one value: what stands in each column, how it is asked, and what was said.

The page's chats are drawn from it, the store keeps it, exports and links are made of it.
"""

import uuid

from pydantic import BaseModel, ConfigDict, Field

from finetune.prompt import Turn
from inference.columns import MOST_STRENGTH
from inference.sampling import Sampling

MOST_COLUMNS = 4
MOST_STRENGTH_ON_PAGE = 1.5
assert MOST_STRENGTH_ON_PAGE <= MOST_STRENGTH


class Frozen(BaseModel):
    """A value: never changed, only replaced."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
    """"end", "length", "cancelled"; None while it is being written."""

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

    def history(self, column: int) -> list[Turn]:
        """A column's own turns; the last one is without a response while it is being answered."""
        return [
            Turn(e.prompt, e.context, e.answers[column].text if column < len(e.answers) else None)
            for e in self.exchanges
        ]
