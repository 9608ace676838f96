"""How far an evaluation is: its status file, and a bar with an ETA where someone looks at a terminal."""

import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from evaluation.batches import Hooks
from finetune.run import Job, Reporter

ANSWERS_WEIGH = 8.0  # an example's answers take about this many times as long as its likelihoods: for the ETA only

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """One bar over both halves of the work."""

    def __init__(self, job: Job, reporter: Reporter, examples: int, halves: dict[str, str]) -> None:
        """`halves`: "likelihood" and "answers", those that are asked for, with what is said meanwhile."""
        self._job, self._reporter, self._examples, self._halves = job, reporter, examples, halves
        self._started = time.monotonic()
        self._before = 0  # steps of the halves that are over
        self._weighed_before = 0.0
        self._resumed: float | None = None  # what the cache gave at once says nothing about the speed
        self._total = sum(self._weight(half) for half in halves) * examples
        self._bar = tqdm(total=examples * len(halves), disable=None, dynamic_ncols=True, bar_format=BAR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def hooks(self, half: str) -> Hooks:
        """For that half of the work; ask for it when it begins."""
        before, weighed = self._before, self._weighed_before
        self._before += self._examples
        self._weighed_before += self._weight(half) * self._examples
        self._bar.set_description(self._halves[half])
        self._reporter.status(message=self._halves[half], step=before)

        def done(count: int) -> None:
            self._say(before + count, weighed + self._weight(half) * count)

        return Hooks(done, self._job.stop_requested)

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

    @staticmethod
    def _weight(half: str) -> float:
        return ANSWERS_WEIGH if half == "answers" else 1.0
