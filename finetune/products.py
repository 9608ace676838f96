"""What is made of a run that has an adapter: a merged model, and exports. Each is a job in the run's folder.

A merge waits for its turn at the device; an export needs none and begins at once.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from finetune.config import Part, parse
from finetune.job import at_work, spawn
from finetune.run import ENDED, Job, Reporter, Run, create_job
from finetune.whole import is_whole

MERGE_STEPS = 7  # one look at the adapter, two merges, four measurements
FIRST_STEP = "Looking at"


class Merge(Part):
    """A standalone model of a run."""

    onto: Literal["auto", "bf16", "nf4"] = "auto"
    """The weights to add the adapter to: the base's own (bf16), the dequantized 4-bit ones (nf4), or whichever of them has the lower held-out loss."""  # noqa: E501
    rows: int = Field(default=48, ge=1, le=4096)
    """Held-out rows that the certificate is measured on."""


class Export(Part):
    """A run for other software."""

    kind: Literal["adapter", "gguf", "ollama"] = "adapter"
    """The adapter alone as a zip; or the merged model: a GGUF file, or a folder for Ollama."""
    precision: Literal["q8_0", "bf16", "f16"] = "q8_0"
    """Of the GGUF file."""


class _Stopped(Exception):
    """It was asked to stop."""


def start_merge(run: Run, order: Merge) -> Job:
    """Start a merge as a process that outlives this one. It takes the place of the run's merged model at its end.

    Raises:
        ValueError: there is no adapter, or the run is being merged already.
    """
    _check_adapter(run)
    if any(job.status()["state"] not in ENDED for job in run.jobs("merges")):
        raise ValueError(f"{run.id} is being merged already: wait for it, or stop it.")
    return _start(run, "merges", "merge", order)


def start_export(run: Run, order: Export) -> Job:
    """Start an export as a process that outlives this one.

    Raises:
        ValueError: what it is made of is not there.
    """
    _check_adapter(run)
    if order.kind != "adapter" and not run.has_merged():
        raise ValueError(f"A {order.kind} export is made of the merged model: merge {run.id} first.")
    return _start(run, "exports", "export", order)


def product(job: Job) -> Path | None:
    """What an export has made: a file, or a folder; None while there is nothing whole."""
    made = job.path / product_name(Run(job.path.parents[1]), parse(Export, job.config()["config"]))
    return made if made.is_file() or is_whole(made) else None


def product_name(run: Run, order: Export) -> str:
    """What it is called: a file with an ending, or a folder."""
    names = {"adapter": "adapter.zip", "gguf": f"{order.precision}.gguf", "ollama": f"ollama-{order.precision}"}
    return f"{run.id}-{names[order.kind]}"


def _check_adapter(run: Run) -> None:
    if not run.has_adapter():
        raise ValueError(f"{run.id} has no adapter yet ({run.status()['state']}): let it train to its end.")


def _start(run: Run, folder: str, work: str, order: Part) -> Job:
    record = {"run": run.id, "work": work, "config": order.model_dump()}
    job, lock = create_job(run.path / folder, work, record)
    spawn(job, lock, "finetune.products")
    return job


def make_merge(run: Run, job: Job, order: Merge, reporter: Reporter) -> None:
    """Merge and measure, then put the merged model in the place of the one that was there."""
    from finetune.merged import merge

    hidden = run.path / f".merged-{job.id}"
    for left in run.path.glob(".merged-*"):  # by a merge that was killed at its very end
        shutil.rmtree(left, ignore_errors=True)
    try:
        _, certificate = merge(run, order.onto, hidden, order.rows, _teller(job, reporter))
        _replace(hidden, run.path / "merged")
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    print(certificate.sentence())


def _teller(job: Job, reporter: Reporter) -> Callable[[str], None]:
    """What a merge tells its progress to; it stops the merge between two steps where that is asked for."""
    step = 0

    def say(text: str) -> None:
        nonlocal step
        if job.stop_requested():
            raise _Stopped
        print(text)
        if step or text.startswith(FIRST_STEP):
            step += 1
            reporter.status(state="running", message=text, step=step, max_steps=MERGE_STEPS)
        else:  # fetching the base, as many lines as that takes
            reporter.status(message=text)

    return say


def _replace(new: Path, target: Path) -> None:
    """`new` under the name `target`; what was there is gone only after that."""
    old = target.with_name(f".merged-old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def make_export(run: Run, job: Job, order: Export, reporter: Reporter) -> None:
    """Make it inside the job's folder; an earlier export of the same kind then goes."""
    from finetune import export

    target = job.path / product_name(run, order)
    reporter.status(state="running", message=f"writing {target.name}")
    if order.kind == "adapter":
        folder = export.adapter(run, job.path / "adapter")
        zipped = shutil.make_archive(str(job.path / ".adapter"), "zip", folder)
        shutil.rmtree(folder)
        Path(zipped).rename(target)
    elif order.kind == "gguf":
        export.to_gguf(run, target, order.precision)
    else:
        export.to_ollama(run, target, order.precision)
    earlier = [other for other in run.jobs("exports") if other.id < job.id and other.status()["state"] in ENDED]
    for other in earlier:
        if other.config()["config"] == job.config()["config"]:
            shutil.rmtree(other.path, ignore_errors=True)


def work(job: Job, reporter: Reporter) -> None:
    """Do what the job was made for."""
    run, record = Run(job.path.parents[1]), job.config()
    try:
        if record["work"] == "merge":
            make_merge(run, job, parse(Merge, record["config"]), reporter)
        else:
            make_export(run, job, parse(Export, record["config"]), reporter)
    except _Stopped:
        reporter.status(state="stopped")


def main(arguments: Any = None) -> int:
    """What `spawn` starts: not for people, who have `python -m finetune merge` and `export`."""
    parser = argparse.ArgumentParser(prog="python -m finetune.products")
    parser.add_argument("work", choices=["work"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--lock", type=int, required=True)
    args = parser.parse_args(arguments)
    job = Job(args.path)
    try:
        with at_work(job, args.lock, on_device=job.config()["work"] == "merge") as reporter:
            work(job, reporter)
    except ValueError as error:  # it stands in status.json
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
