"""`python -m evaluation` on a real run of the tiny model."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, here, make_adapter, read_json, tandem, wait_for
from scored import evaluated

from evaluation.__main__ import main
from evaluation.config import EvalConfig
from evaluation.jobs import create_evaluation, leaks, scored_rows, start_evaluation
from evaluation.report import OVERALL, EvalReport, Sample
from finetune.base import add_lora, load_base
from finetune.config import Lora, from_mapping
from finetune.data import Row, load_rows, select
from finetune.merged import merge
from finetune.run import ENDED, Run, create_job, list_runs
from finetune.trainer import save_adapter


@pytest.fixture
def run(trained_run: Run) -> Run:
    return trained_run


def test_from_the_command_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    done = tandem("evaluation", run.id, "--rows", "16", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    for name in ("response loss", "ROUGE-L", "perplexity", "BLEU", "chrF", "exact match", "bits per byte"):
        assert name in done.stdout
    (job,) = run.evaluations()
    assert job.status()["state"] == "finished"
    report = EvalReport.model_validate(read_json(job.path / "report.json"))
    assert report.verdict in done.stdout
    assert report.rows == 16 and report.columns == ["base", "tuned"] and report.schema_version == 3
    assert {s.category for s in report.scores} > {"all", "open_qa"}
    assert report.hardware["cores"] >= 1 and report.versions["sacrebleu"] and report.leaks == {"same": 0, "near": 0}
    samples = [Sample.model_validate_json(line) for line in (job.path / "samples.jsonl").open()]
    tokens = sum(s.tokens for s in samples)
    overall = report.scores[0]
    assert overall.base == pytest.approx(sum(s.nll[0] for s in samples) / tokens)
    assert overall.tuned < overall.base  # four steps taught the random model something
    assert all(("exact_match" in s.values) == (s.category in SHORT) for s in samples)
    with (job.path / "samples.csv").open(newline="") as file:
        assert [line["answer_tuned"] for line in csv.DictReader(file)] == [s.answers[1] for s in samples]
    assert "http" not in (job.path / "report.html").read_text()
    assert here(main, "leaderboard") == 0
    board = capsys.readouterr().out
    assert run.id in board and f"{overall.tuned:.3f}" in board


def test_a_merged_model_and_dora_are_columns_too(run: Run, tiny_source: Any, tmp_path: Path) -> None:
    """Onto the weights that it was trained against, the merged model scores as the adapter does."""
    merge(run, "nf4", None, 4, print)
    report, _ = evaluated(
        run, "--columns", "base,tuned,merged", "--rows", "12", "--max-new-tokens", "4", "--probe", "default"
    )
    loss = {score.column: score for score in report.scores if (score.metric, score.category) == ("loss", "all")}
    assert loss["merged"].tuned == pytest.approx(loss["tuned"].tuned, abs=1e-4)
    assert loss["merged"].tuned < loss["merged"].base
    assert report.probe is not None and "On text that is no instruction, merged departs from base" in report.verdict
    far = {d.column: d.kl for d in report.probe.departures if d.kind == "all"}
    assert far["merged"] == pytest.approx(far["tuned"], rel=1e-2) and far["tuned"] > 0
    assert [fact.merged_sha256 is None for fact in report.column_facts] == [True, True, False]

    shutil.rmtree(run.adapter)
    torch.manual_seed(1)
    save_adapter(add_lora(load_base(tiny_source), Lora(r=4, dora=True)), run.adapter)  # it starts as the base
    report, _ = evaluated(run, "--rows", "12", "--max-new-tokens", "4")
    assert report.scores[0].tuned == pytest.approx(report.scores[0].base, abs=1e-3)


SHORT = ("closed_qa", "information_extraction", "classification")


def test_held_out_rows_were_never_trained_on(run: Run) -> None:
    config = from_mapping(run.config()["config"])
    scored = scored_rows(run, EvalConfig(rows=None))
    split = select(config, load_rows(config.data))
    assert scored.rows.rows == split.test and scored.trained_on == split.train
    assert not set(split.test) & {*split.train, *split.validation}


def test_columns_and_metrics_are_those_asked_for(run: Run) -> None:
    report, job = evaluated(
        run, "--rows", "12", "--max-new-tokens", "4", "--columns", "base,tuned,0.5", "--metrics", "loss,chrf"
    )
    assert report.columns == ["base", "tuned", "0.5"]
    overall = {(s.metric, s.column): s for s in report.scores if s.category == OVERALL}
    assert set(overall) == {(m, c) for m in ("loss", "chrf") for c in ("tuned", "0.5")}
    half, whole = overall["loss", "0.5"], overall["loss", "tuned"]
    assert whole.tuned < half.tuned < whole.base
    assert (job.path / "llm_comparator-2.json").exists()
    only, job = evaluated(run, "--rows", "12", "--metrics", "loss")
    assert {s.metric for s in only.scores} == {"loss"} and not (job.path / "llm_comparator.json").exists()
    assert only.scores[0].tuned == pytest.approx(whole.tuned, abs=1e-4)


def test_rows_of_another_file_with_their_leaks(run: Run, trained: tuple[Path, Path], tmp_path: Path) -> None:
    config = from_mapping(run.config()["config"])
    taught = select(config, load_rows(config.data)).train
    long = max(taught, key=lambda row: len(row.instruction.split()))
    new = Row("Name three rivers that nobody has ever named here.", "", "Foo, bar and baz.", "open_qa")
    nearly = long._replace(instruction=long.instruction + " Please!")
    rows = [taught[0]._replace(instruction=f"  {taught[0].instruction.upper()}"), nearly, new]
    assert leaks(rows, taught) == ["same", "near", ""]
    file = tmp_path / "other.jsonl"
    file.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    report, job = evaluated(run, "--data", str(file), "--rows", "none", "--metrics", "loss")
    assert report.rows == 3 and report.leaks == {"same": 1, "near": 1} and "2 of the scored prompts" in report.notes[0]
    samples = [Sample.model_validate_json(line) for line in (job.path / "samples.jsonl").open()]
    assert sorted(s.leak for s in samples) == ["", "near", "same"]
    renamed = [{"q": row.instruction, "a": row.response, "notes": 7} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    mapped = scored_rows(run, EvalConfig(data=str(file), data_columns="instruction=q, response=a"))
    assert [row.response for row in mapped.rows.rows] == [row.response for row in rows]
    same, _ = evaluated(run, "--data", str(trained[1]), "--rows", "4", "--metrics", "loss")
    assert "held-out" in same.split  # the run's own file: what it was trained on is not scored


def test_changed_data_is_refused(run: Run, trained: tuple[Path, Path]) -> None:
    before = trained[1].read_text()
    try:
        trained[1].write_text(before.replace("The", "This", 1))
        with pytest.raises(ValueError, match="nothing is known to be held out"):
            create_evaluation(run, EvalConfig())
    finally:
        trained[1].write_text(before)
    assert not run.evaluations()


def test_a_stop_ends_it_without_a_report(run: Run) -> None:
    job = start_evaluation(run, EvalConfig(rows=None, max_new_tokens=2000))
    wait_for(lambda: job.status().get("step", 0) >= 1)
    job.request_stop()
    wait_for(lambda: job.status()["state"] in ENDED)
    assert job.status()["state"] == "stopped" and not (job.path / "report.json").exists()


def test_bad_input_is_one_sentence(run: Run, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = tandem("evaluation", "no-such-run")
    assert done.returncode == 2 and "There is no run 'no-such-run'" in done.stderr
    os.close(create_job(runs, "zz-half", {"config": {}}, Run)[1])
    half = next(found for found in list_runs() if "zz-half" in found.id)
    for arguments, sentence in [
        ([half.id], "has no adapter yet (died)"),
        ([run.id, "--rows", "0"], "rows: input should"),
        ([run.id, "--columns", "base"], "needs two columns or more"),
        ([run.id, "--columns", "base,0"], "The same column is there twice"),
        ([run.id, "--columns", "base,checkpoint-7"], "has no whole checkpoint-7"),
        ([run.id, "--columns", "base,nonsense"], "There is no run 'nonsense'"),
        ([run.id, "--metrics", "rouge_9"], "There is no metric 'rouge_9'"),
        ([run.id, "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        ([run.id, "--data-columns", "instruction=q"], "give data too"),
        ([run.id, "--probe", "nowhere.txt"], "nowhere.txt can't be read"),
        ([run.id, "--judge", "ftp://host/v1"], "must be an http or https address"),
        ([run.id, "--judge", "https://me:secret@host/v1"], "the key belongs into TANDEM_JUDGE_KEY"),
        ([run.id, "--metrics", "loss,judge"], "say who judges"),
    ]:
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert sentence in said and len(said.strip().splitlines()) == 1
    assert not half.evaluations() and not run.evaluations()


def test_a_changed_adapter_is_not_served_the_old_answers(run: Run, tiny_source: Any) -> None:
    """The peers' trap: a cache that does not know the adapter. The base's results are reused, and only those."""
    arguments = ("--rows", "8", "--max-new-tokens", "6")
    first, first_job = evaluated(run, *arguments)
    again, _ = evaluated(run, *arguments)
    assert [(c.answers_from_cache, c.likelihoods_from_cache) for c in first.column_facts] == [(0, 0), (0, 0)]
    assert [(c.answers_from_cache, c.likelihoods_from_cache) for c in again.column_facts] == [(8, 8), (8, 8)]
    assert again.scores == first.scores
    shutil.rmtree(run.adapter)
    make_adapter(tiny_source, run.adapter, seed=9)
    second, second_job = evaluated(run, *arguments)
    assert [(c.answers_from_cache, c.likelihoods_from_cache) for c in second.column_facts] == [(8, 8), (0, 0)]
    assert first.column_facts[1].adapter_sha256 != second.column_facts[1].adapter_sha256
    assert first.scores[0].base == second.scores[0].base and first.scores[0].tuned != second.scores[0].tuned
    old, new = (
        [Sample.model_validate_json(line) for line in (job.path / "samples.jsonl").open()]
        for job in (first_job, second_job)
    )
    assert [s.answers[0] for s in old] == [s.answers[0] for s in new]
    assert [s.answers[1] for s in old] != [s.answers[1] for s in new]
    # What came from the cache is what comes without it, but for the rounding of a batch of other rows.
    fresh, _ = evaluated(run, *arguments, "--cache", "false")
    assert [c.answers_from_cache for c in fresh.column_facts] == [0, 0]
    for one, other in zip(fresh.scores, second.scores, strict=True):
        assert (one.base, one.tuned) == pytest.approx((other.base, other.tuned), abs=1e-5), one.metric


def test_a_killed_evaluation_goes_on_where_it_stopped(run: Run, runs: Path) -> None:
    arguments = ["--rows", "none", "--max-new-tokens", "400", "--metrics", "loss,rouge_l"]
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluation", run.id, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
    )

    def kept() -> int:
        files = list((runs / ".cache" / "answers").glob("*.jsonl"))
        return sum(file.read_bytes().count(b"\n") - 1 for file in files)

    wait_for(lambda: kept() > 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = run.evaluations()[0]
    assert killed.status()["state"] == "died" and not (killed.path / "report.json").exists()
    whole = kept()
    half_written = next((runs / ".cache" / "answers").glob("*.jsonl"))
    with half_written.open("a") as file:
        file.write('{"key": "half a li')
    report, job = evaluated(run, *arguments)
    assert 0 < whole < 2 * report.rows
    assert sum(c.answers_from_cache for c in report.column_facts) == whole
    assert [c.likelihoods_from_cache for c in report.column_facts] == [report.rows] * 2
    assert kept() >= 2 * report.rows
    assert len((job.path / "samples.jsonl").read_text().splitlines()) == report.rows
