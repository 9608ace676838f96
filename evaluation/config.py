"""What an evaluation is asked to do; a field's docstring is its help on the page and in --help."""

from pydantic import Field, field_validator

from evaluation.measures import chosen_measures
from finetune.config import Part


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
    cache: bool = True
    """Take answers that were given before under exactly the same conditions, and keep the new ones."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap and of the permutation test. Answers are greedy and need none."""

    @field_validator("metrics")
    @classmethod
    def know_the_metrics(cls, value: str) -> str:
        chosen_measures(value)
        return value
