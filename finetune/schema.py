"""Which column is what: raw rows of any of the usual shapes to instruction, context, response, category.

A shape is found by the columns' usual names, or said in words: "instruction=question, response=answer".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Of several columns that are there, the first one of its line is taken.
USUAL_NAMES = {
    "instruction": ("instruction", "prompt", "question"),
    "context": ("context", "input"),
    "response": ("response", "output", "completion", "answer"),
    "category": ("category",),
    "messages": ("messages", "conversations"),
}
TEXTS = ("instruction", "context", "response", "category")
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}  # ShareGPT's words for them
BLANK_LINE = "\n\n"


class Message(NamedTuple):
    """One message of a conversation; `role` is user, assistant, system, or another as the row has it."""

    role: str
    text: str


def to_schema(raw: Sequence[Any], columns: str | None, where: str) -> Iterator[dict[str, str]]:
    """Every row as instruction, context, response and category, stripped texts; an absent category is "uncategorized".

    Args:
        raw: what a reader found; dicts, if all is well.
        columns: a mapping such as "instruction=question, response=answer"; a part of it that is left out is found
            by its usual name, and "context=" leaves that part empty. None: all by their usual names.
        where: the file or data set, for the sentences.
    Raises:
        ValueError: the mapping is off, no known shape fits, or a row lacks what it must have. One sentence.
    """
    there = list(dict.fromkeys(name for row in raw if isinstance(row, dict) for name in row))
    names = find_columns(there, columns, where) if there else {}
    for number, row in enumerate(raw, 1):
        if not isinstance(row, dict):
            raise ValueError(f"Row {number} of {where} is no object with instruction and response.")
        yield _checked(row, names, f"Row {number} of {where}")


def find_columns(there: Sequence[str], columns: str | None, where: str) -> dict[str, str]:
    """The column of each part of a row, by what is said in `columns` and else by the usual names.

    A conversation ("messages") is used where it was named, or where there is no whole pair of instruction and response.
    Raises ValueError that lists the columns there are.
    """
    said = _parse(columns or "", there, where)
    names = {part: column for part, column in said.items() if column}
    for part, usual in USUAL_NAMES.items():
        free = [name for name in usual if name in there and name not in said.values()]
        if part not in said and free:
            names[part] = free[0]
    pair = "instruction" in names and "response" in names
    if pair and "messages" not in said:
        return {part: names[part] for part in TEXTS if part in names}
    if "messages" in names and not {"instruction", "context", "response"} & set(said):
        return {part: names[part] for part in ("messages", "category") if part in names}
    raise ValueError(
        f"Which columns of {where} are instruction and response? Set columns, such as "
        f'"instruction=question, response=answer"; there are: {_listed(there)}.'
    )


def _parse(columns: str, there: Sequence[str], where: str) -> dict[str, str]:
    """ "instruction=question, context=" as a dict; an empty name leaves a part out."""
    said: dict[str, str] = {}
    for clause in filter(None, (clause.strip() for clause in columns.split(","))):
        part, equals, column = (piece.strip() for piece in clause.partition("="))
        if part not in USUAL_NAMES or not equals or part in said:
            raise ValueError(
                f"columns: {clause!r} must be one of {', '.join(USUAL_NAMES)}, once, then = and a column; "
                f"{where} has: {_listed(there)}."
            )
        if column and column not in there:
            raise ValueError(f"columns: there is no column {column!r} in {where}; there are: {_listed(there)}.")
        said[part] = column
    return said


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Column names for a sentence: they come from a file, so neither their number nor their length is left to it."""
    shown = [" ".join(str(name).split())[:40] for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _checked(row: Mapping[str, Any], names: Mapping[str, str], at: str) -> dict[str, str]:
    parts = {part: row.get(column) for part, column in names.items()}
    if "messages" in parts:
        parts |= _turn(_messages(parts.pop("messages"), at), at)
    texts = {}
    for part in TEXTS:
        text = parts.get(part)
        if text is not None and not isinstance(text, str):
            way_out = "" if part in ("instruction", "response") else f', or left out with columns="{part}="'
            raise ValueError(f"{at}: its {part} must be text{way_out}.")
        texts[part] = (text or "").strip()
        if not texts[part].isascii() and any("\ud800" <= letter <= "\udfff" for letter in texts[part]):
            raise ValueError(f"{at}: its {part} has half a character in it (a lone surrogate): take it out.")
    for part in ("instruction", "response"):
        if not texts[part]:
            raise ValueError(f"{at} has no {part}: add one, or take the row out.")
    return texts | {"category": texts["category"] or "uncategorized"}


def _messages(value: Any, at: str) -> list[Message]:
    """A conversation as role/content (OpenAI) or from/value (ShareGPT); messages without text are passed over."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{at}: its messages must be a list of objects with role and content.")
    found = []
    for message in value:
        role, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(text, str | None):
            raise ValueError(f"{at}: each of its messages needs a role and a content that are text.")
        if text and text.strip():
            role = role.strip().lower()
            found.append(Message(ROLES.get(role, role), text.strip()))
    return found


def _turn(messages: list[Message], at: str) -> dict[str, str]:
    """The last answer as response, what was asked last before it as instruction, the rest before it as context.

    System messages stand in front of the instruction; the context is plain dialogue ("User: …"), oldest first.
    """
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise ValueError(f"{at}: its messages have no answer of an assistant: add one, or take the row out.")
    answer = len(roles) - 1 - roles[::-1].index("assistant")
    if "user" not in roles[:answer]:
        raise ValueError(f"{at}: its messages have no user before the last answer: add one, or take the row out.")
    question = answer - 1 - roles[:answer][::-1].index("user")
    system = [message.text for message in messages[:answer] if message.role == "system"]
    earlier = [m for i, m in enumerate(messages[:answer]) if i != question and m.role != "system"]
    return {
        "instruction": BLANK_LINE.join([*system, messages[question].text]),
        "context": "\n".join(f"{message.role.capitalize()}: {message.text}" for message in earlier),
        "response": messages[answer].text,
    }
