"""What an evaluation is asked to do; a field's docstring is its help on the page and in --help."""

from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from evaluation.measures import chosen_measures
from finetune.config import Part


class JudgeName(NamedTuple):
    """Who judges: a model behind an address, or (without one) a model on this machine."""

    address: str
    """Where the endpoint's API begins, such as "https://host/v1"; empty: the model is on this machine."""
    model: str
    """Its name; empty: the endpoint's only one."""


class EvalConfig(Part):
    """Which rows, which columns, which scores, and how long the answers."""

    rows: int | None = Field(default=64, ge=1)
    """Held-out rows to score, the categories in proportion. Empty: all."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer."""
    columns: str = "base,tuned"
    """What is compared, the first with each of the others: base, tuned, a strength such as 0.5, checkpoint-40, a run's id."""  # noqa: E501
    metrics: str = "all"
    """Scores to take, such as loss,rouge_l,exact_match; "all" is every one."""
    data: str | None = None
    """Score the rows of this file or data set instead of the run's held-out ones; leaks from training are flagged."""
    data_columns: str | None = None
    """Which of its columns is which, such as "instruction=question, response=answer". Empty: found by their usual names."""  # noqa: E501
    part: Literal["test", "validation"] = "test"
    """Which held-out rows: "test" was never looked at, "validation" is what training watched."""
    judge: str | None = None
    """A judge that reads the answers in pairs, in both orders: "https://host/v1,model" (OpenAI-compatible, its key in TANDEM_JUDGE_KEY), or a model here, such as base:smollm2-135m."""  # noqa: E501
    judge_reference: bool = False
    """Show the judge the reference answer too."""
    judge_tokens: int = Field(default=512, ge=16)
    """Longest reply of the judge."""
    judge_at_once: int = Field(default=4, ge=1, le=64)
    """Questions that are put to the judge's endpoint at the same time."""
    judge_prompt_price: float = Field(default=0.0, ge=0)
    """What a million prompt tokens of the judge cost, to count the money."""
    judge_completion_price: float = Field(default=0.0, ge=0)
    """What a million completion tokens of the judge cost."""
    probe: str | None = None
    """How far it departs from the base on text that is no instruction: a text file, or "default" for our own. Empty: not asked."""  # noqa: E501
    cache: bool = True
    """Take answers that were given before under exactly the same conditions, and keep the new ones."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap and of the permutation test. Answers are greedy and need none."""

    @field_validator("metrics")
    @classmethod
    def know_the_metrics(cls, value: str) -> str:
        chosen_measures(value)
        return value

    @field_validator("judge")
    @classmethod
    def know_the_judge(cls, value: str | None) -> str | None:
        if value is not None:
            judge_name(value)
        return value

    @model_validator(mode="after")
    def have_what_is_named(self) -> Self:
        if self.judge is None and "judge" in self.metrics:
            raise ValueError("metrics names the judge's preference: say who judges, with judge")
        if self.data_columns is not None and self.data is None:
            raise ValueError("data_columns says which column of data is which: give data too")
        return self


def judge_name(text: str) -> JudgeName:
    """ "URL[,model]", "base:NAME" or a model's name. Raises ValueError with a sentence."""
    if "://" not in text:
        name = text.strip().removeprefix("base:")
        if not name:
            raise ValueError("judge names no model: give an address, or a model such as base:smollm2-135m")
        return JudgeName("", name)
    address, _, model = (part.strip() for part in text.partition(","))
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("judge must be an http or https address, such as https://host/v1,model")
    if "@" in parts.netloc or parts.query or parts.fragment:  # the address is kept and shown; a key must not be
        raise ValueError("judge must be an address without a key in it: the key belongs into TANDEM_JUDGE_KEY")
    return JudgeName(address.rstrip("/"), model)
