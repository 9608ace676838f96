"""What runs and weights take of the disk, and how a run is deleted."""

import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from finetune.job import hold
from finetune.model import cache_folder
from finetune.run import Job, Run, runs_folder

DELETED = ".deleted-"


class Disk(NamedTuple):
    """Bytes."""

    runs: int
    cache: int
    """Weights in Tandem's own cache."""
    free: int
    """On the disk of the runs."""


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder and below; links count for nothing, and so does what vanishes meanwhile."""
    total, todo = 0, [str(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total


def disk() -> Disk:
    """How much there is of what."""
    folder = runs_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return Disk(folder_size(folder), folder_size(cache_folder()), shutil.disk_usage(there).free)


def delete_run(run: Run) -> None:
    """Delete a run and all that was made of it. It gets a hidden name at once, so that it never looks half there.

    Raises:
        ValueError: the run or something in it is still at work.
    """
    with ExitStack() as held:
        for job in (run, *run.jobs("evals"), *run.jobs("merges"), *run.jobs("exports")):
            if job.is_alive() or not held.enter_context(hold(job)):
                what = "It" if job.path == run.path else f"{_kind(job)} {job.id} of it"
                raise ValueError(f"{what} is still {job.status()['state']}: stop it first, then delete {run.id}.")
        try:
            run.path.rename(runs_folder() / f"{DELETED}{run.id}-{time.monotonic_ns()}")
        except OSError as error:
            raise ValueError(f"{run.id} can't be deleted: {(error.strerror or str(error)).lower()}.") from error
    for hidden in runs_folder().glob(f"{DELETED}*"):  # also what an interrupted deletion left
        shutil.rmtree(hidden, ignore_errors=True)


def _kind(job: Job) -> str:
    return {"evals": "The evaluation", "merges": "The merge", "exports": "The export"}[job.path.parent.name]
