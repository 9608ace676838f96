"""The promise itself, on real parts: quick-demo on real Dolly rows lowers the held-out response loss, clearly.

Half of its steps already do, and are what a test has time for.
"""

from pathlib import Path
from typing import Any

import pytest
from conftest import read_json, tandem

from evaluation.report import EvalReport
from finetune.run import list_runs

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_quick_demo_helps_on_held_out_dolly(dolly_rows: Path, smollm2: Any, runs: Path) -> None:
    demo = ["--preset", "quick-demo", "--steps", "15", "--data", str(dolly_rows)]
    trained = tandem("finetune", "train", *demo, timeout=900)
    assert trained.returncode == 0, trained.stderr
    evaluated = tandem("evaluation", "latest", "--rows", "32", "--metrics", "loss", timeout=900)
    assert evaluated.returncode == 0, evaluated.stderr
    report = EvalReport.model_validate(read_json(list_runs()[0].evaluations()[0].path / "report.json"))
    loss = report.scores[0]
    assert (loss.metric, loss.category) == ("loss", "all")
    assert loss.tuned < loss.base and loss.high < 0, report.verdict
    assert loss.verdict == "better" and "better on response loss" in report.verdict
