"""Rows from Dolly, a file, the hub or our sample; the split by content; encoding with its label mask.

Nothing here loads torch: the launcher checks a data file with it before a run exists.
"""

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from finetune import readers, schema
from finetune.config import ASSETS, Holdout, TrainConfig
from finetune.prompt import Template, Turn

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
    """A row as tokens: the first `prompt_length` ids are the prompt, which carries loss only where `loss_on` is all."""

    ids: list[int]
    prompt_length: int
    row: Row
    loss_on: Literal["response", "all"] = "response"

    @property
    def supervised_from(self) -> int:
        """Where the targets begin. The first token is never one: nothing stands before it to predict it from."""
        return 1 if self.loss_on == "all" else max(1, self.prompt_length)

    @property
    def supervised(self) -> int:
        """How many tokens carry loss."""
        return max(0, len(self.ids) - self.supervised_from)

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * min(self.supervised_from, len(self.ids)) + self.ids[self.supervised_from :]


class Examples(NamedTuple):
    """Encoded rows, where their longest length is from, and what became of those that were too long."""

    examples: list[Example]
    max_length: int
    shortened: int
    dropped: int
    max_length_from: Literal["setting", "rows", "limit"]
    lengths: list[int]  # tokens of every row before anything was cut or dropped


def load_rows(data: str | None, columns: str | None = None) -> Rows:
    """Rows of a file or a hub data set; of Dolly on the hub where it can be reached; else of our own sample.

    Args:
        data: a .jsonl, .json, .csv or .parquet file, a hub id, or None.
        columns: which column is which (see finetune/schema.py); None finds them by their usual names.
    Raises:
        ValueError: the data can't be had or read, is empty, its columns are not clear, or a row lacks an instruction
            or a response. One sentence.
    """
    if data is not None:
        raw = readers.read(data)
    elif readers.hub_reachable() or readers.is_cached(readers.DOLLY, readers.DOLLY_REVISION):
        raw = readers.read_hub(readers.DOLLY)
    else:
        source = "Tandem's own sample (not Dolly: the hub can't be reached)"
        raw = readers.Raw(readers.read_file(SAMPLE), source, SAMPLE.name)
    rows, digest = [], hashlib.sha256()
    for texts in schema.to_schema(raw.rows, columns, raw.where):
        row = Row(**texts)
        digest.update(json.dumps(row, ensure_ascii=False).encode())
        rows.append(row)
    if not rows:
        raise ValueError(f"There are no rows in {raw.where}: give a file with at least one.")
    return Rows(rows, raw.source, digest.hexdigest())


def normalized(row: Row) -> str:
    """A row's prompt with what hardly matters taken off: NFKC, case folded, runs of no letter or digit to one space."""
    text = unicodedata.normalize("NFKC", f"{row.instruction}\n{row.context}").casefold()
    return re.sub(r"[\W_]+", " ", text).strip()


def place(row: Row) -> float:
    """A number in [0, 1) from a row's normalized prompt: the same prompt lands on the same side for ever.

    The response is left out, so that two answers to one question can't stand on both sides of the split.
    """
    return int.from_bytes(hashlib.sha256(normalized(row).encode()).digest()[:8]) / 2**64


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


def select(config: TrainConfig, rows: Rows) -> Split:
    """The rows that a run of `config` uses: those it trains on, those it validates on, and all that are kept to score.

    Raises ValueError where nothing is left to train on.
    """
    split = split_rows(rows.rows, config.holdout)
    if not split.train:
        raise ValueError(f"The split leaves none of the {len(rows.rows)} rows to train on: give more rows.")
    return Split(take(split.train, config.rows), take(split.validation, config.training.validation_rows), split.test)


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


def encode_split(config: TrainConfig, split: Split, template: Template, limit: int) -> tuple[Examples, list[Example]]:
    """Training and validation rows of a selection to examples of at most `limit` tokens, and of a micro-batch's budget.

    The validation loss is the response's whatever carries loss in training, so that runs can be compared.
    """
    limit = min(limit, config.training.tokens_per_batch)
    train = encode_rows(split.train, template, config.encoding.max_length, limit, config.encoding.loss_on)
    held_out = split.validation
    return train, encode_rows(held_out, template, train.max_length, limit).examples if held_out else []


def encode_rows(
    rows: Sequence[Row],
    template: Template,
    max_length: int | None,
    model_limit: int,
    loss_on: Literal["response", "all"] = "response",
) -> Examples:
    """Rows to examples no longer than `max_length` tokens (None: the 99th percentile of these rows).

    A context that is too long is cut at its end; a row that is still too long is dropped. A response or its end
    token is never cut. Raises ValueError when nothing is left, or where a row has no token to learn from.
    """
    encoded = [_encode(row, template, loss_on) for row in rows]
    lengths = [len(example.ids) for example in encoded]
    chosen = max_length
    if chosen is None:
        chosen = max(64, sorted(lengths)[round(0.99 * (len(lengths) - 1))]) if lengths else model_limit
    found_by: Literal["setting", "rows", "limit"] = "rows" if max_length is None else "setting"
    found_by = found_by if chosen <= model_limit else "limit"
    chosen = min(chosen, model_limit)
    fitted = [e if len(e.ids) <= chosen else _shorten(e, template, chosen) for e in encoded]
    kept = [example for example in fitted if example is not None]
    if not kept:
        raise ValueError(f"None of the {len(rows)} rows fits into {chosen} tokens: raise max_length.")
    shortened = sum(after is not None and after is not before for before, after in zip(encoded, fitted, strict=True))
    return Examples(kept, chosen, shortened, len(rows) - len(kept), found_by, lengths)


def _encode(row: Row, template: Template, loss_on: Literal["response", "all"]) -> Example:
    prompt, response = template.encode(Turn(row.instruction, row.context, row.response))
    example = Example(prompt + response, len(prompt), row, loss_on)
    if not example.supervised:  # a step of such rows alone would divide by zero
        raise ValueError(f"The row {row.instruction[:40]!r} leaves no token to learn from: take it out of the data.")
    return example


def _shorten(example: Example, template: Template, max_length: int) -> Example | None:
    """The example with its context cut so that it fits, or None where even no context leaves it too long."""
    row = example.row
    words = row.context.split(" ")
    excess = len(example.ids) - max_length
    while row.context and excess > 0:
        words = words[: -max(1, excess // 4)]  # a word is a token or more, so this never cuts far too much
        row = row._replace(context=" ".join(words).strip())
        example = _encode(row, template, example.loss_on)
        excess = len(example.ids) - max_length
    return example if excess <= 0 else None
