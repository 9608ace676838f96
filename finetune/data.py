"""Rows from Dolly, a file or our sample; the split by content; encoding with its label mask.

Nothing here loads torch: the launcher checks a data file with it before a run exists.
"""

import hashlib
import json
import os
import re
import socket
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from finetune.config import ASSETS, Holdout
from finetune.prompt import Template, Turn

DOLLY = "databricks/databricks-dolly-15k"
DOLLY_REVISION = "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"
SAMPLE = ASSETS / "dolly_sample.jsonl"
IGNORED = -100  # the label that torch's cross-entropy skips


class Row(NamedTuple):
    """One row in Dolly's schema."""

    instruction: str
    context: str
    response: str
    category: str


class Rows(NamedTuple):
    """Rows and where they came from, in words that are shown and kept in the run's config."""

    rows: list[Row]
    source: str
    sha256: str


class Split(NamedTuple):
    """The rows by what they are for."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]


class Example(NamedTuple):
    """A row as tokens: the first `prompt_length` ids are the prompt and carry no loss."""

    ids: list[int]
    prompt_length: int
    row: Row

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.prompt_length + self.ids[self.prompt_length :]


class Examples(NamedTuple):
    """Encoded rows, and what became of those that were too long."""

    examples: list[Example]
    max_length: int
    shortened: int
    dropped: int


def load_rows(data: str | None) -> Rows:
    """Rows of a file; of Dolly on the hub where it can be reached; else of our own sample.

    Raises:
        ValueError: the file can't be read, is empty, or a row of it lacks an instruction or a response.
    """
    if data is not None:
        path = Path(data).expanduser()
        return _as_rows(_read_file(path), f"file {path.name}", str(path))
    if hub_reachable() or dolly_is_cached():
        from datasets import load_dataset

        rows = load_dataset(DOLLY, split="train", revision=DOLLY_REVISION)
        return _as_rows(rows, f"{DOLLY} @ {DOLLY_REVISION[:8]}", DOLLY)
    return _as_rows(_read_file(SAMPLE), "Tandem's own sample (not Dolly: the hub can't be reached)", SAMPLE.name)


def hub_reachable(timeout_seconds: float = 3.0) -> bool:
    """Whether the hub answers; asked first because its client retries for half a minute where there is no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def dolly_is_cached() -> bool:
    """Whether Dolly's pinned revision was fetched before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(DOLLY, f"{DOLLY.split('/')[1]}.jsonl", revision=DOLLY_REVISION, repo_type="dataset")
    return isinstance(found, str)


def _read_file(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The data file {path} can't be read: {_reason(error)}.") from error
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ValueError(f"The data file {path} is not JSON: {error}.") from error
        if not isinstance(rows, list):
            raise ValueError(f"The data file {path} must hold a list of rows.")
        return rows
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"Line {number} of {path} is not JSON: {error}.") from error
    return rows


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return "it is not UTF-8 text"


def _as_rows(raw: Iterable[Any], source: str, where: str) -> Rows:
    rows, digest = [], hashlib.sha256()
    for number, value in enumerate(raw, 1):
        row = _as_row(value, number, where)
        digest.update(json.dumps(row, ensure_ascii=False).encode())
        rows.append(row)
    if not rows:
        raise ValueError(f"There are no rows in {where}: give a file with at least one.")
    return Rows(rows, source, digest.hexdigest())


def _as_row(value: Any, number: int, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"Row {number} of {where} is no object with instruction and response.")
    texts = {}
    for name in Row._fields:
        text = value.get(name)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"Row {number} of {where}: its {name} must be text.")
        texts[name] = (text or "").strip()
    for name in ("instruction", "response"):
        if not texts[name]:
            raise ValueError(f"Row {number} of {where} has no {name}: add one, or take the row out.")
    return Row(**{**texts, "category": texts["category"] or "uncategorized"})


def place(row: Row) -> float:
    """A number in [0, 1) from a row's normalized prompt: the same prompt lands on the same side for ever.

    Normalized: NFKC, case folded, runs of anything that is no letter or digit to one space. The response is left out,
    so that two answers to one question can't stand on both sides of the split.
    """
    text = unicodedata.normalize("NFKC", f"{row.instruction}\n{row.context}").casefold()
    normal = re.sub(r"[\W_]+", " ", text).strip()
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8]) / 2**64


def split_rows(rows: Sequence[Row], holdout: Holdout) -> Split:
    """test: the rows placed lowest; validation: those above; train: the rest. Each in order of place."""
    split = Split([], [], [])
    for row in sorted(rows, key=place):
        spot = place(row)
        if spot < holdout.test_fraction:
            split.test.append(row)
        elif spot < holdout.test_fraction + holdout.validation_fraction:
            split.validation.append(row)
        else:
            split.train.append(row)
    return split


def take(rows: Sequence[Row], count: int | None) -> list[Row]:
    """`count` of the rows, each category in proportion, those placed lowest first: the same for every run."""
    if count is None or count >= len(rows):
        return list(rows)
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=place):
        groups[row.category].append(row)
    # Rank within its category as a share of it: taking the lowest shares is proportional at every count.
    shares = [((rank + 0.5) / len(group), row) for group in groups.values() for rank, row in enumerate(group)]
    return [row for _, row in sorted(shares, key=lambda pair: (pair[0], pair[1].category))[:count]]


def encode_rows(rows: Sequence[Row], template: Template, max_length: int | None, model_limit: int) -> Examples:
    """Rows to examples no longer than `max_length` tokens (None: the 99th percentile of these rows).

    A context that is too long is cut at its end; a row that is still too long is dropped. A response or its end
    token is never cut. Raises ValueError when nothing is left.
    """
    encoded = [_encode(row, template) for row in rows]
    if max_length is None:
        lengths = sorted(len(example.ids) for example in encoded)
        max_length = max(64, lengths[round(0.99 * (len(lengths) - 1))]) if lengths else model_limit
    max_length = min(max_length, model_limit)
    kept, shortened, dropped = [], 0, 0
    for example in encoded:
        fitted = example if len(example.ids) <= max_length else _shorten(example, template, max_length)
        if fitted is None:
            dropped += 1
        else:
            kept.append(fitted)
            shortened += fitted is not example
    if not kept:
        raise ValueError(f"None of the {len(rows)} rows fits into {max_length} tokens: raise max_length.")
    return Examples(kept, max_length, shortened, dropped)


def _encode(row: Row, template: Template) -> Example:
    prompt, response = template.encode(Turn(row.instruction, row.context, row.response))
    return Example(prompt + response, len(prompt), row)


def _shorten(example: Example, template: Template, max_length: int) -> Example | None:
    """The example with its context cut so that it fits, or None where even no context leaves it too long."""
    row = example.row
    words = row.context.split(" ")
    excess = len(example.ids) - max_length
    while row.context and excess > 0:
        words = words[: -max(1, excess // 4)]  # a word is a token or more, so this never cuts far too much
        row = row._replace(context=" ".join(words).strip())
        example = _encode(row, template)
        excess = len(example.ids) - max_length
    return example if excess <= 0 else None
