"""Which columns are compared: "base,tuned,0.5" to adapters and strengths. Nothing here loads torch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.run import Run
from inference.columns import Column, resolve


class Side(NamedTuple):
    """A column as the batches use it: its adapter in memory (None for the base) and how strongly it is applied."""

    adapter: Any
    strength: float


def parse_columns(text: str, run: Run) -> list[Column]:
    """The columns of a comma-separated list; the first one is what the others are compared with.

    Names are those of inference/columns.py.

    Raises:
        ValueError: fewer than two columns, one twice, or one that there is not.
    """
    columns = resolve(run, text)
    if len(columns) < 2:
        raise ValueError(f"A comparison needs two columns or more, such as base,tuned (given: {text!r}).")
    if len({(column.adapter, column.strength, column.model) for column in columns}) < len(columns):
        raise ValueError(f"The same column is there twice in {text!r}: give each once.")
    return columns


def file_sha256(file: Path) -> str:
    """As `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identity(column: Column) -> dict[str, Any]:
    """What decides a column's answers beside the base: its adapter's files, by content, and its strength.

    A merged model, which stands in the base's place, is known by its files.
    """
    if column.model is not None:
        return {
            "adapter": None,
            "strength": 0.0,
            "merged": [file_sha256(file) for file in sorted(column.model.glob("*.safetensors"))],
        }
    if column.adapter is None or column.strength == 0:
        return {"adapter": None, "adapter_config": None, "strength": 0.0}
    return {
        "adapter": file_sha256(column.adapter / "adapter_model.safetensors"),
        "adapter_config": file_sha256(column.adapter / "adapter_config.json"),
        "strength": column.strength,
    }


def strengths(sides: Sequence[Side]) -> list[tuple[Any, list[float]]]:
    """For rows with those sides: each adapter once, with its strength on every row."""
    adapters = {id(side.adapter): side.adapter for side in sides if side.adapter is not None and side.strength}
    return [
        (adapter, [side.strength if side.adapter is adapter else 0.0 for side in sides])
        for adapter in adapters.values()
    ]
