"""A run's losses as small curves for a list: read once a file, thinned out, drawn as SVG."""

import json
import re
import time
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import NamedTuple, TypeVar

from finetune.run import Run

T = TypeVar("T")
CURVE_WIDTH, CURVE_HEIGHT, CURVE_POINTS = 120, 28, 60


class Losses(NamedTuple):
    """A run's curves, (step, loss), thinned out; and its best loss with what that is."""

    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    best: float | None
    kind: str


NO_LOSSES = Losses([], [], None, "")
_READ: dict[Path, tuple[tuple[int, int], Losses]] = {}  # by the folder: the file's time and size, and what is in it


def losses(run: Run, until: float = float("inf")) -> Losses:
    """Read once for as long as the file stays the same; what is not read by the time `until` is left for later."""
    file = run.path / "metrics.jsonl"
    if not file.exists():
        return NO_LOSSES
    stat = file.stat()
    key, known = (stat.st_mtime_ns, stat.st_size), _READ.get(run.path)
    if known is not None and (known[0] == key or time.monotonic() > until):
        return known[1]
    if time.monotonic() > until:
        return NO_LOSSES
    _READ[run.path] = (key, _losses(run.path))
    return _READ[run.path][1]


def _losses(folder: Path) -> Losses:
    lines = (folder / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
    validation = _points([line for line in lines if b'"validation_loss"' in line], "validation_loss")
    trained = [line for line in lines if b'"loss"' in line]
    training = _points(_thinned(trained), "loss")  # of thousands of lines only those that are drawn are parsed
    if validation:
        return Losses(training, _thinned(validation), min(loss for _, loss in validation), "validation")
    best = min((float(loss) for loss in re.findall(rb'"loss": ([-+.\deE]+)', b"\n".join(trained))), default=None)
    return Losses(training, [], best, "training")


def _points(lines: Sequence[bytes], name: str) -> list[tuple[int, float]]:
    events = (json.loads(line) for line in lines)
    return [(event["step"], event[name]) for event in events if isfinite(event.get(name, nan))]


def _thinned(found: list[T]) -> list[T]:
    """At most about CURVE_POINTS of them, the last one among them."""
    every = max(1, len(found) // CURVE_POINTS)
    return found[::-1][::every][::-1]


def curve(found: Losses) -> str:
    """A small SVG of both losses over the steps; nothing before there are two points."""
    lines = [("training", found.training), ("validation", found.validation)]
    points = [point for _, line in lines if len(line) > 1 for point in line]
    if not points:
        return ""
    steps, values = [step for step, _ in points], [loss for _, loss in points]
    low, high = min(values), max(values)

    def at(step: int, loss: float) -> str:
        x = 2 + (step - min(steps)) / (max(steps) - min(steps) or 1) * (CURVE_WIDTH - 4)
        return f"{x:.1f},{2 + (high - loss) / (high - low or 1) * (CURVE_HEIGHT - 4):.1f}"

    drawn = "".join(
        f'<polyline class="{kind}" points="{" ".join(at(*point) for point in line)}"/>'
        for kind, line in lines
        if len(line) > 1
    )
    label = f"loss from {values[0]:.2f} to {values[-1]:.2f}"
    box = f'viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" width="{CURVE_WIDTH}" height="{CURVE_HEIGHT}"'
    return f'<svg class="curve" {box} role="img" aria-label="{label}">{drawn}</svg>'
