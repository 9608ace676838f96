"""What one visitor's page shows of a run: so that an update reads and sends what is new, and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from finetune.run import Run

AGAIN = 10  # updates after which the small things are sent again, should one have got lost
TOLD = 4  # times that a slider is told where to stand
POINTS = 300  # of a line: a plot has no more pixels


class Watched:
    """The run that is shown, the values that were sent, and the events of its metrics so far."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self._sent: dict[str, Any] = {}
        self._marks: dict[str, Any] = {}
        self._updates = 0
        self.count = 0
        """Looks at sample answers so far."""
        self.unanswered = 0
        """Updates since a look was sent that the page's slider does not show yet."""
        self.sample: dict[str, Any] = {}
        """The newest event that has the machine's figures."""
        self._stood = 0
        self._file, self._offset = 0, 0
        self._loss: list[tuple[int, float]] = []
        self._rate: list[tuple[int, float]] = []
        self._validation: list[tuple[int, float]] = []

    def turn_to(self, run_id: str | None) -> None:
        """Begin an update; begin anew where another run is shown than before."""
        self._updates += 1
        if self._updates % AGAIN == 0:
            self._sent = {}
        if run_id != self.run_id:
            self.run_id, self._sent, self._marks, self._updates = run_id, {}, {}, 0
            self._forget_events()

    def news(self, name: str, value: Any, update: Any = None) -> Any:
        """`update` (or the value itself), or nothing to send where the value is what was sent last."""
        if name in self._sent and self._sent[name] == value:
            return gr.skip()
        self._sent[name] = value
        return value if update is None else update

    def is_new(self, name: str, value: Any) -> bool:
        """Whether a value differs from the last one of that name; it is noted."""
        old, self._marks[name] = self._marks.get(name, self), value
        return bool(old != value)

    def send_look(self, look: int) -> None:
        """Note that the slider is told to stand at a look."""
        if self.is_new("look", look) and look != self._stood:
            self.unanswered = 1

    def moved_to(self, at: int) -> int:
        """Where the slider is to stand that says it stands at `at`.

        What it is sent just as it is first shown can get lost: while it still stands where it stood before,
        it is told again, a few times.
        """
        if self.unanswered and at == self._stood and self.unanswered < TOLD:
            self.unanswered += 1
            sent: int = self._marks["look"]
            return sent
        self.unanswered, self._stood = 0, at
        return at

    def read(self, run: Run | None) -> bool:
        """Read the metrics that came since the last time; whether there were any."""
        mark = stamp(run, "metrics.jsonl")
        if (
            mark is not None and mark[0] != self._file
        ):  # a resumed run goes back to its checkpoint, in a file of its own
            self._forget_events()
            self._file = mark[0]
        events, self._offset = run.metrics(self._offset) if run else ([], 0)
        for event in events:
            if event.get("loss") is not None:
                self._loss.append((event["step"], event["loss"]))
                self._rate.append((event["step"], event["learning_rate"]))
                self.sample = event
            if event.get("validation_loss") is not None:
                self._validation.append((event["step"], event["validation_loss"]))
        return self.is_new("events", (self._file, self._offset))

    def losses(self) -> pd.DataFrame:
        """Step, loss, kind: thinned to what a plot can show."""
        rows = [(*point, "training") for point in thinned(self._loss)]
        rows += [(*point, "validation") for point in thinned(self._validation)]
        return pd.DataFrame(rows, columns=["step", "loss", "kind"])

    def rates(self) -> pd.DataFrame:
        """Step and learning rate."""
        return pd.DataFrame(thinned(self._rate), columns=["step", "learning rate"])

    def _forget_events(self) -> None:
        self._file = self._offset = self.count = self.unanswered = 0
        self._loss, self._rate, self._validation, self.sample = [], [], [], {}


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about POINTS of them, evenly, and always the last one."""
    every = -(-len(points) // POINTS) or 1
    kept = list(points[::every])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def stamp(run: Run | None, name: str) -> tuple[int, int] | None:
    """(inode, size) of a run's file: what changes when it grows or is replaced; None where it is not there."""
    if run is None:
        return None
    try:
        found = Path(run.path / name).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size
