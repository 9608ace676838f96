"""On what an evaluation ran: the machine and the libraries that decide its numbers and its speed."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "tokenizers", "evaluate", "rouge-score", "sacrebleu", "scipy",
)  # fmt: skip
# A cached answer holds only as long as these do: they are what computes it.
DECIDING = ("torch", "transformers", "bitsandbytes", "tokenizers")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def hardware() -> dict[str, Any]:
    """CPU, cores this process may use, memory in GiB, GPUs with theirs, threads. No name of the machine."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
