"""How far an evaluation is: its status file, and a bar with an ETA where someone looks at a terminal."""

import time
from types import TracebackType
from typing import NamedTuple, Self

from tqdm import tqdm

from evaluation.batches import Hooks
from finetune.run import Job, Reporter

# What an example (of the probe: a passage) takes of the time, its likelihoods being 1. For the ETA only.
WEIGHTS = {"likelihood": 1.0, "answers": 8.0, "probe": 1.0, "judge": 6.0}

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Part(NamedTuple):
    """One part of the work: what is said meanwhile, and how many steps it has."""

    text: str
    steps: int


class Progress:
    """One bar over all parts of the work."""

    def __init__(self, job: Job, reporter: Reporter, parts: dict[str, Part]) -> None:
        """`parts`: those of "likelihood", "answers", "probe" and "judge" that are asked for, in their order."""
        self.parts = parts
        self._job, self._reporter = job, reporter
        self._started = time.monotonic()
        self._before = 0  # steps of the parts that are over
        self._weighed_before = 0.0
        self._resumed: float | None = None  # what the cache gave at once says nothing about the speed
        self._total = sum(WEIGHTS[name] * part.steps for name, part in parts.items())
        steps = sum(part.steps for part in parts.values())
        self._bar = tqdm(total=steps, disable=None, dynamic_ncols=True, bar_format=BAR)
        reporter.status(step=0, max_steps=steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def is_stopped(self) -> bool:
        return self._job.stop_requested()

    def hooks(self, name: str) -> Hooks:
        """For that part of the work; ask for it when it begins."""
        before, weighed, part = self._before, self._weighed_before, self.parts[name]
        self._before += part.steps
        self._weighed_before += WEIGHTS[name] * part.steps
        self._bar.set_description(part.text)
        self._reporter.status(message=part.text, step=before)

        def done(count: int) -> None:
            self._say(before + count, weighed + WEIGHTS[name] * count)

        return Hooks(done, self.is_stopped)

    def _say(self, step: int, weighed: float) -> None:
        if self._resumed is None:
            self._resumed = weighed
        fresh = weighed - self._resumed
        elapsed = time.monotonic() - self._started
        eta = {"eta_seconds": elapsed * (self._total - weighed) / fresh} if fresh > 0 else {}
        self._reporter.status(step=step, **eta)
        self._bar.update(step - self._bar.n)
        if eta:
            self._bar.set_postfix_str(f"{tqdm.format_interval(eta['eta_seconds'])} left")
