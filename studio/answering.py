"""The open answers of a conversation, streamed from the engine: one answering a page, to be stopped from anywhere."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from inference.decode import Answer
from inference.engine import Engine
from studio import sides
from studio.conversation import Conversation, Said
from studio.limits import Limits

HALT_SECONDS = 5.0  # it takes a tenth of that: a look at the engine never waits for the model


class Look(NamedTuple):
    """The conversation as it stands, the exchange that is being answered, and what goes on."""

    conversation: Conversation
    exchange: int
    message: str


class _Going:
    """One page's answering: asked to stop, and over."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.over = threading.Event()


class Answering:
    """Who is being answered. A page is known by its session."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._going: dict[str, _Going] = {}

    def is_going(self, session: str) -> bool:
        return session in self._going

    def stop(self, session: str) -> None:
        """Ask that page's answers to end where they are. Asking twice is asking once."""
        if going := self._going.get(session):
            going.stop.set()

    def halt(self, session: str, conversation: Conversation) -> Conversation:
        """Stop that page's answers and wait until nothing is written to its conversation any more; what it then is.

        Whoever is about to change a conversation asks this first: the next look would undo the change.
        """
        if going := self._going.get(session):
            going.stop.set()
            going.over.wait(HALT_SECONDS)
        return conversation.halted()

    @contextmanager
    def at_work(self, session: str) -> Iterator[None]:
        """What is done within it is that page's answering: `halt` waits for its end."""
        going = self._going[session] = _Going()
        try:
            yield
        finally:
            going.over.set()
            if self._going.get(session) is going:
                del self._going[session]

    def answer(self, session: str, who: str, conversation: Conversation) -> Iterator[Look]:
        """Every answer that the conversation lacks, exchange after exchange, ten looks a second; within `at_work`.

        They count as `who`'s among the answers that one person may have under way.

        Closing the iterator stops the generation within one token; so does `stop`, after a last look.

        Raises:
            ValueError: as `sides.resolve` and `Engine.compare`.
        """
        going = self._going[session]
        for exchange, columns in conversation.gaps():
            for look in self._exchange(going, who, conversation, exchange, columns):
                conversation = look.conversation
                yield look
            if going.stop.is_set():
                return

    def _exchange(
        self, going: _Going, who: str, conversation: Conversation, exchange: int, columns: list[int]
    ) -> Iterator[Look]:
        asked, every = sides.resolve(conversation.sides)
        settings = conversation.settings
        stream = self._engine.compare(
            asked.model,
            asked.revision,
            asked.template,
            [every[column] for column in columns],
            [conversation.history(column, exchange) for column in columns],
            settings.sampling,
            settings.max_new_tokens,
            asked.sha256,
            settings.system,
        )
        with closing(self._limits.stream(who, stream)) as updates:  # type: ignore[type-var]
            for update in updates:
                said = [_said(answer) for answer in update.answers] or [Said(text="")] * len(columns)
                if stopped := going.stop.is_set():
                    said = [s.with_(stop="cancelled") if s.is_open else s for s in said]
                conversation = conversation.say(exchange, dict(zip(columns, said, strict=True)))
                yield Look(conversation, exchange, "" if stopped else update.message)
                if stopped:
                    return


def _said(answer: Answer) -> Said:
    return Said(
        text=answer.text,
        tokens=answer.tokens,
        seconds=answer.seconds,
        first_token_seconds=answer.first_token_seconds,
        stop=answer.stop,
    )
