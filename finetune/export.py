"""python -m finetune export RUN: a merged model or its adapter for other software. Nothing half-written looks whole."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.ollama import modelfile
from finetune.run import Run
from finetune.whole import finish_folder, is_whole

GGUF_NAME = "model-{precision}.gguf"


def adapter(run: Run, target: Path) -> Path:
    """The adapter alone, in PEFT's format, as a folder `target`."""
    if not is_whole(run.adapter):
        raise ValueError(f"{run.id} has no whole adapter: train it to its end, or resume it.")
    hidden = _hidden(target)
    names = ("adapter_config.json", "adapter_model.safetensors")
    try:
        hidden.mkdir()
        for name in names:
            shutil.copy2(run.adapter / name, hidden)
        finish_folder(hidden, target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


def to_gguf(run: Run, target: Path, precision: Any) -> Path:
    """The merged model as one GGUF file `target`. Raises ValueError for a kind of model that is not known there."""
    from finetune.gguf_file import write_gguf

    folder = run.merged()
    hidden = _hidden(target)
    try:
        write_gguf(folder, hidden, precision, run.id)
        hidden.rename(target)
    finally:
        hidden.unlink(missing_ok=True)
    return target


def to_ollama(run: Run, target: Path, precision: Any) -> Path:
    """A folder with a GGUF file and the Modelfile that `ollama create` takes."""
    folder = run.merged()
    hidden = _hidden(target)
    try:
        hidden.mkdir()
        name = GGUF_NAME.format(precision=precision)
        to_gguf(run, hidden / name, precision)
        (hidden / "Modelfile").write_text(modelfile(folder, name))
        finish_folder(hidden, target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


def to_hub(run: Run, repo: str, private: bool, dry_run: bool, say: Callable[[str], None]) -> str:
    """Push the merged model to a hub repository; a dry run says what would be sent, and sends nothing.

    Raises:
        ValueError: no merged model, no such name, or no right to write there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    folder = run.merged()
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no hub repository: give owner/name.") from error
    if "/" not in repo:
        raise ValueError(f"{repo!r} is no hub repository: give owner/name.")
    files = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    for path in files:
        say(f"{path.stat().st_size:>15,} {path.name}")
    if dry_run:
        return f"{len(files)} files would go to {repo}; nothing was sent."
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        sent = api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=["manifest.json"])
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"The hub did not take {repo}: log in with `hf auth login` and try again ({error})."
        ) from error
    return str(sent)


def _hidden(target: Path) -> Path:
    """A hidden name beside `target`. Raises ValueError where something is there, or there is no such folder."""
    if target.exists():
        raise ValueError(f"{target} exists: name another place with --to, or remove it.")
    if not target.parent.is_dir():
        raise ValueError(f"There is no folder {target.parent} to export into.")
    hidden = target.with_name(f".exporting-{target.name}")
    if hidden.is_dir():
        shutil.rmtree(hidden)
    hidden.unlink(missing_ok=True)
    return hidden
