"""What the Evaluate and Runs tabs show, without a browser: order of the examples, files made anew, curves, settings."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from evaluation.report import EvalReport, Sample, read_report
from finetune.about import write_about
from finetune.config import TrainConfig
from finetune.run import Job, Reporter, Run, create_job
from studio.views import curves, evaluate, examples, files, products, runs


def sample(loss: list[float], category: str = "open_qa", **more: list[float]) -> Sample:
    return Sample(
        instruction=f"loss {loss}",
        context="",
        reference="r",
        category=category,
        answers=["a", "b"],
        stops=["end", "end"],
        nll=loss,
        tokens=1,
        bytes=1,
        values={"loss": loss} | more,
    )


def report(**changed: Any) -> EvalReport:
    names = ("run", "model", "model_sha256", "data", "template", "dtype", "verdict")
    values: dict[str, Any] = dict.fromkeys(names, "x") | {"columns": ["base", "tuned"], "rows": 3, "dropped": 0}
    return EvalReport(**values | {"max_new_tokens": 8, "versions": {}, "seconds": 1, "scores": []} | changed)


def scored(run: Run, samples: list[Sample]) -> Job:
    job, lock = create_job(run.path / "evals", "evaluation", {"run": run.id})
    os.close(lock)
    (job.path / "report.json").write_text(report().model_dump_json())
    (job.path / "samples.jsonl").write_text("".join(s.model_dump_json() + "\n" for s in samples))
    return job


@pytest.fixture
def run(runs: Path) -> Run:
    record = {"label": "demo", "config": TrainConfig().model_dump(), "data": {"source": "d", "sha256": "1"}}
    job, lock = create_job(runs, "demo", record, Run)
    os.close(lock)
    assert isinstance(job, Run)
    return job


def test_a_lower_loss_is_a_gain_and_only_what_has_the_score_is_shown(run: Run) -> None:
    rows = [sample([2.0, 2.5]), sample([2.0, 1.0]), sample([2.0, 1.9], "closed_qa", exact_match=[0.0, 1.0])]
    file = scored(run, rows).path / "samples.jsonl"
    first = {
        order: examples.shown(file, 1, "loss", order, examples.EVERY, 0).samples[0] for _, order in examples.ORDERS
    }
    assert first == {"gain": rows[1], "loss": rows[0], "asked": rows[0]}
    page = examples.shown(file, 1, "exact_match", "gain", examples.EVERY, 7)
    assert page == examples.Shown([rows[2]], 0, 1, 1)
    assert examples.shown(file, 1, "exact_match", "gain", "open_qa", 0).found == 0
    assert examples.metrics(examples.index(file)) == ["loss", "exact_match"]
    # Another file under the same name is read anew.
    file.write_text(rows[0].model_dump_json() + "\n")
    assert examples.shown(file, 1, "loss", "gain", examples.EVERY, 0).samples == [rows[0]]


def test_files_that_an_evaluation_did_not_write_are_made(run: Run) -> None:
    job = scored(run, [sample([2.0, 1.0])])
    found = evaluate.found(run, f"{run.id}/{job.id}")
    assert found and evaluate.found(run, f"other/{job.id}") is None
    made = {kind: files.evaluation_file(job, found.report, 1, kind) for kind in files.EVALUATION_FILES}
    assert all(path.name.startswith(run.id) and run.path not in path.parents for path in made.values())
    assert len(list(csv.DictReader(made["examples"].open()))) == 1
    assert json.loads(made["comparator"].read_text())["examples"][0]["output_text_b"] == "b"
    assert made["page"].read_text().startswith("<!doctype html>")
    assert EvalReport.model_validate_json(made["report"].read_text()) == found.report


def test_a_broken_report_is_a_sentence(run: Run) -> None:
    job = scored(run, [])
    (job.path / "report.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match="holds no report that can be read here: evaluate again"):
        read_report(job.path / "report.json")


def test_curves_are_thinned_out_and_outlive_a_loss_that_is_none(run: Run) -> None:
    assert curves.curve(curves.losses(run)) == ""
    reporter = Reporter(run)
    for step in range(1000):
        reporter.metric(step=step, loss=float("nan") if step == 999 else 3 - step / 1000)
    found = curves.losses(run)
    assert found.best == pytest.approx(2.002) and found.kind == "training" and len(found.training) < 80
    assert "nan" not in curves.curve(found)
    reporter.metric(step=1000, validation_loss=1.5)
    assert curves.losses(run, until=0) == found  # no time left: as it was
    found = curves.losses(run)
    assert (found.best, found.kind, found.validation) == (1.5, "validation", [(1000, 1.5)])


def test_settings_beside_the_defaults_and_beside_another_run(run: Run) -> None:
    assert runs.settings_html(run, None, False) == "<p>All settings are the defaults.</p>"
    assert "training.steps" in runs.settings_html(run, None, True)
    record = run.config()
    record["config"]["lora"]["r"] = "<b>8</b>"
    job, lock = create_job(run.path.parent, "other", record, Run)
    os.close(lock)
    assert isinstance(job, Run)
    write_about(job.path, "<i>x</i>", "")
    html = runs.settings_html(run, job, False)
    assert html.count("<tr") == 2 and "&lt;b&gt;8&lt;/b&gt;" in html and "&lt;i&gt;x&lt;/i&gt;" in html
    assert "<b>8" not in html + runs.list_html([run, job], None) and "<i>" not in runs.list_html([run, job], None)


def test_an_export_that_is_not_offered_is_refused() -> None:
    assert products.export_order("gguf f16").precision == "f16"
    with pytest.raises(ValueError, match="There is no export"):
        products.export_order("gguf ../x")


def test_what_is_too_large_for_the_page_says_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 10)
    assert files.offered(file, "m.gguf").read_bytes() == b"x" * 10
    monkeypatch.setattr(files, "DOWNLOAD_LIMIT", 9)
    with pytest.raises(ValueError, match=rf"it lies in {tmp_path}"):
        files.offered(file, "m.gguf")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (5e9, "5.0 GB")])
def test_amounts(count: float, text: str) -> None:
    assert runs.amount(count) == text
