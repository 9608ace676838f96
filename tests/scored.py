"""A finished run of the tiny model, shared by the tests that evaluate one, and an evaluation of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, here, read_json, tiny_run_settings

from evaluation.report import EvalReport
from finetune.run import Job, Run


@pytest.fixture(scope="session")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A runs folder with one finished run of the tiny model, and its data file."""
    from finetune.__main__ import main as train
    from finetune.config import TrainConfig, with_settings
    from finetune.job import create_run

    folder = tmp_path_factory.mktemp("trained")
    rows = Path(shutil.copy(ROOT / "assets" / "dolly_sample.jsonl", folder / "rows.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_RUNS", str(folder / "runs"))
        run, lock = create_run(with_settings(TrainConfig(), tiny_run_settings(tiny_model, rows)), "test")
        here(train, "work", str(run.path), "--lock", str(lock))
        assert run.status()["state"] == "finished", run.status()
    yield folder / "runs", rows


@pytest.fixture
def trained_run(trained: tuple[Path, Path], runs: Path) -> Run:
    """A copy of that run, in this test's own runs folder; its data file is one file for all."""
    from finetune.run import list_runs

    shutil.copytree(trained[0], runs)
    return list_runs()[0]


def evaluated(run: Run, *arguments: str) -> tuple[EvalReport, Job]:
    """`python -m evaluation`, in this process."""
    from evaluation.__main__ import main

    assert here(main, run.id, *arguments) == 0
    job = run.evaluations()[0]
    return EvalReport.model_validate(read_json(job.path / "report.json")), job
