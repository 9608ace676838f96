"""python -m finetune merge RUN: from a run to a standalone model, with a certificate of how faithful it is."""

import json
import sys
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from finetune import certificate, room
from finetune.certificate import Certificate
from finetune.merge import ONTO, Onto, Parts, check_disk, gather, workplace, write_merged
from finetune.model import Say
from finetune.run import Run
from finetune.whole import finish_folder, is_whole


def merge(run: Run, onto: Literal["auto"] | Onto, target: Path | None, rows: int, say: Say) -> tuple[Path, Certificate]:
    """Merge the adapter of `run` both ways, measure both, and keep one; it appears whole, or not at all.

    Args:
        run: whose adapter is merged.
        onto: which to keep; "auto" is the one with the lowest held-out loss.
        target: the folder to make; None: `merged` in the run's.
        rows: held-out rows to measure on.
        say: told what goes on.

    Returns:
        The folder, and its certificate.

    Raises:
        ValueError: the folder exists, the disk is too small, or the adapter or its base can't be had.
    """
    target = (target or run.path / "merged").resolve()
    if target.exists():
        whole = "a merged model already" if is_whole(target) else "something else"
        raise ValueError(f"{target} exists and holds {whole}: name another folder with --to, or remove it.")
    if not target.parent.is_dir():
        raise ValueError(f"There is no folder {target.parent} to put the merged model into.")
    parts = gather(run, say)
    check_disk(parts, target.parent, len(ONTO))
    with room.claimed(lambda: room.base_fits(parts.source), lambda: False, say):
        say(f"Looking at {rows} held-out rows with the adapter")
        seen = certificate.reference(parts, rows)
    with workplace(target.parent) as work:
        folders: dict[Onto, Path] = {name: Path(work) / name for name in ONTO}
        for name, folder in folders.items():
            say(f"Adding the adapter to {certificate.NAMES[name]}")
            _write(parts, name, folder)
        made = certificate.certify(parts, onto, folders, seen, say)
        kept = next(folder for name, folder in folders.items() if name == made.chosen)
        (kept / "certificate.json").write_text(made.model_dump_json(indent=2) + "\n")
        (kept / "README.md").write_text(model_card(parts, made))
        finish_folder(kept, target)
    return target, made


def _write(parts: Parts, onto: Onto, folder: Path) -> None:
    bar = tqdm(total=parts.size, unit="B", unit_scale=True, desc=f"merge onto {onto}", disable=not sys.stderr.isatty())
    with bar:
        write_merged(parts, onto, folder, bar.update)


def model_card(parts: Parts, made: Certificate) -> str:
    """README.md of the merged model: what it is, how it was trained and asked, and its certificate."""
    config, facts = parts.run.config()["config"], parts.run.facts()
    training = json.dumps({"lora": config["lora"], "training": facts["chosen"]["training"]}, indent=2)
    stops = " or ".join(["its end token", *(repr(stop) for stop in parts.template.stop_strings)])
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [qlora, tandem]
---

# {config["model"]}, fine-tuned

{facts["model"]}, fine-tuned by QLoRA on {facts["rows"]["train"]} rows of {facts["data"]}, and merged into full weights.
The terms of the base model and of the data hold for it.

## How faithful is the merge?

{made.sentence()}

`certificate.json` has the figures of the other ways to merge.

## How to ask it

With its chat template (`tokenizer.apply_chat_template`), which writes the prompt that it was trained on
(the "{parts.template.id}" template). An answer ends with {stops}.

## How it was trained

```json
{training}
```
"""
