"""Pure functions: a run and its events become text, tables and plots. Nothing here touches a component."""

import time

import pandas as pd

from finetune.run import Job, Run
from inference.columns import Column, at_strength, resolve
from inference.decode import Answer

# Two colours that hold on light and dark, and apart for every common colour blindness.
BASE_COLOUR = "#6b7a90"
TUNED_COLOUR = "#e8710a"
WHISKER_COLOUR = "#8a94a6"


def run_choices(runs: list[Run], with_adapter: bool = False) -> list[tuple[str, str]]:
    """(label, id) of runs, for a dropdown."""
    chosen = [run for run in runs if not with_adapter or run.has_adapter()]
    return [(f"{run.name()} · {started(run)}", run.id) for run in chosen]


def side_choices(run: Run) -> list[str]:
    """What of a run can answer: its adapter, its checkpoints (newest first), its merged model."""
    names = ["tuned", *(f"checkpoint-{step}" for step, _ in run.checkpoints())]
    return [*names, "merged"] if run.has_merged() else names


def side_column(run: Run, name: str, strength: float) -> Column:
    """That side of a run at a strength, which a merged model has none of. Raises ValueError where it is not there."""
    (column,) = resolve(run, name)
    return at_strength(name, column.adapter, strength) if column.adapter else column


def started(job: Job) -> str:
    """When it was asked for, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.path / "config.json").stat().st_mtime))


def progress(job: Job | None, nothing: str) -> str:
    """Where a job stands, in a line of Markdown."""
    if job is None:
        return nothing
    status = job.status()
    state = status["state"]
    parts = [f"**{state}**"]
    if "max_steps" in status:
        parts.append(f"step {status.get('step', 0)} of {status['max_steps']}")
    if state == "running" and status.get("tokens_per_second"):
        parts.append(f"{status['tokens_per_second']:.0f} tokens/s")
    if state == "running" and "eta_seconds" in status:
        parts.append(f"{duration(status['eta_seconds'])} left")
    if state == "queued" and status.get("ahead"):
        parts.append(f"{status['ahead']} ahead in the queue")
    if status.get("message"):
        parts.append(plain(status["message"]))
    if status.get("error"):
        parts.append(plain(status["error"]))
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """ "1:05", "2:03:09"."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*_{}[]()#+-!|~$" else c for c in escaped)


def loss_frame(run: Run | None) -> pd.DataFrame:
    """Training and validation loss by step, long form: step, loss, kind."""
    events = run.metrics()[0] if run else []
    rows = [(e["step"], e["loss"], "training") for e in events if "loss" in e]
    rows += [(e["step"], e["validation_loss"], "validation") for e in events if "validation_loss" in e]
    return pd.DataFrame(rows, columns=["step", "loss", "kind"])


def run_facts(run: Run | None) -> str:
    """What the run trains on what, in a line."""
    if run is None:
        return ""
    record = run.config()
    config = record["config"]
    rows = run.facts().get("rows", {}).get("train") or config["rows"] or "all"
    source = plain(record["data"]["source"])
    return f"{plain(config['model'])} · {rows} rows of {source} · {config['training']['steps']} steps · {started(run)}"


def figures(answer: Answer | None) -> str:
    """What is shown under an answer."""
    if answer is None or not answer.tokens:
        return "…"
    parts = [f"{answer.tokens_per_second:.1f} tokens/s", f"{answer.tokens} tokens"]
    parts.append(f"first after {answer.first_token_seconds:.1f} s")
    if answer.stop:
        reasons = {"end": "ended by itself", "length": "reached the length limit", "cancelled": "stopped"}
        parts.append(reasons[answer.stop])
    return " · ".join(parts)
