"""The run directory under hard conditions: processes really killed, disks really full, lines half written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import wait_for

from finetune.run import Job, Reporter, Run, create_job, find_run, list_runs
from finetune.whole import finish_folder, is_whole, write_atomically

HOLD = """
import sys, time
from finetune.run import Reporter, create_job
from pathlib import Path
job, lock = create_job(Path(sys.argv[1]), "held", {})
Reporter(job).status(state="running", step=41, max_steps=60)
print(job.path, flush=True)
time.sleep(60)
"""


def test_a_killed_process_is_seen_as_died_at_once(runs: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(runs)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    job = Job(Path(process.stdout.readline().strip()))
    assert job.is_alive() and job.status()["state"] == "running"
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: not job.is_alive(), 5)  # not yet reaped: a zombie would still answer kill -0
    os.kill(process.pid, 0)
    status = job.status()
    assert status["state"] == "died" and "step 41" in status["error"]
    process.wait()


def test_looking_at_a_job_does_not_disturb_it(runs: Path) -> None:
    job, lock = create_job(runs, "x", {})
    assert all(job.is_alive() for _ in range(20))
    os.close(lock)
    assert not job.is_alive()


def test_half_a_line_is_left_for_the_next_look(runs: Path) -> None:
    job, _ = create_job(runs, "x", {})
    Reporter(job).metric(step=1, loss=2.0)
    with (job.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    events, offset = job.metrics()
    assert [e["step"] for e in events] == [1]
    with (job.path / "metrics.jsonl").open("a") as stream:
        stream.write('ss": 1.5}\n')
    assert [e["step"] for e in job.metrics(offset)[0]] == [2]


def test_runs_of_one_second_get_names_of_their_own(runs: Path) -> None:
    names = {create_job(runs, "Same label!", {})[0].id for _ in range(3)}
    assert len(names) == 3 and all("same-label" in name for name in names)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(ValueError, match="MB left and a run needs 512 MB: make room"):
            create_job(disk / "runs", "x", {})
        assert not list((disk / "runs").iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_is_no_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Runs can't be kept in"):
        create_job(tmp_path / "file", "x", {})


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", "", "nothing-here", "a/b"])
def test_no_name_leads_out_of_the_folder(runs: Path, name: str) -> None:
    create_job(runs, "x", {})
    outside = runs.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="There is no run"):
        find_run(name)


def test_latest_is_the_newest(runs: Path) -> None:
    with pytest.raises(ValueError, match="There is no run yet"):
        find_run("latest")
    create_job(runs, "a", {})
    newest, _ = create_job(runs, "b", {})
    assert find_run("latest") == Run(newest.path) == list_runs()[0]


def test_a_folder_is_whole_with_its_manifest_and_not_cut_short(tmp_path: Path) -> None:
    hidden, target = tmp_path / ".hidden", tmp_path / "adapter"
    hidden.mkdir()
    (hidden / "weights").write_bytes(b"12345")
    assert not is_whole(hidden)
    finish_folder(hidden, target)
    assert is_whole(target) and not hidden.exists()
    (target / "weights").write_bytes(b"123")
    assert not is_whole(target)


def test_an_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "status.json", json.dumps({"a": 1}))
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
