"""What stands side by side: a column is an adapter and a strength; the base is the column without one."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Column:
    """One side of a comparison.

    Attributes:
        label: what a person sees.
        adapter: folder of an adapter in PEFT's format; None is the base.
        strength: what the adapter's output is multiplied by: 0 is the base, 1 the adapter as trained.
    """

    label: str
    adapter: Path | None = None
    strength: float = 1.0


BASE = Column("base", None, 0.0)
