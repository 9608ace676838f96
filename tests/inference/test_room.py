"""The device is shared: a run that fits beside the chat leaves it alone, one that does not gets its memory."""

import gc
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run_settings, wait_for

from finetune import memory, model, room
from finetune.base import compute_dtype
from finetune.config import TrainConfig, with_settings
from finetune.job import create_run, start_training
from finetune.memory import Device
from finetune.prompt import Turn
from finetune.run import ENDED, Reporter
from finetune.shapes import read_shapes
from finetune.train import train
from inference.columns import BASE, Column, resolve
from inference.engine import Engine
from inference.room import refuse_without_room
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
    assert room.fits(config, tiny_source)
    need = memory.plan(config, read_shapes(tiny_source), compute_dtype(), memory.device()).need.total
    free(monkeypatch, need)  # a tenth is to stay free
    assert not room.fits(config, tiny_source)
    free(monkeypatch, int(need / 0.89))
    assert room.fits(config, tiny_source)
    # What would fit only if it computed its activations twice is rather given the chat's memory.
    auto = with_settings(config, {"checkpointing": "auto"})
    assert room.fits(auto, tiny_source)
    free(monkeypatch, int(need / 0.95))
    assert memory.plan(auto, read_shapes(tiny_source), compute_dtype(), memory.device()).fits
    assert not room.fits(auto, tiny_source)


def test_a_base_larger_than_what_is_free_is_refused_in_a_sentence(
    tiny_source: Any, tiny_model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_without_room(tiny_source)
    free(monkeypatch, 2**16)
    engine = Engine()
    with pytest.raises(ValueError, match=re.escape("wait until the run that uses it has ended, or stop it")):
        say(engine, tiny_model)
    monkeypatch.undo()
    assert say(engine, tiny_model)[0]  # and then it is loaded


def test_on_a_cpu_both_stay(tiny_model: Path, runs: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    engine = Engine()
    say(engine, tiny_model)
    with room.claimed(lambda: False, lambda: False, print):
        assert not room.chat_is_there() and engine._loaded is not None


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    """As on a GPU: chat and runs share its memory."""
    if not torch.cuda.is_available():
        free(monkeypatch, 24 * GIB)


def test_what_is_given_back_is_gone(tiny_model: Path, tiny_adapter: Path) -> None:
    """Forgetting a base is not enough: its 4-bit weights and their layers hold each other."""
    engine = Engine()
    say(engine, tiny_model, Column("tuned", tiny_adapter))
    assert engine._loaded
    weight = weakref.ref(engine._loaded.base.model.layers[0].mlp.up_proj.weight)
    gc.disable()
    try:
        engine.release().result()
        assert weight() is None
    finally:
        gc.enable()


def test_a_run_that_fits_leaves_the_chat_where_it_is(tiny_model: Path, shared: None) -> None:
    engine = Engine()
    say(engine, tiny_model)
    said: list[str] = []
    with room.claimed(lambda: True, lambda: False, said.append):
        time.sleep(3 * room.POLL_SECONDS)
        assert room.chat_is_there() and engine._loaded is not None and not said
    engine.release().result()
    assert not room.chat_is_there()


def test_a_run_that_does_not_fit_gets_the_chats_memory_at_its_turn(tiny_model: Path, shared: None) -> None:
    """And a prompt that comes before it has taken it waits, instead of taking it back."""
    engine, said = Engine(), list[str]()
    first = say(engine, tiny_model)
    with room.claimed(lambda: False, lambda: False, said.append) as taken:
        assert engine._loaded is None and said == ["waiting for the chat to leave the GPU"]
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(say, engine, tiny_model)
            time.sleep(4 * room.POLL_SECONDS)
            assert not asked.done() and engine._loaded is None
            taken()
            assert asked.result(60) == first
    assert room.chat_is_there()
    engine.release().result()
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "tenant"], 5)


