"""A person's own rows, looked into before anything is trained on them: columns, mapping, and a preview."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from finetune import readers, schema
from finetune.data import Row
from studio.form import about_file, check_upload, hub_id

PREVIEW_ROWS = 5
SHOWN_COLUMNS = 200
PARTS = (*schema.TEXTS, "messages")
LABELS = {**{part: part.capitalize() for part in schema.TEXTS}, "messages": "Conversation"}


class Found(NamedTuple):
    """What is in a file or data set, as far as the page needs to remember it."""

    name: str
    """For sentences."""
    rows: int
    columns: list[str]
    usual: dict[str, str]
    """Column by part, found by the usual names; {} where that is not clear."""
    first: list[Any]
    """The first few raw rows."""
    problem: str
    """What is wrong with a row under the usual names; empty where all is well."""


class Preview(NamedTuple):
    """The first rows as a run would understand them, and what is to be said."""

    rows: list[Row]
    sentence: str


def look(upload: str | None, hub: str | None) -> Found | None:
    """What an uploaded file (or a hub data set) holds; None where neither is given.

    Raises:
        ValueError: it can't be read as what its name says, or can't be had. One sentence.
    """
    if upload:
        file = check_upload(upload)
        try:
            rows, name = readers.read_file(file), file.name
        except ValueError as error:
            raise ValueError(about_file(error, upload)) from error
    elif hub and hub.strip():
        rows, _, name = readers.read(hub_id(hub))
    else:
        return None
    if not rows:
        raise ValueError(f"There are no rows in {name}: give a file with at least one.")
    columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    if not columns:
        raise ValueError(f"Row 1 of {name} is no object with instruction and response.")
    usual, problem = {}, ""
    try:
        usual = schema.find_columns(columns, None, name)
        for _ in schema.to_schema(rows, None, name):
            pass
    except ValueError as error:
        problem = str(error)
    return Found(name, len(rows), columns[:SHOWN_COLUMNS], usual, rows[:PREVIEW_ROWS], problem)


def columns_setting(found: Found, mapping: Mapping[str, str | None]) -> str | None:
    """The setting `columns` for what was chosen; None where the usual names already say it, or nothing is chosen.

    Nothing is chosen too while the page has not yet shown its choices: whoever starts then gets the usual names.

    Raises:
        ValueError: a column's name can't stand in the setting.
    """
    chosen = {part: column for part, column in mapping.items() if column}
    if not chosen or chosen == found.usual:
        return None
    for column in chosen.values():
        if "," in column or column != column.strip():
            raise ValueError(f"The column {column!r} has a comma or a space at its edge: rename it in the file.")
    if "messages" in chosen:
        return ", ".join(f"{part}={chosen[part]}" for part in ("messages", "category") if part in chosen)
    return ", ".join(f"{part}={chosen.get(part, '')}" for part in schema.TEXTS)


def preview(found: Found, mapping: Mapping[str, str | None]) -> Preview:
    """The first rows under that choice of columns; what is wrong with one is a sentence and not an error."""
    rows: list[Row] = []
    try:
        texts = schema.to_schema(found.first, columns_setting(found, mapping), found.name)
        rows.extend(Row(**parts) for parts in islice(texts, PREVIEW_ROWS))
    except ValueError as error:
        return Preview(rows, str(error))
    if found.problem and columns_setting(found, mapping) is None:
        return Preview(rows, found.problem)
    return Preview(rows, f"{found.rows:,} rows in {found.name}. The first of them, as they are understood:")
