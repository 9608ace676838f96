"""The page's few fields to a checked config, and what they offer. What is left alone comes from the preset."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from finetune.config import TrainConfig, preset, with_settings
from finetune.model import ALIASES, is_local
from finetune.readers import READERS
from finetune.run import list_runs, runs_folder
from studio import view

UPLOAD_LIMIT = 200 * 2**20  # bytes


def train_config(
    preset_name: str, model: str, rows: float | None, steps: float | None, data: str | None
) -> TrainConfig:
    """A config from the page. Raises ValueError with a sentence.

    A model is an alias or a hub id here: a path typed into a page must not reach into the machine's folders.
    """
    if is_local(model):
        raise ValueError(f"Here a model is one of {', '.join(ALIASES)} or a hub id; for a folder use the command line.")
    settings = {"model": model.strip(), "rows": rows, "steps": steps, "data": keep_upload(data) if data else None}
    return with_settings(preset(preset_name), settings)


def keep_upload(upload: str) -> str:
    """A copy of an uploaded file beside the runs, named by content: evaluations need the rows long after the upload.

    Raises:
        ValueError: too large, or no file of a kind that rows come in.
    """
    file = Path(upload)
    if file.suffix.lower() not in READERS:
        raise ValueError(f"{file.name} is none of {', '.join(READERS)}: rows come in one of these.")
    if file.stat().st_size > UPLOAD_LIMIT:
        raise ValueError(f"{file.name} is larger than {UPLOAD_LIMIT // 2**20} MB: use the command line for it.")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = runs_folder() / ".uploads"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{digest[:32]}{file.suffix.lower()}"
    if not kept.exists():
        partial = kept.with_suffix(".part")
        shutil.copyfile(file, partial)
        partial.replace(kept)
    return str(kept)


def offer_runs(current: str | None = None, with_adapter: bool = False) -> Any:
    """A dropdown's update: the runs there are, newest first, keeping the chosen one if it is still there."""
    choices = view.run_choices(list_runs(), with_adapter)
    known = [run_id for _, run_id in choices]
    return gr.update(choices=choices, value=current if current in known else next(iter(known), None))


def offer_tuned(current: str | None = None) -> Any:
    """The same with the runs that have an adapter."""
    return offer_runs(current, with_adapter=True)
