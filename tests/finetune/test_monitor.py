"""GPU samples through a stand-in for NVML, and without one."""

import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from finetune import monitor


class NVMLError(Exception):
    pass


def fake_nvml(**changes: object) -> SimpleNamespace:
    """pynvml as far as the monitor uses it: one GPU, 3 GiB in use, 71 %, 55 °C, 123.4 W."""
    functions = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": refuse,
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu {index}",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3 * 2**30, total=8 * 2**30),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=71),
        "nvmlDeviceGetTemperature": lambda handle, sensor: 55,
        "nvmlDeviceGetPowerUsage": lambda handle: 123_400,
    }
    return SimpleNamespace(**(functions | changes))


def refuse(*_: object) -> None:
    raise NVMLError("not supported")


@pytest.fixture(autouse=True)
def forget_the_gpu() -> Iterator[None]:
    monitor._gpu.cache_clear()
    yield
    monitor._gpu.cache_clear()


def test_all_readings_have_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    sample = monitor.sample()
    assert sample.pop("process_memory_bytes") > 2**20
    assert sample == {
        "gpu_memory_bytes": 3 * 2**30,
        "gpu_utilization_percent": 71.0,
        "gpu_temperature_celsius": 55.0,
        "gpu_power_watts": 123.4,
    }


def test_what_a_gpu_does_not_tell_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = fake_nvml(nvmlDeviceGetPowerUsage=refuse, nvmlDeviceGetUtilizationRates=refuse)
    monkeypatch.setitem(sys.modules, "pynvml", silent)
    assert set(monitor.sample()) == {"gpu_memory_bytes", "gpu_temperature_celsius", "process_memory_bytes"}


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_without_a_driver_or_a_gpu_only_the_process_is_seen(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**{broken: refuse}))
    assert set(monitor.sample()) == {"process_memory_bytes"}


def test_without_the_package_only_the_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert set(monitor.sample()) == {"process_memory_bytes"}


def test_the_gpu_of_this_process_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml(nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(monitor, "_uuid", lambda: "1234")
    assert monitor._gpu() == (nvml, "handle of GPU-1234")


def test_a_sample_is_cheap() -> None:
    monitor.sample()
    times = []
    for _ in range(20):
        started = time.perf_counter()
        monitor.sample()
        times.append(time.perf_counter() - started)
    assert sorted(times)[10] < 0.005
