"""Whole runs on the tiny NF4 model, as a user starts them: what moved, what stayed, how they end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, here, read_json, tandem, tiny_run_settings, wait_for
from safetensors.torch import load_file

from finetune.__main__ import main
from finetune.base import load_base
from finetune.config import TrainConfig, with_settings
from finetune.job import resume_training, start_training
from finetune.run import ENDED, Run, list_runs
from inference.lora import Placed, load_adapter, placed


def flags(tiny_model: Path, **changed: Any) -> list[str]:
    settings = tiny_run_settings(tiny_model) | changed
    return [part for name, value in settings.items() if value for part in (f"--{name.replace('_', '-')}", str(value))]


def start(tiny_model: Path, **changed: Any) -> Run:
    return start_training(with_settings(TrainConfig(), tiny_run_settings(tiny_model) | changed), "test")


def test_train_from_the_command_line(tiny_model: Path, tiny_source: Any, runs: Path) -> None:
    done = tandem("finetune", "train", *flags(tiny_model))
    assert done.returncode == 0, done.stderr
    (run,) = list_runs()
    assert json.loads(done.stdout) == {"run": run.id, "state": "finished", "adapter": str(run.adapter)}
    events = run.metrics()[0]
    losses = [e["loss"] for e in events if "loss" in e]
    validation = [e["validation_loss"] for e in events if "validation_loss" in e]
    assert len(losses) == 4 and len(validation) == 2 and validation[-1] < validation[0]
    assert run.status()["step"] == run.status()["max_steps"] == 4
    facts = run.facts()
    assert facts["template"] == "chat" and "not Dolly" in facts["data"]
    assert facts["rows"]["train"] + facts["rows"]["dropped"] == 40

    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert all(tensor.abs().sum() > 0 for tensor in weights.values())  # every matrix moved, lora_B away from 0
    base = load_base(tiny_source)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = base(ids).logits
        with placed(base, [Placed(load_adapter(run.adapter, base), [1.0])]):
            after = base(ids).logits
    assert not torch.equal(before, after)

    record = read_json(run.path / "config.json")
    assert record["config"]["training"]["steps"] == 4
    assert record["versions"]["torch"] and len(record["data"]["sha256"]) == 64
    assert len(facts["model_sha256"]) == 64


def test_the_same_config_gives_the_same_losses(tiny_model: Path, runs: Path, tmp_path: Path) -> None:
    assert here(main, "train", *flags(tiny_model)) == 0
    (first,) = list_runs()
    assert here(main, "train", "--config", str(first.path / "config.json")) == 0
    second = list_runs()[0]
    assert second != first

    def losses(run: Run) -> list[Any]:
        return [e.get("loss", e.get("validation_loss")) for e in run.metrics()[0]]

    assert losses(first) == losses(second)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "smollm3"], "There is no model 'smollm3': use smollm2-135m, mistral-7b"),
        (["--model", "someone/unheard-of"], "is not on this machine and the hub can't be reached"),
        (["--model", "/no/such/folder"], "There is no model at /no/such/folder"),
        (["--steps", "0"], "steps: input should be greater than or equal to 1 (given: '0')"),
        (["--data", "/no/such/file.jsonl"], "can't be read: no such file"),
        (["--preset", "nonesuch"], "There is no preset 'nonesuch'"),
        (["--rows", "-3"], "rows: input should be greater than or equal to 1"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    runs: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1
    assert not runs.exists() or not list(runs.iterdir())


def test_a_row_without_a_response_stops_before_a_run_exists(tiny_model: Path, runs: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "response": "b"}\n{"instruction": "c"}\n')
    done = tandem("finetune", "train", *flags(tiny_model, data=rows))
    assert done.returncode == 2 and "Row 2 of" in done.stderr and "has no response" in done.stderr
    assert not runs.exists()


def test_stop_keeps_the_adapter(tiny_model: Path, runs: Path) -> None:
    run = start(tiny_model, steps=100_000)
    wait_for(lambda: run.status().get("step", 0) >= 2)
    run.request_stop()
    run.request_stop()
    wait_for(lambda: run.status()["state"] in ENDED)
    assert run.status()["state"] == "stopped" and run.has_adapter()
    assert "Traceback" not in run.log_tail()


def test_sigterm_is_an_orderly_stop(tiny_model: Path, runs: Path) -> None:
    command = [sys.executable, "-m", "finetune", "train", *flags(tiny_model, steps=100_000)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: bool(list_runs()) and list_runs()[0].status().get("step", 0) >= 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert list_runs()[0].status()["state"] == "stopped" and list_runs()[0].has_adapter()


def test_a_run_killed_in_the_middle_is_seen_as_died(tiny_model: Path, runs: Path) -> None:
    run = start(tiny_model, steps=100_000)
    wait_for(lambda: run.status().get("step", 0) >= 2)
    pid = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _works_on(p, run))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: run.status()["state"] == "died", 5)
    assert not run.has_adapter()


def _works_on(process: Path, run: Run) -> bool:
    try:
        return f"work\0{run.path}" in (process / "cmdline").read_text()
    except OSError:
        return False


def test_runs_wait_for_each_other_in_order(tiny_model: Path, runs: Path) -> None:
    first = start(tiny_model, steps=100_000)
    wait_for(lambda: first.status().get("step", 0) >= 1)
    second, third = start(tiny_model, steps=100_000), start(tiny_model, steps=1)
    wait_for(lambda: third.status().get("ahead") == 1 and second.status()["state"] == "queued")
    assert first.status()["state"] == "running"
    never = start(tiny_model, steps=1)
    never.request_stop()  # a queued run stops without ever starting
    wait_for(lambda: never.status()["state"] == "stopped")
    first.request_stop()
    wait_for(lambda: second.status().get("step", 0) >= 1)
    assert first.status()["state"] == "stopped" and third.status()["state"] == "queued"

    resume_training(first)  # a resumed run queues behind those that wait
    wait_for(lambda: first.status()["state"] == "queued" and first.status().get("ahead") == 1)
    first.request_stop()
    second.request_stop()
    wait_for(lambda: third.status()["state"] == "finished")
    assert second.metrics()[0][-1]["time"] < third.metrics()[0][0]["time"]
    assert first.status()["state"] == "stopped"


def test_a_failure_is_told_in_a_sentence(tiny_model: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(main, "train", *flags(tiny_model, targets="no_such_layer")) == 2
    sentence = "The model has no layer 'no_such_layer'"
    assert sentence in capsys.readouterr().err
    (run,) = list_runs()
    assert run.status()["state"] == "failed" and run.status()["error"].startswith(sentence)
    assert not run.has_adapter()
