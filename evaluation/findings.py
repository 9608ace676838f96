"""What a judge and a probe found: parts of a report."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["win", "tie", "loss", "failed"]


class Judgement(BaseModel):
    """What the judge made of one example: a column's answer against the first column's."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    """For the column. A win or a loss only where both orders say so; "failed" where an order has no clear reply."""
    choices: list[str] = []
    """"first", "second", "tie", or "" for none, as it read them: first with the first column's answer in front, then
    with the other one. Empty where both answers are the same text and nobody was asked."""
    reasons: list[str] = []
    """What it wrote before each choice."""


class Preference(BaseModel):
    """The judge's preference between a column and the first one, on one category or on all."""

    model_config = ConfigDict(frozen=True)

    column: str
    category: str
    wins: int
    ties: int
    losses: int
    failed: int
    contradicted: int
    """Of the ties: how many because the judge chose otherwise when the order was turned."""
    win_rate: float | None = None
    """Wins among wins and losses; None where none was decided."""
    low: float | None = None
    high: float | None = None
    """Its 95 % interval (Clopper & Pearson)."""
    p: float = 1.0
    """Of the sign test over the decided examples, two-sided."""
    p_holm: float = 1.0
    """p after Holm's correction over the categories; overall it is p itself."""
    first_share: float | None = None
    """Share of the choices that fell on what stood first: 0.5 is no position bias. None where nothing was chosen."""
    first_low: float | None = None
    first_high: float | None = None

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def bias_points(self) -> float:
        """Percentage points by which it favours what stands first; negative: what stands second."""
        return 0.0 if self.first_share is None else 100 * (self.first_share - 0.5)


class Counts(BaseModel):
    """What asking the judge took, in this evaluation: what came from the cache took nothing."""

    calls: int = 0
    """Requests sent, every retry included."""
    retries: int = 0
    malformed: int = 0
    """Replies whose last line was no verdict."""
    failed: int = 0
    """Questions that got no clear reply in any try."""
    from_cache: int = 0
    same: int = 0
    """Examples with one and the same answer: a tie, without asking."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    """Replies that did not tell their tokens: the cost is then too low."""
    seconds: float = 0.0


class JudgeReport(BaseModel):
    """Who judged, how it was asked, what it took, and what came out."""

    model_config = ConfigDict(frozen=True)

    judge: str
    address: str = ""
    """Of its endpoint; empty: it ran on this machine."""
    model_sha256: str | None = None
    prompt: str
    """Version and fingerprint of what it is asked."""
    with_reference: bool
    counts: Counts
    cost: float | None = None
    """In the currency of the prices that were given; None without them."""
    preferences: list[Preference]


class Departure(BaseModel):
    """How far a column is from the first one on text that is no instruction, on one kind of text or on all of it."""

    model_config = ConfigDict(frozen=True)

    column: str
    kind: str
    passages: int
    tokens: int
    kl: float
    """Mean KL(first‖column) of the next-token distributions, in nats a token."""
    kl_low: float
    kl_high: float
    """Its 95 % interval, by bootstrap over the passages."""
    kl_p99: float
    """99th percentile over the tokens."""
    loss_base: float
    loss_column: float
    """Mean -log p of the text's tokens, in nats."""
    loss_low: float
    loss_high: float
    """95 % interval of the loss's change, paired by passage."""

    @property
    def loss_change(self) -> float:
        return self.loss_column - self.loss_base


class ProbeReport(BaseModel):
    """The forgetting probe."""

    model_config = ConfigDict(frozen=True)

    text: str
    """What was read, in words."""
    text_sha256: str
    departures: list[Departure]
