"""One run on several processes, as `accelerate launch` starts them: one of them owns the run directory."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from finetune.run import Reporter, Run


def processes() -> int:
    """How many processes this run was launched with."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process owns the run directory."""
    return int(os.environ.get("RANK", 0)) == 0


class Silent(Reporter):
    """What every other process reports to: nothing, since each file of a run has one writer."""

    def __init__(self, run: Run) -> None:
        self.job, self.started_at = run, time.time()

    def status(self, **values: object) -> None:
        """Nothing."""

    def metric(self, **values: object) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing."""


def share(create: Callable[[], tuple[Run, int]]) -> tuple[Run, int | None]:
    """The main process creates the run, all get to know it; the lock's descriptor is None on the others.

    Raises:
        ValueError: on every process, what the main one raised.
    """
    if processes() == 1:
        return create()
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())
    found: list[str | None] = [None, None]
    lock = None
    if is_main():
        try:
            run, lock = create()
            found = [str(run.path), None]
        except ValueError as error:
            found = [None, str(error)]
    torch.distributed.broadcast_object_list(found, src=0)
    path, refusal = found
    if path is None:
        raise ValueError(refusal if is_main() else "the main process refused the run")
    return Run(Path(path)), lock
