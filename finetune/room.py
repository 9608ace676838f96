"""A GPU's memory, between a chat that keeps its base there and the jobs whose turn it is.

Two files beside the runs, whose locks say all; a lock can't outlive its process, so nobody waits for the dead. `.chat`
is locked while a chat has a base on the GPU. `.claim` is locked by a job from its turn until it has taken its memory,
and shared by chats while they load a base: neither counts on memory that the other is about to take. Where the job does
not fit beside the chat, the file says so, and the chat leaves.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from finetune import memory
from finetune.config import TrainConfig
from finetune.footprint import base_bytes
from finetune.job import try_lock
from finetune.launch import is_main
from finetune.model import Say, Source
from finetune.run import runs_folder
from finetune.shapes import read_shapes

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 120.0  # an answer that is being written is not cut off
SPARE_BYTES = 2**30  # beside a base that only answers: its cache, what a layer needs, the driver's context
LEAVE = "leave"


def fits(config: TrainConfig, source: Source) -> bool:
    """Whether a run of that base fits into what is free now, and is not made slower for it by checkpointing."""
    from finetune.base import compute_dtype

    plan = memory.plan(config, read_shapes(source), compute_dtype(), memory.device())
    return plan.fits and (config.training.checkpointing != "auto" or not plan.checkpointing)


def base_fits(source: Source) -> bool:
    """Whether that base, with what it needs to answer, fits into what is free now."""
    from finetune.base import compute_dtype

    return base_bytes(read_shapes(source), compute_dtype().itemsize) + SPARE_BYTES <= memory.device().free_bytes


@contextmanager
def claimed(has_room: Callable[[], bool], is_stopped: Callable[[], bool], say: Say) -> Iterator[Callable[[], None]]:
    """A job's claim on the GPU: waits until the chat has left, where there is no room beside it.

    Yields what the job calls once it has taken its memory. On a CPU nobody waits: what both need is paged.

    Args:
        has_room: whether the job fits into what is free.
        is_stopped: whether to wait no longer.
        say: gets a line while it waits.
    """
    if memory.device().kind != "cuda":
        yield lambda: None
        return
    with ExitStack() as claim:
        file = claim.enter_context(_open(".claim"))
        if is_main():  # the other processes of a run on several GPUs wait along
            wait_while(lambda: not try_lock(file) and not is_stopped())
            _write(file, "")
        if not has_room() and chat_is_there():
            if is_main():
                _write(file, LEAVE)
            say("waiting for the chat to leave the GPU")
            wait_while(lambda: chat_is_there() and not is_stopped())
            if is_main():
                _write(file, "")
        yield claim.close


@contextmanager
def loading(is_cancelled: Callable[[], bool], say: Say) -> Iterator[None]:
    """For a chat that loads a base: no job makes its claim meanwhile. Waits for the one whose claim it is now.

    Raises:
        ValueError: a job takes too long over it, or nobody wants the base any more.
    """
    if memory.device().kind != "cuda":
        yield
        return
    with _open(".claim") as file:
        if not _try_shared(file):
            say("A job is taking its part of the GPU's memory: your prompt waits.")
            wait_while(lambda: not _try_shared(file) and not is_cancelled())
            if is_cancelled() or not _try_shared(file):
                raise ValueError("A job is still taking its part of the GPU's memory: ask again once it works.")
        yield


def chat_is_there() -> bool:
    """Whether some chat has a base on the GPU."""
    if not (runs_folder() / ".chat").exists():
        return False
    with _open(".chat") as file:
        return not try_lock(file)


def being_claimed() -> bool:
    """Whether a job is about to take its memory."""
    if not (runs_folder() / ".claim").exists():
        return False
    with _open(".claim") as file:
        return not _try_shared(file)


def chat_is_to_leave() -> bool:
    """Whether a job that lives waits for the chat's memory."""
    if not being_claimed():
        return False
    return (runs_folder() / ".claim").read_text() == LEAVE


def stay() -> IO[str]:
    """For a chat that has a base on the GPU: it is there until the file that this returns is closed."""
    file = _open(".chat")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def wait_while(condition: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    until = time.monotonic() + PATIENCE_SECONDS
    while condition() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _open(name: str) -> IO[str]:
    runs_folder().mkdir(parents=True, exist_ok=True)
    return (runs_folder() / name).open("a")


def _write(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def _try_shared(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
