"""What an evaluation is asked to do; a field's docstring is its help on the page and in --help."""

from pydantic import Field

from finetune.config import Part


class EvalConfig(Part):
    """Which rows, and how long the answers."""

    rows: int | None = Field(default=64, ge=1)
    """Held-out rows to score, the categories in proportion. Empty: all."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer."""
