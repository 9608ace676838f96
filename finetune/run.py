"""The run directory is the protocol: whoever wants to know about a run reads its files; each file has one writer.

A training run and an evaluation are both a `Job`: config, status, metrics, log, a stop request and a lock.
"""

import fcntl
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from finetune.about import read_about
from finetune.whole import is_whole, write_atomically

State = Literal["queued", "preparing", "running", "finished", "stopped", "failed", "died"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed", "died")
BALLAST = 256 * 2**10  # bytes
DISK_RESERVE = 512 * 2**20  # bytes that must be free before a run starts: adapter, optimizer states, logs


def runs_folder() -> Path:
    """Where runs are kept: $TANDEM_RUNS, else runs/ in the working directory."""
    return Path(os.environ.get("TANDEM_RUNS") or "runs").resolve()


@dataclass(frozen=True)
class Job:
    """A folder in which one piece of work tells how it is doing."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def config(self) -> dict[str, Any]:
        """What was asked for, as the launcher wrote it, once."""
        return json.loads((self.path / "config.json").read_text())

    def status(self) -> dict[str, Any]:
        """The job's last word on itself, with `state` corrected where the job can no longer speak.

        The lock does not lie: it is held for the job's life, so a free lock and an unfinished state mean it died.
        """
        alive = self.is_alive()  # asked first: a job that ends in between has then written its last state
        file = self.path / "status.json"
        status: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"state": "queued"}
        if status["state"] not in ENDED and not alive:
            where = f" at step {status['step']}" if status.get("step") else ""
            status |= {"state": "died", "error": f"The process ended without a word{where}; run.log may say why."}
        return status

    def is_alive(self) -> bool:
        """Whether a process holds the job's lock."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def metrics(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Events after byte `offset`, and the offset to go on from. A line still being written is left for later."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return [], offset
        with file.open("rb") as stream:
            if offset > file.stat().st_size:  # a resumed run went back to its checkpoint: read it anew
                offset = 0
            stream.seek(offset)
            block = stream.read()
        end = block.rfind(b"\n") + 1
        return [json.loads(line) for line in block[:end].splitlines()], offset + end

    def log_tail(self, characters: int = 4000) -> str:
        """The end of what the job printed; a progress bar's overwritten lines are left out."""
        file = self.path / "run.log"
        if not file.exists():
            return ""
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 4 * characters))
            text = stream.read().decode(errors="replace")
        return "\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n"))[-characters:]

    def request_stop(self) -> None:
        """Ask the job to stop at its next step. Asking twice is asking once."""
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()


@dataclass(frozen=True)
class Run(Job):
    """A training run."""

    def name(self) -> str:
        """What people call it: the name it was given, else its label."""
        return read_about(self.path).name or self.config()["label"]

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def has_adapter(self) -> bool:
        """Whether the adapter is there, whole."""
        return is_whole(self.adapter)

    def has_merged(self) -> bool:
        return is_whole(self.path / "merged")

    def merged(self) -> Path:
        """The folder of its merged model. Raises ValueError where there is none that is whole."""
        if not self.has_merged():
            raise ValueError(f"{self.id} has no merged model: make it with `python -m finetune merge {self.id}`.")
        return self.path / "merged"

    def facts(self) -> dict[str, Any]:
        """What the run found out: template, weights' fingerprint, what became of the rows. {} before it knows."""
        file = self.path / "facts.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the whole checkpoints, newest first."""
        folders = (self.path / "checkpoints").glob("checkpoint-*")
        whole = [(int(path.name.removeprefix("checkpoint-")), path) for path in folders if is_whole(path)]
        return sorted(whole, reverse=True)

    def jobs(self, kind: str) -> list[Job]:
        """What was made of this run, newest first: "evals", "merges" or "exports"."""
        return [Job(path) for path in _visible_folders(self.path / kind)]

    def evaluations(self) -> list[Job]:
        return self.jobs("evals")


