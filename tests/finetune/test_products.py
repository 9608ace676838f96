"""What is made of a run, as jobs; and what a person does with it: name, note, delete."""

import json
import os
import signal
import zipfile
from pathlib import Path

import pytest
from conftest import tiny_run_settings, wait_for

from finetune.about import About, read_about, write_about
from finetune.certificate import read
from finetune.config import TrainConfig, with_settings
from finetune.disk import delete_run, disk, folder_size
from finetune.job import create_run
from finetune.products import Export, Merge, make_export, make_merge, product, start_export, start_merge, work
from finetune.run import Job, Reporter, Run, create_job, list_runs, runs_folder
from finetune.train import train
from finetune.whole import is_whole


@pytest.fixture
def run(tiny_model: Path, runs: Path) -> Run:
    made, lock = create_run(with_settings(TrainConfig(), tiny_run_settings(tiny_model)), "test")
    reporter = Reporter(made)
    train(made, reporter)
    reporter.end()
    os.close(lock)
    return made


def here(run: Run, order: Merge | Export) -> Job:
    """The job, done in this process."""
    is_merge = isinstance(order, Merge)
    job, lock = create_job(run.path / ("merges" if is_merge else "exports"), "x", {"config": order.model_dump()})
    reporter = Reporter(job)
    if isinstance(order, Merge):
        make_merge(run, job, order, reporter)
    else:
        make_export(run, job, order, reporter)
    reporter.end()
    os.close(lock)
    return job


@pytest.mark.long
def test_a_killed_merge_leaves_the_merged_model_as_it_was(run: Run) -> None:
    done = here(run, Merge(onto="bf16", rows=4))
    assert done.status()["step"] == done.status()["max_steps"]
    killed = start_merge(run, Merge(onto="nf4", rows=4))
    with pytest.raises(ValueError, match="is being merged already"):
        start_merge(run, Merge(rows=4))
    with pytest.raises(ValueError, match=rf"The merge {killed.id} of it is still \w+: stop it first"):
        delete_run(run)
    wait_for(lambda: any(run.path.glob(".merging-*/*/model.safetensors")))
    os.kill(int(its_process(killed)), signal.SIGKILL)
    wait_for(lambda: not killed.is_alive())
    assert killed.status()["state"] == "died"
    assert run.has_merged() and read(run.merged()).chosen == "bf16"

    here(run, Merge(onto="nf4", rows=4))
    assert run.has_merged() and read(run.merged()).chosen == "nf4"
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")]
    delete_run(run)
    assert list_runs() == [] and not list(runs_folder().glob(".deleted-*"))


def test_exports_are_whole_and_the_last_one_of_a_kind_is_kept(run: Run) -> None:
    here(run, Merge(rows=4))
    zipped = here(run, Export(kind="adapter"))
    made = product(zipped)
    assert made and {"adapter_model.safetensors", "adapter_config.json"} <= set(zipfile.ZipFile(made).namelist())
    gguf = product(here(run, Export(kind="gguf", precision="f16")))
    assert gguf and gguf.name == f"{run.id}-f16.gguf" and gguf.read_bytes()[:4] == b"GGUF"
    ollama = product(here(run, Export(kind="ollama")))
    assert ollama and is_whole(ollama) and (ollama / "Modelfile").exists()
    again = here(run, Export(kind="adapter"))
    assert product(again) and again in run.jobs("exports") and zipped not in run.jobs("exports")
    assert len(run.jobs("exports")) == 3


def test_a_merge_stops_between_two_steps(run: Run) -> None:
    job, lock = create_job(run.path / "merges", "x", {"work": "merge", "config": Merge(rows=4).model_dump()})
    job.request_stop()
    reporter = Reporter(job)
    work(job, reporter)
    reporter.end()
    os.close(lock)
    assert job.status()["state"] == "stopped"
    assert not run.has_merged() and not list(run.path.glob(".merg*"))


def its_process(job: Job) -> str:
    """The id of the process that works on a job."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(job.path) in (folder / "cmdline").read_text().split("\0"):
                return folder.name
        except OSError:
            continue
    raise AssertionError(f"no process works on {job.id}")


def empty_run(runs: Path) -> Run:
    job, lock = create_job(runs, "demo", {"label": "demo"}, Run)
    Reporter(job).end()
    os.close(lock)
    assert isinstance(job, Run)
    return job


def test_what_is_not_there_yet_is_refused(runs: Path) -> None:
    made = empty_run(runs)
    with pytest.raises(ValueError, match="has no adapter yet"):
        start_merge(made, Merge())
    with pytest.raises(ValueError, match="has no adapter yet"):
        start_export(made, Export())
    made.adapter.mkdir()
    (made.adapter / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is made of the merged model"):
        start_export(made, Export(kind="gguf"))


def test_a_name_and_a_note(runs: Path) -> None:
    run = empty_run(runs)
    assert run.name() == "demo" and read_about(run.path) == About()
    write_about(run.path, "  the\nbest ", "Try <b>more</b> steps.\n")
    assert run.name() == "the best" and read_about(run.path).note == "Try <b>more</b> steps."
    for name, note in (("n" * 81, ""), ("", "n" * 4001)):
        with pytest.raises(ValueError, match="characters at most"):
            write_about(run.path, name, note)
    assert run.name() == "the best"
    write_about(run.path, "", "")
    assert run.name() == "demo"
    (run.path / "about.json").write_text("[]")
    assert run.name() == "demo"


def test_only_what_has_ended_is_deleted(runs: Path) -> None:
    first, second = empty_run(runs), empty_run(runs)
    evaluation, lock = create_job(first.path / "evals", "evaluation", {"run": first.id})
    with pytest.raises(ValueError, match=rf"The evaluation {evaluation.id} of it is still queued: stop it first"):
        delete_run(first)
    assert len(list_runs()) == 2
    os.close(lock)
    (runs / ".deleted-before-1").mkdir()
    delete_run(first)
    assert list_runs() == [second] and not list(runs.glob(".deleted-*"))


def test_what_is_used_of_the_disk(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    assert disk()[:2] == (0, 0)
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "cache" / "weights" / "w").write_bytes(b"w" * 1000)
    (tmp_path / "cache" / "link").symlink_to(tmp_path / "cache" / "weights")
    run = empty_run(runs)
    config = json.dumps({"label": "demo"}, indent=2)
    assert folder_size(run.path) >= len(config)
    assert disk().cache == 1000 and disk().runs >= folder_size(run.path) and disk().free > 0
