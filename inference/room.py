"""Room on the device, which the chat shares with runs: what fits beside what."""

from finetune import memory
from finetune.base import compute_dtype
from finetune.config import TrainConfig
from finetune.footprint import base_bytes
from finetune.model import Source
from finetune.shapes import read_shapes


def fits_beside(config: TrainConfig, source: Source) -> bool:
    """Whether a run of that base fits into what is free now, and is not made slower for it by checkpointing."""
    plan = memory.plan(config, read_shapes(source), compute_dtype(), memory.device())
    return plan.fits and (config.training.checkpointing != "auto" or not plan.checkpointing)


def refuse_without_room(source: Source) -> None:
    """ValueError with what to do, where the base itself is larger than what is free: a run may have taken the rest."""
    need, device = base_bytes(read_shapes(source), compute_dtype().itemsize), memory.device()
    if need > device.free_bytes:
        where = "GPU memory" if device.kind == "cuda" else "memory"
        raise ValueError(
            f"{source.origin} needs {memory.gib(need)} of {where} and {memory.gib(device.free_bytes)} are free: "
            "wait until the run that uses it has ended, or stop it."
        )
