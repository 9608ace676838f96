"""What one person may have under way at a time, so that there is something left for the others."""

import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from finetune.run import Job
from inference.engine import Update

MOST_ANSWERS = 2  # under way or waiting, of one person
MOST_WAITING_RUNS = 4  # in the queue, of one person
MOST_STARTS = 20  # of runs and evaluations, of one person, within START_SECONDS
START_SECONDS = 300.0
SAME_NEWS_SECONDS = 0.5  # while nothing changes, a stream says so this often: then it can be closed

AnyJob = TypeVar("AnyJob", bound=Job)


class Person(NamedTuple):
    """Whose answers and runs are counted together: a user's; without a login a page's, and a machine's."""

    answers: str
    runs: str


def person(request: Any) -> Person:
    """Who sent it (a gr.Request, or None from a test or a script)."""
    name = getattr(request, "username", None)
    if name:
        return Person(f"user {name}", f"user {name}")
    client = getattr(request, "client", None)
    session = getattr(request, "session_hash", None)
    return Person(f"session {session}", f"address {getattr(client, 'host', None)}")


class Brake:
    """How often something may happen within a time, for each key."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self._lock = threading.Lock()
        self._hits: dict[str, deque[float]] = {}

    def wait(self, key: str) -> float:
        """Seconds until it may happen again; 0 if it may now."""
        with self._lock:
            self._forget()
            hits = self._hits.get(key) or deque()
            return self.seconds - (time.monotonic() - hits[0]) if len(hits) >= self.most else 0.0

    def hit(self, key: str) -> None:
        """It happened."""
        with self._lock:
            self._hits.setdefault(key, deque(maxlen=self.most)).append(time.monotonic())

    def forgive(self, key: str) -> None:
        """The last one does not count."""
        with self._lock:
            if self._hits.get(key):
                self._hits[key].pop()

    def _forget(self) -> None:
        old = time.monotonic() - self.seconds
        for key, hits in list(self._hits.items()):
            while hits and hits[0] < old:
                hits.popleft()
            if not hits:
                del self._hits[key]


class Limits:
    """Who has what under way. One of it serves the whole page."""

    def __init__(
        self,
        answers: int = MOST_ANSWERS,
        waiting_runs: int = MOST_WAITING_RUNS,
        starts: int = MOST_STARTS,
        seconds: float = START_SECONDS,
    ) -> None:
        self._answers, self._waiting_runs = answers, waiting_runs
        self._brake = Brake(starts, seconds)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._under_way: dict[int, str] = {}
        self._started: dict[str, list[Job]] = defaultdict(list)

    @contextmanager
    def answer(self, who: str) -> Iterator[None]:
        """Around one answer (or a look through the lens). Raises ValueError where that person has enough under way."""
        with self._lock:
            if sum(other == who for other in self._under_way.values()) >= self._answers:
                raise ValueError(
                    f"{self._answers} of your answers are under way already: wait for one of them, or stop it."
                )
            number = next(self._numbers)
            self._under_way[number] = who
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[number]

    def stream(self, who: str, updates: Iterator[Update]) -> Iterator[Update]:
        """The updates of an engine's comparison, counted as one answer; while nothing changes, fewer of them.

        Raises:
            ValueError: that person has enough under way; or what the engine raises.
        """
        with self.answer(who):
            said, at = "", 0.0
            try:
                for update in updates:
                    if not update.answers and update.message == said and time.monotonic() - at < SAME_NEWS_SECONDS:
                        continue
                    said, at = update.message, time.monotonic()
                    yield update
            finally:
                close = getattr(updates, "close", None)  # now, and not when someone collects it: the model is free then
                if close:
                    close()

    def start(self, who: str, make: Callable[[], AnyJob]) -> AnyJob:
        """Make a run or an evaluation by calling `make`, and count it.

        Raises:
            ValueError: that person has started, or has waiting, as many as one may; or what `make` raises.
        """
        with self._lock:
            mine = [job for job in self._started[who] if job.path.exists() and job.status()["state"] == "queued"]
            self._started[who] = mine
            if len(mine) >= self._waiting_runs:
                raise ValueError(f"{len(mine)} of your runs wait in the queue: let one of them start, or stop it.")
            wait = self._brake.wait(who)
            if wait:
                raise ValueError(f"That was much at once: start the next one in {wait:.0f} s.")
            self._brake.hit(who)
        job = make()
        with self._lock:
            self._started[who].append(job)
        return job
