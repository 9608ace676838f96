"""Runs under hard conditions: killed and resumed, out of memory, gone wrong, on a full disk, on two processes."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, compute_in, here, read_json, tandem, tiny_run_settings, wait_for

from finetune import loss, trainer
from finetune.__main__ import main
from finetune.config import TrainConfig, preset, preset_names, with_settings
from finetune.job import create_run, reopen, start_training
from finetune.run import ENDED, Reporter, Run, list_runs
from finetune.train import train

EVERY = {"steps": 12, "save_every_steps": 2, "validate_every_steps": 3, "accumulation": 2, "dropout": 0.1}


def start(tiny_model: Path, **changed: Any) -> Run:
    return start_training(with_settings(TrainConfig(), tiny_run_settings(tiny_model) | changed), "test")


def in_process(tiny_model: Path, **changed: Any) -> Run:
    """The same in this process, where a test can reach into it."""
    run, lock = create_run(with_settings(TrainConfig(), tiny_run_settings(tiny_model) | changed), "test")
    try:
        train(run, Reporter(run))
    finally:
        os.close(lock)
    return run


def curve(run: Run) -> list[tuple[int, str, float]]:
    names = ("loss", "validation_loss")
    return [(e["step"], name, e[name]) for e in run.metrics()[0] for name in names if name in e]


def kill(run: Run) -> None:
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and f"work\0{run.path}" in (process / "cmdline").read_text():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue
    wait_for(lambda: not run.is_alive(), 10)


def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(tiny_model: Path, runs: Path) -> None:
    whole = in_process(tiny_model, **EVERY)
    expected = curve(whole)
    assert [step for step, name, _ in expected if name == "loss"] == list(range(1, 13))
    run = start(tiny_model, **EVERY)
    for step in sorted(random.Random(0).sample(range(2, 11), 2)):
        wait_for(lambda at=step: run.status().get("step", 0) >= at or run.status()["state"] in ENDED, 120)
        kill(run)
        if run.status()["state"] != "finished":
            assert run.status()["state"] == "died" and "step" in run.status()["error"]
            from finetune.job import resume_training

            resume_training(run)
    wait_for(lambda: run.status()["state"] in ENDED, 120)
    assert run.status()["state"] == "finished", run.log_tail()
    assert curve(run) == expected
    from safetensors.torch import load_file

    ours, theirs = (load_file(r.adapter / "adapter_model.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_cut_short_is_never_resumed_from(tiny_model: Path, runs: Path) -> None:
    run = in_process(tiny_model, **EVERY)
    newest, older = run.checkpoints()
    weights = newest[1] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert [step for step, _ in run.checkpoints()] == [older[0]]


def test_what_has_finished_can_not_be_resumed(tiny_model: Path, runs: Path) -> None:
    here(main, "train", *(f"--{name}={value}" for name, value in {"model": tiny_model, "rows": 40, "steps": 1}.items()))
    (run,) = list_runs()
    done = tandem("finetune", "resume", run.id)
    assert done.returncode == 2 and "has finished: there is nothing to resume" in done.stderr


def test_a_stopped_run_goes_on_where_it_stopped(tiny_model: Path, runs: Path) -> None:
    run = start(tiny_model, **EVERY | {"steps": 400})
    wait_for(lambda: run.status().get("step", 0) >= 3)
    run.request_stop()
    wait_for(lambda: run.status()["state"] == "stopped")
    stopped_at = run.status()["step"]
    assert run.checkpoints()[0][0] == stopped_at
    os.close(reopen(run))
    assert not run.stop_requested()


def test_the_best_weights_are_the_adapter(tiny_model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, looks = trainer.PackTrainer.evaluate, iter([1.0, 0.9, 0.8, 0.85, 0.9, 0.7])

    def evaluate(self: trainer.PackTrainer, *_: Any, **__: Any) -> dict[str, float]:
        factor = next(looks)  # the validation loss as if it fell twice, and then rose
        with monkeypatch.context() as patch:
            patch.setattr(self, "_summed", lambda *_: torch.tensor(100.0 * factor))
            return real(self)

    monkeypatch.setattr(trainer.PackTrainer, "evaluate", evaluate)
    run = in_process(tiny_model, steps=10, validate_every_steps=1, patience=2)
    status = run.status()
    assert (status["step"], status["adapter_step"]) == (4, 2)  # two looks without a lower loss end it
    name = "adapter_model.safetensors"
    assert run.has_adapter()
    assert (run.adapter / name).read_bytes() == (run.path / "best" / name).read_bytes()
    last = run.path / "checkpoints" / "checkpoint-4" / name
    assert not last.exists() or (run.adapter / name).read_bytes() != last.read_bytes()


def test_out_of_memory_goes_on_from_the_same_step(
    tiny_model: Path,
    runs: Path,
    single_precision: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calm = in_process(tiny_model, steps=4, max_length=64)
    real, calls = loss.summed_loss, []

    def small_memory(hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        calls.append(len(hidden))
        if len(calls) > 3 and len(hidden) > 80 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(hidden, *rest)

    monkeypatch.setattr(trainer, "summed_loss", small_memory)
    tight = in_process(tiny_model, steps=4, max_length=64)
    assert "memory ran out" in capsys.readouterr().err
    for (step, name, ours), (_, _, expected) in zip(curve(tight), curve(calm), strict=True):
        assert ours == pytest.approx(expected, abs=2e-4), (step, name)


def test_a_loss_that_goes_wrong_ends_in_a_sentence_with_the_last_good_weights(
    tiny_model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loss.summed_loss, []

    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) > 9 else 1.0)

    monkeypatch.setattr(trainer, "summed_loss", broken)
    with pytest.raises(ValueError, match=r"became nan at step \d+: try a lower learning rate\. The last good weights"):
        in_process(tiny_model, steps=40, validate_every_steps=50, save_every_steps=2)
    (run,) = list_runs()
    assert run.has_adapter()
    from safetensors.torch import load_file

    assert all(tensor.isfinite().all() for tensor in load_file(run.adapter / "adapter_model.safetensors").values())


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=520m", "tmpfs", str(disk)]).returncode:
        pytest.skip("mounting a small disk needs root")
    monkeypatch.setenv("TANDEM_RUNS", str(disk))
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_as_failed_and_the_last_checkpoint_survives(tiny_model: Path, small_disk: Path) -> None:
    run = start(tiny_model, steps=100_000, save_every_steps=2, validate_every_steps=50_000)
    wait_for(lambda: len(run.checkpoints()) >= 1)
    with (small_disk / "filler").open("wb") as filler:
        try:
            while True:
                filler.write(b"\0" * 2**16)
                filler.flush()
        except OSError:
            pass
    wait_for(lambda: run.status()["state"] in ENDED)
    assert run.status()["state"] == "failed" and "is full: make room, then resume" in run.status()["error"]
    assert run.checkpoints()


@pytest.mark.parametrize(
    "changed",
    [
        {"rslora": True, "r": 8},
        {"dora": True},
        {"neftune_alpha": 5.0},
        {"lora_plus_ratio": 16.0},
        {"optimizer": "adamw_8bit"},
        {"optimizer": "paged_adamw_8bit"},
        {"batching": "padded", "steps": 12},
        {"checkpointing": "on"},
        {"checkpointing": "auto", "schedule": "cosine"},
        {"steps": None, "epochs": 0.5},
        {"targets": ["q_proj", "v_proj"], "weight_decay": 0.1},
        {"template": "dolly"},
        {"loss_on": "all"},
    ],
    ids=str,
)
def test_every_option_trains(tiny_model: Path, runs: Path, changed: dict[str, Any]) -> None:
    run = in_process(tiny_model, **changed)
    losses = [loss for _, name, loss in curve(run) if name == "validation_loss"]
    assert losses[-1] < losses[0] and run.has_adapter()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_trains(tiny_model: Path, runs: Path, name: str) -> None:
    """Whole, but for its size: few rows, two steps (at a rate that shows in bf16), or seconds where it has minutes."""
    config = preset(name)
    small: dict[str, Any] = {"model": str(tiny_model), "rows": 24, "max_length": 256, "validation_rows": 4}
    small |= {"minutes": 0.2} if config.training.minutes else {"steps": 2, "learning_rate": 5e-3, "warmup_steps": 0}
    run, lock = create_run(with_settings(config, small), name)
    os.close(lock)
    train(run, Reporter(run))
    losses = [loss for _, kind, loss in curve(run) if kind == "validation_loss"]
    assert losses[-1] < losses[0] and run.has_adapter()
    report = read_json(run.path / "data.json")
    assert report["rows"]["train"] <= 24 and report["example"]


def test_in_half_precision_it_learns_as_in_single(
    tiny_model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 under the Trainer's autocast: the path of every GPU, and of CPUs with bf16 instructions."""
    curves = {}
    for dtype in (torch.float32, torch.bfloat16):
        compute_in(monkeypatch, dtype)
        curves[dtype] = [loss for _, _, loss in curve(in_process(tiny_model))]
    assert curves[torch.bfloat16] == pytest.approx(curves[torch.float32], rel=0.02)
    assert curves[torch.bfloat16] != curves[torch.float32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_compiled_layers_learn_as_uncompiled_ones(tiny_model: Path, runs: Path, checkpointing: str) -> None:
    settings = {"steps": 6, "checkpointing": checkpointing}
    plain, compiled = (in_process(tiny_model, compile=mode, **settings) for mode in ("off", "on"))
    assert [x for *_, x in curve(compiled)] == pytest.approx([x for *_, x in curve(plain)], rel=0.02)
    assert compiled.status()["compiled"] and not plain.status()["compiled"]


def test_a_time_budget_is_kept_and_used(tiny_model: Path, runs: Path) -> None:
    run = start(tiny_model, steps=None, minutes=0.6, rows=None)
    wait_for(lambda: run.status()["state"] in ENDED, 180)
    status, events = run.status(), run.metrics()[0]
    assert status["state"] == "finished", run.log_tail()
    spent = events[-1]["time"] - status["started_at"]
    assert spent < 0.6 * 60 * 1.25
    chosen = run.facts()["chosen"]
    assert chosen["training"]["steps"] == status["max_steps"] and chosen["training"]["schedule"] == "cosine"


def launch(tiny_model: Path, processes: int, **changed: Any) -> subprocess.Popen[str]:
    settings = tiny_run_settings(tiny_model) | changed
    flags = [part for name, value in settings.items() if value for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "finetune", "train", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_processes_have_the_losses_of_one(tiny_model: Path, runs: Path) -> None:
    alone = in_process(tiny_model, accumulation=2)
    process = launch(tiny_model, 2, accumulation=2)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    together = next(run for run in list_runs() if run != alone)
    assert together.status()["state"] == "finished" and len(list_runs()) == 2
    assert (alone.facts()["processes"], together.facts()["processes"]) == (1, 2)
    assert [c[:2] for c in curve(together)] == [c[:2] for c in curve(alone)]
    for (_, _, ours), (_, _, expected) in zip(curve(together), curve(alone), strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_a_killed_rank_ends_the_run_as_failed(tiny_model: Path, runs: Path) -> None:
    process = launch(tiny_model, 2, accumulation=2, steps=100_000)
    wait_for(lambda: bool(list_runs()) and list_runs()[0].status().get("step", 0) >= 2, 120)
    ranks = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _rank(p) == "1"]
    os.kill(ranks[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    status = list_runs()[0].status()
    assert status["state"] == "failed" and status["error"]


def _rank(process: Path) -> str | None:
    try:
        if "finetune" not in (process / "cmdline").read_text():
            return None
        pairs = (process / "environ").read_text().split("\0")
    except OSError:
        return None
    return next((pair.removeprefix("RANK=") for pair in pairs if pair.startswith("RANK=")), None)


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "assets" / "accelerate").glob("*.yaml")))
def test_accelerate_reads_every_shipped_config(name: str) -> None:
    from accelerate.commands.config import load_config_from_file

    config = load_config_from_file(str(ROOT / "assets" / "accelerate" / name))
    assert config.num_processes == 2
    if "fsdp" in name:
        assert config.fsdp_config["fsdp_version"] == 2


def test_under_fsdp_the_4_bit_weights_are_stored_as_what_they_compute_in(
    tiny_source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.base import load_base

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    base = load_base(tiny_source, trainable=True)
    stored = {p.dtype for p in base.parameters()}
    assert stored == {base.dtype}  # FSDP flattens parameters of one type together
