"""Scores while training: they change nothing in it, and what goes wrong in them does not stop it."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import here, read_json, tiny_run_settings

from evaluation.config import EvalConfig
from evaluation.jobs import scored_rows
from evaluation.report import EvalReport, Sample
from finetune.__main__ import main as train
from finetune.config import TrainConfig, with_settings
from finetune.data import load_rows, select
from finetune.job import create_run
from finetune.looks import Looks
from finetune.run import Job, Run, create_job


class Said:
    """A run's progress, that remembers what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_training_is_the_same_bit_for_bit(trained: tuple[Path, Path], tiny_model: Path, runs: Path) -> None:
    settings = tiny_run_settings(tiny_model, trained[1]) | {"evaluate_every_steps": 3}
    run, lock = create_run(with_settings(TrainConfig(), settings), "looked at")
    here(train, "work", str(run.path), "--lock", str(lock))
    assert run.status()["state"] == "finished", run.log_tail()
    plain = Run(next(path for path in trained[0].iterdir() if not path.name.startswith(".")))

    def learned(one: Run) -> list[Any]:
        names = ("loss", "validation_loss", "grad_norm")
        return [[event.get(name) for name in names] for event in one.metrics()[0] if "scores" not in event]

    assert learned(run) == learned(plain) and len(learned(run)) >= 6
    weights, others = ((one.adapter / "adapter_model.safetensors").read_bytes() for one in (run, plain))
    assert weights == others

    (event,) = [event for event in run.metrics()[0] if "scores" in event]
    (folder,) = (run.path / "looks").iterdir()
    report = EvalReport.model_validate(read_json(folder / "report.json"))
    assert event["step"] == 3 and report.columns == ["base", "checkpoint-3"]
    assert Job(folder).status()["state"] == "finished"
    loss = event["scores"]["loss"]
    assert loss == {"base": report.scores[0].base, "tuned": report.scores[0].tuned} and loss["tuned"] < loss["base"]
    assert set(event["scores"]) == {"rows", "loss", "rouge_l", "chrf", "stopped", "repetition"}
    assert not run.evaluations()  # it is no evaluation that anyone asked for
    samples = [Sample.model_validate_json(line) for line in (folder / "samples.jsonl").open()]
    config = with_settings(TrainConfig(), settings)
    watched = {row.instruction for row in select(config, load_rows(config.data)).validation}
    assert {sample.instruction for sample in samples} <= watched  # never the rows that are reported at the end
    assert "validation" in report.split and scored_rows(run, EvalConfig(part="validation")).rows.rows


@pytest.fixture
def living(runs: Path) -> Run:
    run, _ = create_job(runs, "living", {}, Run)
    assert isinstance(run, Run)
    return run


def test_what_goes_wrong_is_said_and_training_goes_on(living: Run) -> None:
    for code in ("raise SystemExit(3)", "print('no figures')", ""):
        said: Any = Said()
        assert Looks(living, 1, said, (sys.executable, "-c", code))._figures(7) == {}
        assert "step 7 could not be scored" in said.lines[0]
    said = Said()
    prints = "import sys; print('x'); print('{\"at\": ' + sys.argv[2] + '}')"
    good = Looks(living, 1, said, (sys.executable, "-c", prints))
    assert good._figures(7) == {"at": 7} and not said.lines


def test_a_stop_does_not_wait_for_it(living: Run) -> None:
    said: Any = Said()
    slow = Looks(living, 1, said, (sys.executable, "-c", "import time; time.sleep(60)"))
    threading.Timer(0.5, living.request_stop).start()
    started = time.monotonic()
    assert slow._figures(1) == {} and time.monotonic() - started < 20 and not said.lines
