"""`python -m evaluation` on a real run of the tiny model."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, read_json, tandem, tiny_run_settings, wait_for

from evaluation.__main__ import main
from evaluation.config import EvalConfig
from evaluation.jobs import create_evaluation, held_out, start_evaluation
from evaluation.report import EvalReport, Sample
from finetune.config import TrainConfig, with_settings
from finetune.data import load_rows
from finetune.job import start_training
from finetune.run import ENDED, Run, create_job, list_runs


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "assets" / "dolly_sample.jsonl", tmp_path / "rows.jsonl"))


@pytest.fixture
def run(tiny_model: Path, runs: Path, rows_file: Path) -> Run:
    started = start_training(with_settings(TrainConfig(), tiny_run_settings(tiny_model, rows_file)), "test")
    wait_for(lambda: started.status()["state"] in ENDED)
    assert started.status()["state"] == "finished", started.status()
    return started


def test_from_the_command_line(run: Run) -> None:
    done = tandem("evaluation", run.id, "--rows", "16", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "response loss" in done.stdout and "ROUGE-L" in done.stdout and "perplexity" in done.stdout
    (job,) = run.evaluations()
    assert job.status()["state"] == "finished"
    report = EvalReport.model_validate(read_json(job.path / "report.json"))
    assert report.verdict in done.stdout
    assert report.rows == 16 and report.columns == ["base", "tuned"]
    assert {s.category for s in report.scores} > {"all", "open_qa"}
    samples = [Sample.model_validate_json(line) for line in (job.path / "samples.jsonl").open()]
    tokens = sum(s.tokens for s in samples)
    overall = report.scores[0]
    assert overall.base == pytest.approx(sum(s.nll[0] for s in samples) / tokens)
    assert overall.tuned < overall.base  # four steps taught the random model something


def test_held_out_rows_were_never_trained_on(run: Run) -> None:
    config = TrainConfig.model_validate(run.config()["config"])
    test = held_out(run, None).rows
    from finetune.data import split_rows, take

    split = split_rows(load_rows(config.data).rows, config.holdout)
    assert not set(test) & set(take(split.train, config.rows)) and not set(test) & set(split.validation)


def test_changed_data_is_refused(run: Run, rows_file: Path) -> None:
    rows_file.write_text(rows_file.read_text().replace("The", "This", 1))
    with pytest.raises(ValueError, match="nothing is known to be held out"):
        create_evaluation(run, EvalConfig())
    assert not run.evaluations()


def test_a_stop_ends_it_without_a_report(run: Run) -> None:
    job = start_evaluation(run, EvalConfig(rows=None, max_new_tokens=400))
    wait_for(lambda: job.status().get("step", 0) >= 1)
    job.request_stop()
    wait_for(lambda: job.status()["state"] in ENDED)
    assert job.status()["state"] == "stopped" and not (job.path / "report.json").exists()


def test_bad_input_is_one_sentence(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = tandem("evaluation", "no-such-run")
    assert done.returncode == 2 and "There is no run 'no-such-run'" in done.stderr
    os.close(create_job(runs, "half", {"config": {}}, Run)[1])
    half = list_runs()[0]
    for arguments, sentence in [
        ([half.id], "has no adapter yet (died)"),
        ([half.id, "--rows", "0"], "rows: input should"),
    ]:
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert sentence in said and len(said.strip().splitlines()) == 1
    assert not half.evaluations()


def test_the_adapter_decides(run: Run, tiny_source: Any) -> None:
    """Base and tuned are scored on the same prompts by one base, and a base row never sees the adapter."""
    tandem("evaluation", run.id, "--rows", "8", "--max-new-tokens", "4")
    first = EvalReport.model_validate(read_json(run.evaluations()[0].path / "report.json"))
    from conftest import make_adapter

    shutil.rmtree(run.adapter)
    make_adapter(tiny_source, run.adapter, seed=9)
    tandem("evaluation", run.id, "--rows", "8", "--max-new-tokens", "4")
    second = EvalReport.model_validate(read_json(run.evaluations()[0].path / "report.json"))
    assert first.scores[0].base == second.scores[0].base
    assert first.scores[0].tuned != second.scores[0].tuned
