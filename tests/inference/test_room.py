"""The device is shared: a run that fits beside the chat leaves it alone, one that does not gets its memory."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run_settings, wait_for

from finetune import memory
from finetune.base import compute_dtype
from finetune.config import TrainConfig, with_settings
from finetune.job import start_training
from finetune.memory import Device
from finetune.prompt import Turn
from finetune.run import ENDED
from finetune.shapes import read_shapes
from inference.columns import BASE, resolve
from inference.engine import Engine
from inference.room import fits_beside, refuse_without_room
from inference.sampling import Sampling

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GIB = 2**30


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(memory, "device", lambda: Device("cuda", 24 * GIB, count))


def say(engine: Engine, model: Path, *columns: Any) -> list[str]:
    asked = [[Turn("Name a bird.")]] * (len(columns) + 1)
    updates = list(engine.compare(str(model), None, "chat", [BASE, *columns], asked, Sampling(temperature=0), 8))
    return [answer.text for answer in updates[-1].answers]


def test_a_run_fits_beside_the_chat_or_not(tiny_source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig()
    free(monkeypatch, 8 * GIB)
    assert fits_beside(config, tiny_source)
    need = memory.plan(config, read_shapes(tiny_source), compute_dtype(), memory.device()).need.total
    free(monkeypatch, need)  # a tenth is to stay free
    assert not fits_beside(config, tiny_source)
    free(monkeypatch, int(need / 0.89))
    assert fits_beside(config, tiny_source)
    # What would fit only if it computed its activations twice is rather given the chat's memory.
    auto = with_settings(config, {"checkpointing": "auto"})
    assert fits_beside(auto, tiny_source)
    free(monkeypatch, int(need / 0.95))
    assert memory.plan(auto, read_shapes(tiny_source), compute_dtype(), memory.device()).fits
    assert not fits_beside(auto, tiny_source)


def test_a_base_larger_than_what_is_free_is_refused_in_a_sentence(
    tiny_source: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_without_room(tiny_source)
    free(monkeypatch, 2**16)
    engine = Engine()
    with pytest.raises(ValueError, match=re.escape("wait until the run that uses it has ended, or stop it")):
        say(engine, tiny_model)
    monkeypatch.undo()
    assert say(engine, tiny_model)[0]  # and then it is loaded


def test_on_a_cpu_both_stay(tiny_model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    engine = Engine()
    say(engine, tiny_model)
    assert not engine.make_room(TrainConfig(model=str(tiny_model))) and engine._loaded is not None


@pytest.mark.gpu
@gpu
def test_on_a_gpu_the_memory_goes_to_a_run_that_needs_it(tiny_model: Path) -> None:
    engine = Engine()
    first = say(engine, tiny_model)
    config = with_settings(TrainConfig(), {"model": str(tiny_model), "tokens_per_batch": 8192})
    assert not engine.make_room(config) and engine._loaded is not None
    assert engine.make_room(TrainConfig(model="mistral-7b"))  # not reckoned with: it gets all there is
    wait_for(lambda: engine._loaded is None, 10)
    say(engine, tiny_model)
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - 64 * 2**20, dtype=torch.uint8, device="cuda")
    assert engine.make_room(config)
    wait_for(lambda: engine._loaded is None, 10)
    del ballast
    torch.cuda.empty_cache()
    assert say(engine, tiny_model) == first


@pytest.mark.slow
def test_chatting_with_a_run_while_it_trains(tiny_model: Path, runs: Path) -> None:
    """Both on one device, and the run's own checkpoint is a column."""
    engine = Engine()
    (alone,) = say(engine, tiny_model)
    settings = tiny_run_settings(tiny_model) | {"steps": 100_000, "save_every_steps": 50, "learning_rate": 2e-2}
    config = with_settings(TrainConfig(), settings)
    run = start_training(config, "test")
    try:
        assert not engine.make_room(config)
        wait_for(lambda: len(run.checkpoints()) > 1 or run.status()["state"] in ENDED, 120)
        step = run.status()["step"]
        base, tuned = say(engine, tiny_model, *resolve(run, f"checkpoint-{run.checkpoints()[0][0]}"))
        assert base == alone != tuned
        time.sleep(1)
        assert run.status()["state"] == "running" and run.status()["step"] > step
    finally:
        run.request_stop()
        wait_for(lambda: run.status()["state"] in ENDED)
    assert run.status()["state"] == "stopped" and say(engine, tiny_model) == [alone]
