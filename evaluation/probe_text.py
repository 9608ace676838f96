"""Plain text for the forgetting probe: ours, or a file. Nothing here loads torch."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from finetune.config import ASSETS

OWN = "default"
OWN_TEXT = ASSETS / "probe.txt"
MOST_BYTES = 4 * 2**20
KIND = re.compile(r"^--- (\w+)$", re.MULTILINE)


class Passage(NamedTuple):
    """A piece of text, and of what kind it is."""

    kind: str
    text: str


class Text(NamedTuple):
    """What is read, and what it is in words."""

    passages: list[Passage]
    about: str
    sha256: str


def read_text(name: str) -> Text:
    """The passages of a text file, or of our own text ("default").

    A line "--- kind" begins a passage of that kind; in a file without such lines, blank lines part the passages.

    Raises:
        ValueError: the file can't be read, is too large, or holds no text.
    """
    file = OWN_TEXT if name == OWN else Path(name)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"The text {file} is larger than {MOST_BYTES // 2**20} MiB: give a part of it.")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The text {file} can't be read as UTF-8 text: {error}.") from error
    _, *marked = KIND.split(text)
    pairs = list(zip(marked[::2], marked[1::2], strict=True)) or [("text", part) for part in re.split(r"\n\s*\n", text)]
    passages = [Passage(kind, part.strip("\n")) for kind, part in pairs if part.strip()]
    if not passages:
        raise ValueError(f"There is no text in {file}.")
    about = "Tandem's own text" if name == OWN else f"the text {file.name}"
    return Text(passages, about, hashlib.sha256(text.encode()).hexdigest())
