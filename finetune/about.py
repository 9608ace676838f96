"""What people call a run and note about it: about.json in the run's folder. Its one writer is who looks at the run."""

import json
import threading
from pathlib import Path
from typing import NamedTuple

from finetune.whole import write_atomically

FILE = "about.json"
NAME_LIMIT, NOTE_LIMIT = 80, 4000  # characters
_WRITING = threading.Lock()


class About(NamedTuple):
    """A name in place of the run's label, and a note; both may be empty."""

    name: str = ""
    note: str = ""


def read_about(folder: Path) -> About:
    """What was noted about the run in that folder; nothing where nothing was, or where the file is not ours."""
    try:
        values = json.loads((folder / FILE).read_text())
        return About(str(values.get("name", "")), str(values.get("note", "")))
    except (FileNotFoundError, ValueError, AttributeError):
        return About()


def write_about(folder: Path, name: str, note: str) -> About:
    """Keep a name (one line; empty: the run's label again) and a note. Raises ValueError where one is too long."""
    about = About(" ".join(name.split()), note.strip())
    if len(about.name) > NAME_LIMIT:
        raise ValueError(f"A name has {NAME_LIMIT} characters at most (this one has {len(about.name)}).")
    if len(about.note) > NOTE_LIMIT:
        raise ValueError(f"A note has {NOTE_LIMIT} characters at most (this one has {len(about.note)}).")
    with _WRITING:
        write_atomically(folder / FILE, json.dumps(about._asdict(), ensure_ascii=False))
    return about
