import os
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation.report import EvalReport, Score
from finetune.config import preset
from finetune.run import Reporter, Run, create_job
from finetune.whole import seal
from inference.columns import Column
from inference.decode import Answer
from studio import view
from studio.form import UPLOAD_LIMIT, keep_upload, train_config
from studio.views import evaluate as evaluated


def test_an_untouched_form_is_the_preset() -> None:
    chosen = preset("quick-demo")
    assert train_config("quick-demo", chosen.model, chosen.rows, chosen.training.steps, None) == chosen


@pytest.mark.parametrize("model", ["/etc", "../secret", "~/x", "model.gguf", "."])
def test_a_model_on_the_page_is_no_path(model: str) -> None:
    with pytest.raises(ValueError, match="Here a model is one of"):
        train_config("quick-demo", model, 10, 1, None)


def test_an_upload_is_kept_by_content(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "my rows.jsonl"
    file.write_text('{"instruction": "a", "response": "b"}\n')
    kept = keep_upload(str(file))
    assert Path(kept).read_text() == file.read_text() and Path(kept).parent == runs / ".uploads"
    assert keep_upload(str(file)) == kept


def test_a_runs_sides_are_its_adapter_its_checkpoints_and_its_merged_model(runs: Path) -> None:
    job, lock = create_job(runs, "test", {"config": {}}, Run)
    os.close(lock)
    run = Run(job.path)
    for name in ("adapter", "checkpoints/checkpoint-4", "checkpoints/checkpoint-20", "merged"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "weights").write_text("w")
    seal(run.adapter)
    assert view.side_choices(run) == ["tuned"]  # what is not whole is not offered
    for name in ("checkpoints/checkpoint-4", "checkpoints/checkpoint-20", "merged"):
        seal(run.path / name)
    assert view.side_choices(run) == ["tuned", "checkpoint-20", "checkpoint-4", "merged"]
    assert view.side_column(run, "tuned", 0.5) == Column("tuned", run.adapter, 0.5)
    assert view.side_column(run, "checkpoint-4", 1) == Column(
        "checkpoint-4", run.path / "checkpoints" / "checkpoint-4", 1
    )
    assert view.side_column(run, "merged", 0.5) == Column("merged", None, 0.0, run.path / "merged")
    with pytest.raises(ValueError, match="has no whole checkpoint-7"):
        view.side_column(run, "checkpoint-7", 1)


@pytest.mark.parametrize("ending", [".json", ".CSV", ".parquet"])
def test_an_upload_keeps_its_kind(runs: Path, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"rows{ending}"
    file.write_bytes(b"rows")
    assert Path(keep_upload(str(file))).suffix == ending.lower()


def test_uploads_are_checked(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "rows.exe"
    other.touch()
    with pytest.raises(ValueError, match=r"rows\.exe is none of \.jsonl, \.json, \.csv, \.parquet"):
        keep_upload(str(other))
    huge = tmp_path / "rows.jsonl"
    with huge.open("wb") as stream:
        stream.truncate(UPLOAD_LIMIT + 1)
    with pytest.raises(ValueError, match="is larger than 200 MB"):
        keep_upload(str(huge))


def test_progress_in_a_line(runs: Path) -> None:
    assert view.progress(None, "nothing") == "nothing"
    job, _ = create_job(runs, "x", {}, Run)
    reporter = Reporter(job)
    reporter.status(state="running", step=3, max_steps=10, tokens_per_second=211.4, eta_seconds=65)
    assert view.progress(job, "") == "**running** · step 3 of 10 · 211 tokens/s · 1:05 left"
    reporter.status(state="failed", error="No <b>disk</b> [left](x).")
    assert view.progress(job, "").endswith("No &lt;b&gt;disk&lt;/b&gt; \\[left\\]\\(x\\).")


def test_losses_as_a_frame(runs: Path) -> None:
    job, _ = create_job(runs, "x", {}, Run)
    reporter = Reporter(job)
    reporter.metric(step=0, validation_loss=3.0)
    reporter.metric(step=1, loss=2.5)
    assert isinstance(job, Run)
    frame = view.loss_frame(job)
    assert frame.values.tolist() == [[1, 2.5, "training"], [0, 3.0, "validation"]]


def test_figures_under_an_answer() -> None:
    assert (
        view.figures(Answer("text", 11, 0.5, 1.5, "end"))
        == "10.0 tokens/s · 11 tokens · first after 0.5 s · ended by itself"
    )
    assert view.figures(None) == "…"


def report(**changed: Any) -> EvalReport:
    score = {"metric": "loss", "category": "all", "examples": 20, "base": 2.0, "tuned": 1.5, "difference": -0.5}
    values: dict[str, Any] = dict.fromkeys(
        ("run", "model", "model_sha256", "data", "template", "dtype", "verdict"), "x"
    )
    values |= {
        "columns": ["base", "tuned"],
        "rows": 20,
        "dropped": 0,
        "max_new_tokens": 8,
        "versions": {},
        "seconds": 1,
    }
    values["scores"] = [Score(**score | {"low": -0.6, "high": -0.4, "higher_is_better": False} | changed)]
    return EvalReport(**values)


def test_the_chart_shows_both_and_the_interval() -> None:
    base, tuned = evaluated.score_chart(report(), "tuned", "loss").data
    assert list(base.x) == [2.0] and list(tuned.x) == [1.5]
    assert tuned.error_x.array[0] == pytest.approx(0.1) and tuned.error_x.arrayminus[0] == pytest.approx(0.1)


def test_the_table_has_perplexity_beside_the_loss() -> None:
    table = evaluated.score_table(report().scores, "all")
    loss, perplexity = re.findall(r"<tr><th.*?</tr>", table)[1:]
    assert "response loss" in loss and ">2.0<" in loss and ">1.5<" in loss and '"better">better<' in loss
    assert "perplexity" in perplexity and ">7.389<" in perplexity


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3661, "1:01:01")])
def test_durations(seconds: float, text: str) -> None:
    assert view.duration(seconds) == text
