"""What a caller of the engine sees of the work: looks at it, several a second, while the one worker does it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from inference.decode import Answer

TICK_SECONDS = 0.08  # between two updates of a stream: browsers choke above about ten a second


class Update(NamedTuple):
    """One look at a comparison.

    Attributes:
        answers: one a column; none yet while something is being loaded.
        message: what goes on, or what a person should know about these answers.
        prompt_tokens: length of each column's prompt.
    """

    answers: list[Answer]
    message: str
    prompt_tokens: tuple[int, ...] = ()


class Shared:
    """What the worker tells the caller while it works, and the caller the worker."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.message = ""
        self.started = False
        self.ahead: Callable[[], int] = lambda: 0
        self.prompt_tokens: tuple[int, ...] = ()
        self.cancel = threading.Event()

    def say(self, text: str) -> None:
        self.message = text

    def look(self) -> Update:
        ahead = self.ahead()
        waiting = f"Waiting for the model, {ahead} ahead" if ahead else "Waiting for the model"
        return Update(self.answers, self.message if self.started else waiting, self.prompt_tokens)


def watch(future: "Future[None]", state: Shared) -> Iterator[Update]:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    try:
        while not done.wait(TICK_SECONDS):
            yield state.look()
        future.result()
        yield state.look()
    finally:
        state.cancel.set()
        future.cancel()
