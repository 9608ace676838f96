"""Start, stop and watch a job as a process of its own; the queue in front of the device.

A queued job waits before it imports torch. First come, first served, with no daemon: the job whose turn it is, is the
oldest that lives and has not ended, and it takes the device lock.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import data, model
from finetune.config import TrainConfig
from finetune.run import Job, Reporter, Run, create_job, runs_folder

POLL_SECONDS = 0.25
DISK_FULL = 2**20  # bytes free below which a failure is put down to the disk


def check(config: TrainConfig) -> data.Rows:
    """Refuse what can't be run, before anything is made for it. Raises ValueError with a sentence."""
    model.check_name(config.model, config.revision)
    rows = data.load_rows(config.data, config.columns)
    data.select(config, rows)
    return rows


def create_run(config: TrainConfig, label: str) -> tuple[Run, int]:
    """A checked, new run and the descriptor of its lock. Raises ValueError, and then nothing was made."""
    rows = check(config)
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    record = {
        "label": label,
        "config": config.model_dump(),
        "data": {"source": rows.source, "sha256": rows.sha256, "rows": len(rows.rows)},
        "versions": {name: version(name) for name in packages},
    }
    job, lock = create_job(runs_folder(), label, record, Run)
    assert isinstance(job, Run)
    return job, lock


def start_training(config: TrainConfig, label: str) -> Run:
    """Start a run as a process that outlives this one. Raises ValueError, and then nothing was made."""
    run, lock = create_run(config, label)
    spawn(run, lock, "finetune")
    return run


def reopen(run: Run) -> int:
    """Take an ended run's lock to go on with it, and clear its stop request; returns the lock's descriptor.

    Raises:
        ValueError: it is still alive, or it has finished.
    """
    state = run.status()["state"]
    if state == "finished":
        raise ValueError(f"{run.id} has finished: there is nothing to resume.")
    lock = os.open(run.path / "lock", os.O_CREAT | os.O_RDWR)
    if not _patiently(lock):
        os.close(lock)
        raise ValueError(f"{run.id} is {state}: stop it first.")
    (run.path / "stop").unlink(missing_ok=True)
    os.utime(run.path / "lock")  # it queues behind whoever waits already
    return lock


@contextmanager
def hold(job: Job) -> Iterator[bool]:
    """Hold an ended job's lock, so that nobody goes on with it meanwhile. Yields False where it is alive."""
    with (job.path / "lock").open("a") as lock:
        yield _patiently(lock)


def _patiently(lock: Any) -> bool:
    """Take a lock; whoever looks at the job holds a shared one for an instant."""
    for _ in range(20):
        if try_lock(lock):
            return True
        time.sleep(0.05)
    return False


def resume_training(run: Run) -> None:
    """Go on with an ended run from its last whole checkpoint, as a process that outlives this one."""
    spawn(run, reopen(run), "finetune")


def spawn(job: Job, lock: int, module: str) -> None:
    """`python -m module work JOB` in a session of its own, holding the job's lock, its output in run.log."""
    command = [sys.executable, "-u", "-m", module, "work", str(job.path), "--lock", str(lock)]
    with (job.path / "run.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[1],
            env=os.environ | {"TANDEM_RUNS": str(runs_folder())},
        )
    os.close(lock)  # the process has its own copy now
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie


@contextmanager
def at_work(job: Job, lock: int, on_device: bool = True) -> Iterator[Reporter]:
    """A job's life: wait for the turn, work, and say how it ended. The project's one catch-all is here.

    SIGTERM and Ctrl-C ask for an orderly stop; a second Ctrl-C interrupts. What needs no device waits for nobody.
    """
    os.set_inheritable(lock, False)
    reporter = Reporter(job)
    _stop_on_signals(job)
    try:
        with _device(job, reporter) if on_device else nullcontext(True) as granted:
            if granted:
                reporter.begin()
                yield reporter
                reporter.end()
            else:
                reporter.status(state="stopped", message="")
                raise SystemExit(0)
    except BaseException as error:
        if not isinstance(error, SystemExit):
            reporter.fail(explain(error, job))
        raise
    finally:
        os.close(lock)


def explain(error: BaseException, job: Job) -> str:
    """One sentence for a person about why a job failed."""
    text = str(error).splitlines()[0] if str(error) else "no message"
    if "No space left" in text or shutil.disk_usage(job.path).free < DISK_FULL:
        return f"The disk of {job.path.parent} is full: make room, then resume."
    if isinstance(error, ValueError):
        return text
    if isinstance(error, KeyboardInterrupt):
        return "It was interrupted."
    return f"It failed with {type(error).__name__}: {text}."


def _stop_on_signals(job: Job) -> None:
    def stop(number: int, _: Any) -> None:
        if number == signal.SIGINT and job.stop_requested():
            raise KeyboardInterrupt
        job.request_stop()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)


@contextmanager
def _device(job: Job, reporter: Reporter) -> Iterator[bool]:
    """Yields True once the device is this job's, or False if it was asked to stop while it waited."""
    came = (job.path / "lock").stat().st_mtime_ns  # when it was created, or taken up again
    waiting_room = runs_folder() / ".queue"
    waiting_room.mkdir(exist_ok=True)
    ticket = waiting_room / f"{came:020d}-{os.getpid()}"
    with ticket.open("w") as own, (runs_folder() / ".device").open("w") as device:
        fcntl.flock(own, fcntl.LOCK_EX)
        try:
            while not job.stop_requested():
                ahead = sum(_is_held(other) for other in waiting_room.iterdir() if other.name < ticket.name)
                if ahead == 0 and try_lock(device):
                    ticket.unlink()
                    yield True
                    return
                reporter.status(state="queued", ahead=ahead, message="waiting for the device")
                time.sleep(POLL_SECONDS)
            yield False
        finally:
            ticket.unlink(missing_ok=True)


def _is_held(ticket: Path) -> bool:
    try:
        with ticket.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    ticket.unlink(missing_ok=True)  # whoever held it died
    return False


def try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
