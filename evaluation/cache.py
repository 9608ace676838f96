"""Answers and likelihoods that were paid for once: append-only files, one for all that decides a result but its tokens.

A file's name is a hash of its context: weights, adapter, strength, template, sampling, precision, batch, versions. A
line is one prompt's result, keyed by a hash of its token ids. So a changed adapter is another file, and the base's file
serves every run on that base. Lines are flushed as they come: a killed evaluation goes on from its last whole line.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.run import runs_folder

Value = dict[str, Any]


def digest(value: Any) -> str:
    """Hash of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def ids_key(*parts: Sequence[int]) -> str:
    """Hash of token ids, where one part ends and the next begins included."""
    return digest([list(part) for part in parts])


class Cache:
    """Results in one context, of one kind ("answers" or "likelihoods")."""

    def __init__(self, kind: str, context: dict[str, Any], folder: Path | None = None) -> None:
        """`context`: everything that decides a result apart from the token ids. `folder`: for other than the runs'."""
        folder = (folder or runs_folder() / ".cache") / kind
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{digest(context)[:40]}.jsonl"
        self._known = self._read()
        ends_well = not self.file.exists() or self.file.read_bytes()[-1:] in (b"", b"\n")
        self._stream = self.file.open("a", encoding="utf-8")
        if not ends_well:
            self._write("")  # so that half a line of a killed process spoils no other
        if not self.file.stat().st_size:
            self._write(json.dumps({"context": context}))

    def get(self, key: str) -> Value | None:
        return self._known.get(key)

    def put(self, key: str, value: Value) -> None:
        """Keep a result; it outlives a kill of this process from here on."""
        self._known[key] = value
        self._write(json.dumps({"key": key, "value": value}, ensure_ascii=False))

    def close(self) -> None:
        self._stream.close()

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _read(self) -> dict[str, Value]:
        known: dict[str, Value] = {}
        if self.file.exists():
            for line in self.file.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # half a line, of a process that was killed while it wrote
                if isinstance(entry, dict) and "key" in entry and isinstance(entry.get("value"), dict):
                    known[entry["key"]] = entry["value"]
        return known
