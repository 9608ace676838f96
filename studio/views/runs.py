"""Runs as the page shows them: the list with its small curves, one run's facts, two runs' settings side by side."""

import time
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from finetune.config import TrainConfig
from finetune.disk import Disk, disk, folder_size
from finetune.run import ENDED, Run
from studio import view
from studio.views.curves import curve, losses

READING_SECONDS = 0.03  # the curves that are not read in this time are drawn with the next look
SIZE_SECONDS = 20  # a folder is measured again after this
PARTS = {
    "adapter": "adapter",
    "checkpoints": "checkpoints",
    "merged": "merged model",
    "evals": "evaluations",
    "exports": "exports",
}


def size(run: Run) -> int:
    """Bytes of a run's folder, as it was a moment ago."""
    return _size(run.path, int(time.monotonic() // SIZE_SECONDS))


@lru_cache(maxsize=2048)
def _size(folder: Path, moment: int) -> int:
    return folder_size(folder)


def amount(count: float) -> str:
    """Bytes for people: "1.2 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def disk_line() -> str:
    """What is used of the disk, and what is left."""
    found = _disk(int(time.monotonic() // SIZE_SECONDS))
    return f"Disk: {amount(found[0])} in runs · {amount(found[1])} in the model cache · {amount(found[2])} free"


@lru_cache(maxsize=1)
def _disk(moment: int) -> Disk:
    return disk()


def list_html(runs: Sequence[Run], chosen: str | None) -> str:
    """All runs, a line each; a line is chosen by its button or anywhere on it."""
    if not runs:
        return "<p>No run yet: start one under Fine-tune.</p>"
    heads = ("run", "state", "loss", "best", "model and data", "steps", "size", "started")
    head = "".join(f'<th scope="col" class="c-{at}">{name}</th>' for at, name in enumerate(heads))
    moment, until = int(time.monotonic()), time.monotonic() + READING_SECONDS
    for run in runs:
        losses(run, until)
    body = "".join(_line(run, run.id == chosen, moment) for run in runs)
    return f'<table class="plain runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


@lru_cache(maxsize=2048)
def _line(run: Run, is_chosen: bool, moment: int) -> str:
    """Made once a second, however many pages are open."""
    record, status, found = run.config(), run.status(), losses(run, 0)
    config, key = record.get("config", {}), escape(run.id)
    state = status["state"]
    best = "" if found.best is None else f'<span title="best {found.kind} loss">{found.best:.3f}</span>'
    source = escape(record.get("data", {}).get("source", ""))
    steps = config.get("training", {}).get("steps", "")
    done = f"{status['step']} / {status.get('max_steps', steps)}" if "step" in status else f"{steps}"
    cells = [
        f'<button type="button" data-run="{key}" aria-pressed="{str(is_chosen).lower()}">{escape(run.name())}</button>',
        f'<span class="state {state}">{state}</span>',
        curve(found),
        best,
        f"{escape(str(config.get('model', '')))}<br><small>{source}</small>",
        escape(done),
        amount(size(run)),
        view.started(run)[:16],
    ]
    row = "".join(f'<td class="c-{at}">{cell}</td>' for at, cell in enumerate(cells))
    return f'<tr data-run="{key}" class="{"chosen" if is_chosen else ""}">{row}</tr>'


def facts_html(run: Run | None) -> str:
    """One run's facts."""
    if run is None:
        return ""
    record, facts, status, found = run.config(), run.facts(), run.status(), losses(run)
    config = record.get("config", {})
    rows = facts.get("rows", {}).get("train") or config.get("rows") or "all"
    parts = [(name, folder_size(run.path / folder)) for folder, name in PARTS.items() if (run.path / folder).exists()]
    told = {
        "State": " · ".join(filter(None, (status["state"], status.get("message", ""), status.get("error", "")))),
        "Model": config.get("model", ""),
        "Data": f"{rows} rows of {record.get('data', {}).get('source', '')}",
        "Preset": record.get("label", ""),
        "Best loss": "" if found.best is None else f"{found.best:.4f} ({found.kind})",
        "Steps": f"{status.get('step', 0)} of {status.get('max_steps', config.get('training', {}).get('steps', ''))}",
        "Took": _took(status),
        "Started": view.started(run),
        "On disk": ", ".join(f"{name} {amount(bytes_)}" for name, bytes_ in parts) or amount(size(run)),
        "Evaluations": str(len(run.evaluations())),
        "Id": run.id,
    }
    lines = "".join(f"<dt>{name}</dt><dd>{escape(str(text))}</dd>" for name, text in told.items() if text)
    return f'<h3>{escape(run.name())}</h3><dl class="facts">{lines}</dl>'


def _took(status: dict[str, Any]) -> str:
    if "started_at" not in status or "updated_at" not in status:
        return ""
    seconds = view.duration(status["updated_at"] - status["started_at"])
    return seconds if status["state"] in ENDED else f"{seconds} so far"


def settings_html(run: Run | None, other: Run | None, everything: bool) -> str:
    """A run's settings beside another's, or beside the defaults: what differs, or all of them."""
    if run is None:
        return ""
    mine = _flat(_settings(run))
    its = _flat(_settings(other)) if other else {f"config.{k}": v for k, v in _flat(TrainConfig().model_dump()).items()}
    names = [name for name in dict.fromkeys([*mine, *its]) if other or name in its]
    shown = [name for name in names if everything or mine.get(name) != its.get(name)]
    if not shown:
        return "<p>Their settings are the same.</p>" if other else "<p>All settings are the defaults.</p>"
    heads = ("setting", escape(run.name()), escape(other.name()) if other else "default")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(_setting(name, mine.get(name), its.get(name)) for name in shown)
    return (
        f'<div class="scroll" tabindex="0"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _settings(run: Run) -> dict[str, Any]:
    record = run.config()
    return {name: record[name] for name in ("config", "data", "versions") if name in record}


def _setting(name: str, mine: Any, its: Any) -> str:
    kind = ' class="differs"' if mine != its else ""
    cells = "".join(f"<td>{escape('–' if value is None else str(value))}</td>" for value in (mine, its))
    return f'<tr{kind}><th scope="row">{escape(name.removeprefix("config."))}</th>{cells}</tr>'


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def deletion(run: Run) -> str:
    """What is asked before a run is deleted, in Markdown."""
    scored = len(run.evaluations())
    made = [f"{scored} evaluation{'s' * (scored > 1)}"] if scored else []
    made += ["its merged model"] if run.has_merged() else []
    made += ["its exports"] if run.jobs("exports") else []
    with_it = f" With it go {', '.join(made)}." if made else ""
    return (
        f"**Delete {view.plain(run.name())}** ({view.plain(run.id)}, {amount(size(run))}) for ever? "
        f"Its adapter, checkpoints and log are gone then.{with_it} It can't be undone."
    )
