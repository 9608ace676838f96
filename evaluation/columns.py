"""Which columns are compared: "base,tuned,0.5" to adapters and strengths. Nothing here loads torch."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.run import Run, find_run
from inference.columns import Column


class Side(NamedTuple):
    """A column as the batches use it: its adapter in memory (None for the base) and how strongly it is applied."""

    adapter: Any
    strength: float


def parse_columns(text: str, run: Run) -> list[Column]:
    """The columns of a comma-separated list; the first one is what the others are compared with.

    "base" is the model without an adapter, "tuned" with the run's; a number is the run's adapter at that strength;
    "checkpoint-40" is the run at that step, and a run's id is that run's adapter.

    Raises:
        ValueError: fewer than two columns, one twice, or one that there is not.
    """
    columns = [_column(name.strip(), run) for name in text.split(",") if name.strip()]
    if len(columns) < 2:
        raise ValueError(f"A comparison needs two columns or more, such as base,tuned (given: {text!r}).")
    if len({(column.adapter, column.strength) for column in columns}) < len(columns):
        raise ValueError(f"The same column is there twice in {text!r}: give each once.")
    return columns


def _column(name: str, run: Run) -> Column:
    if name == "base":
        return Column("base", None, 0.0)
    if name == "tuned":
        return Column("tuned", run.adapter, 1.0)
    if re.fullmatch(r"-?\d+(\.\d+)?", name):
        strength = float(name)
        return Column(name, run.adapter if strength else None, strength)
    if name.startswith("checkpoint-"):
        folders = {f"checkpoint-{step}": folder for step, folder in run.checkpoints()}
        if name not in folders:
            raise ValueError(f"{run.id} has no whole {name}; it has: {', '.join(folders) or 'no checkpoint'}.")
        return Column(name, folders[name], 1.0)
    other = find_run(name)
    if not other.has_adapter():
        raise ValueError(f"{other.id} has no adapter yet ({other.status()['state']}).")
    return Column(other.id, other.adapter, 1.0)


def file_sha256(file: Path) -> str:
    """As `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identity(column: Column) -> dict[str, Any]:
    """What decides a column's answers beside the base: its adapter's files, by content, and its strength."""
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
