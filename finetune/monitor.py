"""The GPU's and this process' state at a moment, for the metrics of a run."""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import psutil


def sample() -> dict[str, float]:
    """One look at this process' GPU through NVML and at its memory. It costs less than 5 ms and never raises.

    Returns:
        gpu_memory_bytes (in use on the whole GPU), gpu_utilization_percent, gpu_temperature_celsius, gpu_power_watts
        and process_memory_bytes (resident). What can't be read here is absent.
    """
    found: dict[str, float] = {}
    nvml, handle = _gpu()
    if nvml is not None:
        readings: dict[str, Callable[[], float]] = {
            "gpu_memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "gpu_utilization_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "gpu_temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "gpu_power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # NVML counts in milliwatts
        }
        for name, read in readings.items():
            try:
                found[name] = float(read())
            except nvml.NVMLError:
                continue  # virtual and partitioned GPUs do not tell everything
    with suppress(psutil.Error):
        found["process_memory_bytes"] = float(psutil.Process().memory_info().rss)
    return found


@lru_cache(maxsize=1)
def _gpu() -> tuple[Any, Any]:
    """(pynvml, handle of the GPU that this process computes on), or (None, None) where there is none. Asked once.

    NVML numbers the machine's GPUs, torch those that CUDA_VISIBLE_DEVICES leaves; the UUID is common to both.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return None, None
    except pynvml.NVMLError:  # no driver
        return None, None
    with suppress(pynvml.NVMLError, RuntimeError, AssertionError, AttributeError):
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{_uuid()}")
    try:
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return None, None


def _uuid() -> str:
    """UUID of the GPU that torch computes on. Raises where torch sees none."""
    import torch

    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