class Reporter:
    """The job's own side of its files: the one writer of status.json and metrics.jsonl."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.started_at = time.time()
        self._status: dict[str, Any] = {"state": "preparing", "started_at": self.started_at}
        (job.path / "ballast").write_bytes(b"\0" * BALLAST)  # given up when the disk is full, to say so
        self._metrics: IO[str] = (job.path / "metrics.jsonl").open("a", buffering=1)

    def status(self, **values: Any) -> None:
        """Change the status; readers see the old or the new one, never half of it."""
        self._status |= values | {"updated_at": time.time()}
        write_atomically(self.job.path / "status.json", json.dumps(self._status))

    def fail(self, error: str) -> None:
        """The last word of a job that failed; it is heard even where the disk is full."""
        (self.job.path / "ballast").unlink(missing_ok=True)
        self.status(state="failed", message="", error=error)

    def end(self) -> None:
        """The work is over: "stopped" where it said so itself, else "finished"."""
        state = self._status["state"] if self._status["state"] in ENDED else "finished"
        (self.job.path / "ballast").unlink(missing_ok=True)
        self.status(state=state, message="", eta_seconds=0)

    def begin(self) -> None:
        """The wait is over: the job's own time counts from here."""
        self.started_at = time.time()
        self.status(state="preparing", started_at=self.started_at)

    def rewind(self, step: int) -> None:
        """Drop the events after `step`: a resumed run writes them again."""
        events = [event for event in self.job.metrics()[0] if event["step"] <= step]
        self._metrics.close()
        file = self.job.path / "metrics.jsonl"
        write_atomically(file, "".join(json.dumps(event) + "\n" for event in events))
        self._metrics = file.open("a", buffering=1)

    def metric(self, **values: Any) -> None:
        """Append one event."""
        self._metrics.write(json.dumps({"time": time.time()} | values) + "\n")


def create_job(folder: Path, label: str, config: dict[str, Any], kind: type[Job] = Job) -> tuple[Job, int]:
    """A new job under `folder`, and the descriptor of its lock, held. It appears whole or not at all.

    Raises:
        ValueError: the folder can't be written to, or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(f"Runs can't be kept in {folder}: {(error.strerror or str(error)).lower()}.") from error
    if free < DISK_RESERVE:
        raise ValueError(
            f"The disk of {folder} has {free // 2**20} MB left and a run needs {DISK_RESERVE // 2**20} MB: make room."
        )
    stamp, slug = time.strftime("%Y%m%d-%H%M%S"), re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "run"
    hidden = folder / f".new-{stamp}-{os.getpid()}-{time.monotonic_ns()}"
    lock = -1
    try:
        hidden.mkdir()
        (hidden / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        lock = os.open(hidden / "lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in range(1, 100):
            suffix = "" if attempt == 1 else f"-{attempt}"
            target = folder / f"{stamp}-{slug}{suffix}"
            if not target.exists():
                hidden.rename(target)
                return kind(target), lock
        raise ValueError(f"There are already many runs of this second in {folder}: try again.")
    except OSError as error:
        raise ValueError(f"The run can't be written to {folder}: {(error.strerror or str(error)).lower()}.") from error
    finally:
        if hidden.exists():
            shutil.rmtree(hidden, ignore_errors=True)
            if lock >= 0:
                os.close(lock)


def find_run(name: str) -> Run:
    """The run of that id, or "latest", or (for the command line) of that path. Raises ValueError if there is none."""
    folder = runs_folder()
    if name == "latest":
        runs = list_runs()
        if not runs:
            raise ValueError("There is no run yet: start one with `python -m finetune train --preset quick-demo`.")
        return runs[0]
    path = folder / name if re.fullmatch(r"[\w-][\w.-]*", name) else Path(name).resolve()
    if not (path / "config.json").is_file() or path.parent != folder:
        raise ValueError(f"There is no run {name!r} in {folder}.")
    return Run(path)


def list_runs() -> list[Run]:
    """All runs, newest first."""
    return [Run(path) for path in _visible_folders(runs_folder())]


def _visible_folders(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in there if not path.name.startswith(".") and (path / "config.json").is_file()]
    return sorted(found, key=lambda path: path.name, reverse=True)
