"""A finished run in milliseconds: what a column needs of one."""

import json
import shutil
from pathlib import Path

from finetune.config import TrainConfig
from finetune.run import Run
from finetune.whole import finish_folder


def make_run(runs: Path, name: str, model: Path, sha256: str, adapter: Path) -> Run:
    """A run directory as a finished training leaves it, with that adapter."""
    run = Run(runs / name)
    run.path.mkdir(parents=True)
    config = TrainConfig(model=str(model)).model_dump()
    (run.path / "config.json").write_text(json.dumps({"label": name, "config": config}))
    (run.path / "facts.json").write_text(json.dumps({"template": "chat", "model_sha256": sha256}))
    (run.path / "status.json").write_text(json.dumps({"state": "finished"}))
    copy_whole(adapter, run.adapter)
    return run


def copy_whole(adapter: Path, target: Path) -> None:
    """An adapter's files under another name, declared whole."""
    hidden = target.with_name(f".{target.name}")
    shutil.copytree(adapter, hidden, ignore=shutil.ignore_patterns("manifest.json"))
    finish_folder(hidden, target)
