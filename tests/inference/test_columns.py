"""Names become columns, and columns are models of an endpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from finished_run import copy_whole, make_run

from finetune.run import Run
from inference.columns import BASE, Column, resolve, subject
from inference.served import names, serve


@pytest.fixture
def run(runs: Path, tiny_model: Path, tiny_source: Any, tiny_adapter: Path) -> Run:
    return make_run(runs, "20260101-000000-one", tiny_model, tiny_source.sha256, tiny_adapter)


def test_names_become_columns(run: Run) -> None:
    assert resolve(run, "base, tuned,0.5,1,0") == [
        BASE,
        Column("tuned", run.adapter),
        Column("0.5", run.adapter, 0.5),
        Column("1", run.adapter, 1.0),
        Column("0", None, 0.0),
    ]


def test_a_checkpoint_of_a_run_and_another_runs_adapter_are_columns(
    run: Run, runs: Path, tiny_model: Path, tiny_source: Any, tiny_adapter: Path
) -> None:
    with pytest.raises(ValueError, match="has no whole checkpoint-2; there are: none"):
        resolve(run, "checkpoint-2")
    (run.path / "checkpoints").mkdir()
    copy_whole(tiny_adapter, run.path / "checkpoints" / "checkpoint-2")
    (column,) = resolve(run, "checkpoint-2")
    assert column == Column("checkpoint-2", run.path / "checkpoints" / "checkpoint-2")
    other = make_run(runs, "20260102-000000-two", tiny_model, tiny_source.sha256, tiny_adapter)
    assert resolve(run, f"{other.id}") == [Column(other.id, other.adapter)]
    foreign = make_run(runs, "20260103-000000-three", tiny_model, "0" * 64, tiny_adapter)
    with pytest.raises(ValueError, match="another model"):
        resolve(run, foreign.id)
    assert names()[-4:] == [foreign.id, other.id, run.id, f"{run.id}/checkpoint-2"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "at least one"), ("tuned,99", "between"), ("nothing", "There is no run"), ("../x", "no run")],
)
def test_a_name_that_means_nothing_is_one_sentence(run: Run, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        resolve(run, text)


def test_a_run_without_an_adapter_has_no_tuned_column(run: Run) -> None:
    shutil.rmtree(run.adapter)
    with pytest.raises(ValueError, match="has no adapter yet"):
        resolve(run, "tuned")


def test_columns_are_models(run: Run, tiny_model: Path) -> None:
    assert names() == ["base:smollm2-135m", f"base:{tiny_model}", run.id]
    assert serve(run.id) == (subject(run), Column("tuned", run.adapter))
    assert serve(f"{run.id}@0.5").column == Column("0.5", run.adapter, 0.5)
    assert serve(f"base:{tiny_model}") == (subject(run), BASE)
    for name in ("base:/etc", "base:owner/name", f"{run.id}@", f"{run.id}@x", f"{run.id}/checkpoint-9", "nobody"):
        with pytest.raises(ValueError):
            serve(name)


def test_a_merged_model_is_a_column(run: Run, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="has no merged model: make it with"):
        resolve(run, "merged")
    copy_whole(tiny_model, run.path / "merged")
    assert resolve(run, "base,merged")[1] == Column("merged", None, 0.0, run.path / "merged")
