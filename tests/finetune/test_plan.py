"""`python -m finetune plan` on the tiny model, and what its times are made of."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_run_settings

from finetune import plan
from finetune.__main__ import main
from finetune.config import TrainConfig, with_settings


@pytest.fixture
def flags(tiny_model: Path) -> list[str]:
    given = {k: v for k, v in tiny_run_settings(tiny_model).items() if v is not None}
    return ["plan", *[text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]]


def test_the_plan_in_words(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "Memory, predicted" in out and "it fits." in out
    assert "base, NF4" in out and "activations" in out
    assert "rough estimate" in out and "--pilot measures it" in out and "4 steps" in out


def test_a_pilot_measures_the_run(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, "--pilot", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert set(made) == {"data", "memory", "time"}
    time = made["time"]
    assert time["method"] == "pilot" and time["steps"] == 4
    parts = [time[f"{part}_seconds"] for part in ("preparing", "training", "validation", "other")]
    assert time["seconds"] == pytest.approx(sum(parts)) and min(parts) > 0
    assert time["training_seconds"] >= 4 * time["seconds_per_step"]
    assert made["memory"]["fits"] is True and made["memory"]["checkpointing"] is False


@pytest.mark.parametrize("extra", [["--batching", "padded"], ["--checkpointing", "on"]])
def test_a_pilot_runs_as_the_run_would(flags: list[str], extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, *extra, "--pilot"]) == 0
    assert "measured on this run's own batches" in capsys.readouterr().out


def test_a_pilot_of_a_run_that_time_alone_ends(tiny_model: Path) -> None:
    settings = tiny_run_settings(tiny_model) | {"steps": None, "epochs": None, "minutes": 1}
    made = plan.make(with_settings(TrainConfig(), settings), pilot=True)
    assert made.time.method == "limit" and made.time.seconds == pytest.approx(60)


def test_a_pilot_that_does_not_fit_is_not_started(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune import memory

    monkeypatch.setattr(memory, "device", lambda: memory.Device("cpu", 2**20, 2**20))
    assert main([*flags, "--pilot"]) == 2
    assert "The pilot was not started. It needs" in capsys.readouterr().err


def test_bad_settings_are_a_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, "--r", "0"]) == 2
    assert capsys.readouterr().err.startswith("finetune: r: ")


def test_a_limit_in_minutes_is_the_time(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, "--minutes", "3"]) == 0
    assert "its limit of 3 min" in capsys.readouterr().out


def test_work_is_counted_as_the_trainer_counts_it(tiny_model: Path, tiny_source: Any, tiny_tokenizer: Any) -> None:
    from finetune.base import context_limit
    from finetune.train import prepare

    config = with_settings(
        TrainConfig(),
        tiny_run_settings(tiny_model) | {"steps": None, "epochs": 2, "accumulation": 2, "validate_every_steps": 3},
    )
    prepared = prepare(config, tiny_tokenizer, context_limit(tiny_source))
    work = plan.work_of(config, prepared)
    tokens = sum(len(example.ids) for example in prepared.train)
    assert work.train_tokens == pytest.approx(2 * tokens, rel=0.1)
    assert work.looks == 1 + -(-work.steps // 3)


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "12 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert plan.duration(seconds) == words
