"""What people leave behind on the page: conversations and blind votes, in one SQLite file beside the runs.

Whoever asks is named by an owner and sees only what is theirs; a conversation's random id, as in a link, opens it for
whoever has it. Each call has a connection of its own, so any thread may call.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from evaluation.votes import Entrant, Vote
from finetune.run import runs_folder
from studio.conversation import Conversation

FILE = ".tandem.sqlite"
VERSION = 1
WAIT_SECONDS = 20.0  # for another writer
MOST_LISTED = 200
LONGEST_TITLE = 80  # characters
SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    value TEXT NOT NULL
) STRICT;
CREATE INDEX conversations_of ON conversations (owner, updated DESC);
CREATE TABLE votes (
    owner TEXT NOT NULL, conversation TEXT NOT NULL, exchange INTEGER NOT NULL, answers TEXT NOT NULL,
    columns TEXT NOT NULL, placed TEXT NOT NULL, choice TEXT NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (owner, conversation, exchange, answers)
) STRICT;
"""


class Kept(NamedTuple):
    """A line of the list of conversations; `updated` in seconds since 1970."""

    id: str
    title: str
    updated: float


class Store:
    """Args: file: where; None is beside the runs. It is made at the first use."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._ready: Path | None = None
        self._lock = threading.Lock()

    @property
    def file(self) -> Path:
        return self._file or runs_folder() / FILE

    def keep(self, owner: str, conversation: Conversation) -> None:
        """Write a conversation down, or what it has become. Someone else's of that id is left as it is."""
        now = time.time()
        values = (conversation.id, owner, title_of(conversation), now, now, conversation.model_dump_json())
        with self._open() as base:
            base.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
                "SET value = excluded.value, updated = excluded.updated WHERE owner = excluded.owner",
                values,
            )

    def listed(self, owner: str) -> list[Kept]:
        """That owner's conversations, newest first."""
        with self._open() as base:
            rows = base.execute(
                "SELECT id, title, updated FROM conversations WHERE owner = ? "
                "ORDER BY updated DESC, rowid DESC LIMIT ?",
                (owner, MOST_LISTED),
            )
            return [Kept(*row) for row in rows]

    def title(self, owner: str, conversation_id: str) -> str | None:
        """What that owner's conversation is called; None where it is not theirs or not kept yet."""
        with self._open() as base:
            query = "SELECT title FROM conversations WHERE id = ? AND owner = ?"
            row = base.execute(query, (conversation_id, owner)).fetchone()
        return row[0] if row else None

    def find(self, owner: str, conversation_id: str) -> Conversation:
        """The conversation of that id. One of another owner comes as a copy with an id of its own.

        Raises:
            ValueError: there is none, or it can't be read any more.
        """
        with self._open() as base:
            query = "SELECT owner, value FROM conversations WHERE id = ?"
            row = base.execute(query, (conversation_id,)).fetchone()
        if row is None:
            raise ValueError("There is no conversation behind this link: it was deleted, or the link is not whole.")
        try:
            found = Conversation.model_validate_json(row[1])
        except ValidationError as error:
            raise ValueError("This conversation was kept by another version of Tandem and can't be read.") from error
        return found if row[0] == owner else found.model_copy(update={"id": Conversation().id})

    def rename(self, owner: str, conversation_id: str, title: str) -> None:
        """Raises ValueError where there is no title, or no such conversation of that owner's."""
        title = _one_line(title)
        if not title:
            raise ValueError("Give the conversation a name.")
        with self._open() as base:
            query = "UPDATE conversations SET title = ? WHERE id = ? AND owner = ?"
            _must_have_changed(base.execute(query, (title, conversation_id, owner)))

    def delete(self, owner: str, conversation_id: str) -> None:
        """Votes on it stay: they hold no text. Raises ValueError where that owner has none such."""
        with self._open() as base:
            query = "DELETE FROM conversations WHERE id = ? AND owner = ?"
            _must_have_changed(base.execute(query, (conversation_id, owner)))

    def vote(self, vote: Vote, conversation: Conversation) -> bool:
        """Write a vote down. The same owner's second vote on the same answers does not count: then False."""
        said = conversation.exchanges[vote.exchange].model_dump_json(
            include={"prompt": True, "answers": {"__all__": {"text"}}}
        )
        answers = hashlib.sha256(said.encode()).hexdigest()
        columns, order = json.dumps(vote.columns), json.dumps(vote.order)
        values = (vote.owner, vote.conversation, vote.exchange, answers, columns, order, vote.choice, vote.time)
        with self._open() as base:
            done = base.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
            return done.rowcount == 1

    def votes(self) -> list[Vote]:
        """Everyone's votes, oldest first."""
        with self._open() as base:
            query = (
                "SELECT columns, placed, choice, conversation, exchange, time, owner FROM votes ORDER BY time, rowid"
            )
            rows = base.execute(query).fetchall()
        return [Vote(tuple(Entrant(*e) for e in json.loads(r[0])), tuple(json.loads(r[1])), *r[2:]) for r in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction: all of it is written, or nothing."""
        file = self.file
        with self._lock:
            if self._ready != file or not file.exists():
                _make(file)
                self._ready = file
        with closing(_connect(file)) as base, base:
            yield base


def title_of(conversation: Conversation) -> str:
    """The first prompt's beginning, in one line."""
    return _one_line(conversation.exchanges[0].prompt if conversation.exchanges else "") or "Without a prompt"


def _connect(file: Path) -> sqlite3.Connection:
    base = sqlite3.connect(file, timeout=WAIT_SECONDS)
    base.execute("PRAGMA synchronous = NORMAL")
    return base


def _make(file: Path) -> None:
    """The file with its tables, readable by its user only. Raises ValueError where a newer Tandem wrote it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    with closing(_connect(file)) as base:
        base.execute("PRAGMA journal_mode = WAL")
        base.isolation_level = None
        base.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            base.execute("ROLLBACK")
            raise ValueError(f"{file.name} was written by a newer Tandem: update this one, or move the file away.")
        if version < VERSION:
            for statement in filter(str.strip, SCHEMA.split(";")):
                base.execute(statement)
            base.execute(f"PRAGMA user_version = {VERSION:d}")
        base.execute("COMMIT")


def _must_have_changed(done: sqlite3.Cursor) -> None:
    if not done.rowcount:
        raise ValueError("This conversation is not among yours any more.")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TITLE else line[: LONGEST_TITLE - 1] + "…"
