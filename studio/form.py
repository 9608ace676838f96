"""The page's fields to a checked config, and what they offer. What is left alone comes from the preset."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from finetune.config import TrainConfig
from finetune.model import ALIASES, is_local
from finetune.readers import HUB_ID, READERS
from finetune.run import list_runs, runs_folder
from studio import view
from studio.settings import config_from

UPLOAD_LIMIT = 200 * 2**20  # bytes


def train_config(
    preset_name: str, model: str, rows: float | None, steps: float | None, data: str | None
) -> TrainConfig:
    """A config from the everyday fields and an uploaded file. Raises ValueError with a sentence."""
    return checked_config(preset_name, {"model": model, "rows": rows, "steps": steps}, upload=data)


def checked_config(
    preset_name: str,
    values: Mapping[str, Any],
    upload: str | None = None,
    hub: str | None = None,
    columns: str | None = None,
) -> TrainConfig:
    """A config from the page.

    A model is an alias or a hub id here and rows are uploaded or have a hub id: a path typed into a page must not
    reach into the machine's folders.

    Args:
        preset_name: what it starts from.
        values: settings by name, as their components show them.
        upload: a file of rows as it was uploaded; it is kept beside the runs.
        hub: or a data set's hub id.
        columns: which column is which.
    Raises:
        ValueError: with a sentence.
    """
    if is_local(str(values.get("model", "")).strip()):
        raise ValueError(f"Here a model is one of {', '.join(ALIASES)} or a hub id; for a folder use the command line.")
    own: dict[str, Any] = {}
    if upload and (hub or "").strip():
        raise ValueError("There are two sources of rows, a file and a data set on the hub: take one of them away.")
    if upload:
        own = {"data": keep_upload(upload), "columns": columns}
    elif hub and hub.strip():
        own = {"data": hub_id(hub), "columns": columns}
    return config_from(preset_name, {**values, **own})


def hub_id(text: str) -> str:
    """A data set's id as it was typed. Raises ValueError for what is none, and for what could be a path here."""
    name = text.strip()
    if not HUB_ID.fullmatch(name) or Path(name).suffix.lower() in READERS or os.path.exists(name):
        raise ValueError("A data set on the hub is named owner/name or owner/name@revision; a file is uploaded.")
    return name


def check_upload(upload: str) -> Path:
    """An uploaded file, if it may be read. Raises ValueError: too large, or of no kind that rows come in."""
    file = Path(upload)
    if file.suffix.lower() not in READERS:
        raise ValueError(f"{file.name} is none of {', '.join(READERS)}: rows come in one of these.")
    if file.stat().st_size > UPLOAD_LIMIT:
        raise ValueError(f"{file.name} is larger than {UPLOAD_LIMIT // 2**20} MB: use the command line for it.")
    return file


def keep_upload(upload: str) -> str:
    """A copy of an uploaded file beside the runs, named by name and content: evaluations need it long after the upload.

    Raises:
        ValueError: too large, or no file of a kind that rows come in.
    """
    file = check_upload(upload)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = runs_folder() / ".uploads"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")[:40] or "rows"
    kept = folder / f"{name}-{digest[:16]}{file.suffix.lower()}"
    if not kept.exists():
        partial = kept.with_suffix(".part")
        shutil.copyfile(file, partial)
        partial.replace(kept)
    return str(kept)


def about_file(error: ValueError, upload: str | None) -> str:
    """An error's sentence with the file named as the person knows it, not by where it lies here."""
    text = str(error)
    if not upload:
        return text
    name = Path(upload).name
    text = text.replace(str(upload), name)
    return re.sub(re.escape(str(runs_folder() / ".uploads")) + r"/[\w.-]+", name.replace("\\", r"\\"), text)


def offer_runs(current: str | None = None, with_adapter: bool = False) -> Any:
    """A dropdown's update: the runs there are, newest first, keeping the chosen one if it is still there."""
    choices = view.run_choices(list_runs(), with_adapter)
    known = [run_id for _, run_id in choices]
    return gr.update(choices=choices, value=current if current in known else next(iter(known), None))


def offer_choices(with_adapter: bool = False) -> Any:
    """The runs there are, without a word on which is chosen: a slow answer must not undo what was chosen meanwhile."""
    return gr.update(choices=view.run_choices(list_runs(), with_adapter))


def offer_tuned(current: str | None = None) -> Any:
    """The same with the runs that have an adapter."""
    return offer_runs(current, with_adapter=True)
