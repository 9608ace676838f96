"""The chat's side of a shared GPU: it leaves to a job that needs its memory, and comes back where there is room."""

import threading
from collections.abc import Callable

from finetune import memory, room
from finetune.base import compute_dtype
from finetune.footprint import base_bytes
from finetune.model import Source
from finetune.shapes import read_shapes


class Tenant:
    """A base on the GPU: until `leave` is called the jobs know of it, and what they ask for is passed on."""

    def __init__(self, asked_to_leave: Callable[["Tenant"], object]) -> None:
        """`asked_to_leave` is called with this on a thread of its own, once."""
        self._file = room.stay()
        self._gone = threading.Event()
        threading.Thread(target=self._watch, args=(asked_to_leave,), name="tenant", daemon=True).start()

    def leave(self) -> None:
        """The base is gone."""
        self._gone.set()
        self._file.close()

    def _watch(self, asked_to_leave: Callable[["Tenant"], object]) -> None:
        while not self._gone.wait(room.POLL_SECONDS):
            if room.chat_is_to_leave():
                asked_to_leave(self)
                return


def refuse_without_room(source: Source) -> None:
    """ValueError with what to do, where the base itself is larger than what is free: a run may have taken the rest."""
    need, device = base_bytes(read_shapes(source), compute_dtype().itemsize), memory.device()
    if device.kind == "cuda":  # a CPU's memory is paged
        need += room.SPARE_BYTES
    if need > device.free_bytes:
        where = "GPU memory" if device.kind == "cuda" else "memory"
        raise ValueError(
            f"{source.origin} needs {memory.gib(need)} of {where} and {memory.gib(device.free_bytes)} are free: "
            "wait until the run that uses it has ended, or stop it."
        )