def test_what_is_under_way_ends_first_and_what_waits_gives_way(tiny_model: Path, shared: None) -> None:
    """The engine leaves between two answers, and once: a prompt that comes back is not sent away again."""
    engine, under_way = Engine(), threading.Event()
    first = say(engine, tiny_model)

    def claim() -> bool:
        with room.claimed(lambda: False, lambda: False, lambda _: None):
            return room.chat_is_there()

    with ThreadPoolExecutor() as pool:
        engine._submit(under_way.wait)
        later = [pool.submit(say, engine, tiny_model) for _ in range(2)]
        wait_for(lambda: len(engine._line) == 3)
        claims = pool.submit(claim)
        wait_for(lambda: len(engine._line) == 4)  # it was asked to leave, behind those who wait
        assert room.chat_is_to_leave() and not claims.done() and engine._loaded
        under_way.set()
        assert claims.result(60) is False
        assert [each.result(60) for each in later] == [first, first]
    engine._submit(lambda: None).result(10)
    assert engine._loaded and room.chat_is_there()
    engine.release().result()


def test_a_job_waits_for_a_chat_that_is_loading(tiny_model: Path, shared: None) -> None:
    """Its base is not yet to be seen among what is taken."""

    def claim() -> bool:
        with room.claimed(lambda: False, lambda: False, lambda _: None):
            return True

    with ThreadPoolExecutor() as pool:
        with room.loading(lambda: False, print):
            claims = pool.submit(claim)
            time.sleep(3 * room.POLL_SECONDS)
            assert not claims.done() and not room.being_claimed()
        assert claims.result(10)


def test_a_prompt_is_told_when_a_job_takes_long_or_its_person_has_gone(
    tiny_model: Path, shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 0.6)
    with room.claimed(lambda: True, lambda: False, print):
        with pytest.raises(ValueError, match="ask again once it works"):
            say(Engine(), tiny_model)
        with pytest.raises(ValueError, match="ask again"), room.loading(lambda: True, print):
            pass


def test_a_run_stopped_while_it_waits_loads_nothing(
    tiny_model: Path, shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    say(engine, tiny_model)
    monkeypatch.setattr(engine, "_leave", lambda tenant: None)  # a long answer: it does not leave
    assert engine._tenant
    run, lock = create_run(with_settings(TrainConfig(), tiny_run_settings(tiny_model)), "test")
    with ThreadPoolExecutor() as pool, room.stay():
        monkeypatch.setattr(room, "fits", lambda *_: False)
        trained = pool.submit(train, run, reporter := Reporter(run))
        wait_for(lambda: "waiting for the chat" in run.status().get("message", ""))
        run.request_stop()
        trained.result(10)
    reporter.end()
    os.close(lock)
    assert run.status()["state"] == "stopped" and not run.facts()


def test_nobody_waits_for_a_chat_or_a_job_that_was_killed(tiny_source: Any, shared: None) -> None:
    code = (
        "import os, sys; from finetune import room; from finetune.job import try_lock; "
        "chat = room.stay(); claim = room._open('.claim'); assert try_lock(claim); room._write(claim, room.LEAVE); "
        "print('there', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "there\n"
    assert room.chat_is_there() and room.chat_is_to_leave()
    other.kill()
    other.wait()
    assert not room.chat_is_there() and not room.chat_is_to_leave() and not room.being_claimed()
    with room.claimed(lambda: False, lambda: False, print):
        assert room.being_claimed() and not room.chat_is_to_leave()


@pytest.mark.gpu
@gpu
def test_on_a_gpu_a_run_of_its_own_process_gets_the_memory(tiny_model: Path, runs: Path) -> None:
    engine = Engine()
    first = say(engine, tiny_model)
    settings = tiny_run_settings(tiny_model) | {"tokens_per_batch": 2**17, "steps": 2}
    config = with_settings(TrainConfig(), settings)
    need = memory.plan(config, read_shapes(model.fetch(str(tiny_model))), compute_dtype(), memory.device()).need.total
    # It will find about `need` free beside its own context, where it wants a ninth more.
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - need - 2**29, dtype=torch.uint8, device="cuda")
    run = start_training(config, "test")
    wait_for(lambda: engine._loaded is None or run.status()["state"] in ENDED, 120)
    assert engine._loaded is None
    del ballast
    torch.cuda.empty_cache()
    wait_for(lambda: run.status()["state"] in ENDED, 240)
    assert run.status()["state"] == "finished", run.status()
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
