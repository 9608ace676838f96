"""Fine-tune in Chromium over a tiny model: the form, one's own rows, the check, and runs that are killed and go on."""

import csv
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import shot, shots, tab
from conftest import App, read_json, wait_for
from playwright.sync_api import Locator, Page, expect

from finetune.run import ENDED, Run, list_runs

pytestmark = pytest.mark.browser

WAIT = 90_000  # a run starts in 5 s on a quiet core, and in half a minute on one that four share
ATTACK = "<img src=x onerror=\"document.title='owned'\">${document.title='owned'}"


@pytest.fixture
def fine_tune(page: Page, small_app: App, small_runs: list[Any]) -> Iterator[Page]:
    """The tab, with a finished run chosen. Runs that a test makes are taken away after it."""
    expect.set_options(timeout=WAIT)
    page.goto(small_app.address)
    tab(page, "Fine-tune")
    expect(page.locator("#train-status")).to_contain_text("finished")
    yield page
    for run in list_runs():
        if run not in small_runs:
            if run.is_alive():
                os.kill(process_of(run), signal.SIGKILL)
            shutil.rmtree(run.path)


def fold_out(page: Page, *titles: str) -> None:
    for title in titles:
        page.get_by_role("button", name=title, exact=False).click()


def fill(page: Page, name: str, value: str) -> None:
    page.fill(f"#{name} input, #{name} textarea", value)


def pick(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name} input").click()
    page.locator(f"#{name}").get_by_role("option", name=value, exact=True).click()


def start(page: Page) -> Run:
    """Press Start; the run that came of it."""
    before = {run.id for run in list_runs()}
    page.click("#start")
    wait_for(lambda: {run.id for run in list_runs()} - before)
    return next(run for run in list_runs() if run.id not in before)


def small(page: Page, steps: int) -> None:
    """Settings of a run that takes seconds, or one that lasts."""
    fill(page, "rows", "40")
    fill(page, "steps", str(steps))
    fold_out(page, "All settings", "Length, batches and memory")
    fill(page, "tokens-per-batch", "256")


def status(page: Page) -> Locator:
    return page.locator("#train-status")


@pytest.mark.long
def test_a_changed_form_is_the_runs_config_and_the_run_is_watched(fine_tune: Page) -> None:
    page = fine_tune
    # A preset fills every setting, the folded ones too, and says what it is for.
    page.get_by_label("mistral-7b-dolly1k").check()
    expect(page.locator("#model input")).to_have_value("mistral-7b")
    expect(page.locator("#preset-help")).to_contain_text("four epochs of packed batches")
    fold_out(page, "All settings", "LoRA", "Learning rate and optimizer", "Validation, samples and checkpoints")
    expect(page.locator("#targets textarea, #targets input")).to_have_value("q_proj, k_proj, v_proj, o_proj, gate_proj")
    page.get_by_label("quick-demo").check()
    expect(page.locator("#model input")).to_have_value("smollm2-135m")
    expect(page.locator("#r input")).to_have_value("16")
    shots(page, "fine-tune-form")

    fill(page, "rows", "40")
    fill(page, "steps", "6")
    fill(page, "r", "4")
    fill(page, "targets", "q_proj, v_proj")
    page.locator("#rslora input").check()
    fill(page, "learning-rate", "0.02")
    pick(page, "schedule", "cosine")
    fill(page, "sample-every-steps", "3")
    fill(page, "validate-every-steps", "3")
    run = start(page)
    config = run.config()["config"]
    assert config["model"] == "smollm2-135m" and config["rows"] == 40 and config["data"] is None
    assert config["lora"] == {
        "r": 4, "alpha": 32, "dropout": 0, "targets": ["q_proj", "v_proj"], "rslora": True, "dora": False,
    }  # fmt: skip
    training = config["training"]
    assert (training["steps"], training["schedule"], training["learning_rate"]) == (6, "cosine", 0.02)

    # It is chosen, and followed to its end: figures, plots, answers; then what its adapter is good for.
    expect(status(page)).to_contain_text("finished · step 6 of 6")
    expect(page.locator("#train-figures")).to_contain_text("Process memory")
    for name in ("compare-now", "evaluate-now", "merge-now"):
        expect(page.locator(f"#{name}")).to_be_visible()
    for plot in ("#loss-plot", "#rate-plot"):
        expect(page.locator(f"{plot} .mark-line path").first).to_be_attached()
    expect(page.locator("#answers")).to_contain_text("after step 6")
    expect(page.locator("#answers article")).to_have_count(3)
    page.locator("#look input[type=number]").fill("1")
    page.keyboard.press("Enter")
    expect(page.locator("#answers")).to_contain_text("before the first step")
    shots(page, "fine-tune-run")


@pytest.mark.long
def test_own_rows_are_mapped_previewed_checked_and_trained_on(fine_tune: Page, tmp_path: Path) -> None:
    page = fine_tune
    fold_out(page, "Your own rows")
    upload = page.locator("#data-file input[type=file]")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PK\x03\x04 no parquet at all")
    upload.set_input_files(broken)
    expect(page.locator("#data-says")).to_contain_text("broken.parquet is not Parquet that can be read")
    expect(page.locator("#data-says")).not_to_contain_text(str(tmp_path.parent))
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    expect(page.locator("#data-says")).to_be_empty()

    rows = tmp_path / "My quiz.csv"
    with rows.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Frage", "Antwort", "Hinweis", "Art"])
        writer.writerows([f"Question {n}? {ATTACK}", f"Answer {n}.", f"hint {n}", "quiz"] for n in range(60))
    upload.set_input_files(rows)
    expect(page.locator("#data-says")).to_contain_text("Which columns of My quiz.csv")
    pick(page, "column-instruction", "Frage")
    pick(page, "column-response", "Antwort")
    expect(page.locator("#data-says")).to_contain_text("60 rows in My quiz.csv")
    preview = page.locator("#data-preview")
    expect(preview).to_contain_text(f"Question 0? {ATTACK}")
    expect(preview).not_to_contain_text("hint 0")
    pick(page, "column-context", "Hinweis")
    expect(preview).to_contain_text("hint 0")

    small(page, 2)
    page.click("#check")
    expect(page.locator("#plan-example .tokens")).to_be_visible()
    expect(page.locator("#plan-memory")).to_contain_text("it fits")
    expect(page.locator("#plan-memory .bars tr")).not_to_have_count(0)
    expect(page.locator("#plan-data")).to_contain_text("60 rows")
    assert page.locator("#plan-data .bars").first.locator("tr").count() > 1
    masked = "".join(page.locator("#plan-example .tokens .loss").all_inner_texts())
    assert re.fullmatch(r"Answer \d+\.<\|im_end\|>", masked.strip())
    assert "hint" in "".join(page.locator("#plan-example .tokens .prompt").all_inner_texts())
    assert page.title() == "Tandem" and page.locator("img[src=x]").count() == 0
    shots(page, "fine-tune-check")

    run = start(page)
    record = run.config()
    assert record["config"]["columns"] == "instruction=Frage, context=Hinweis, response=Antwort, category="
    assert record["data"]["rows"] == 60 and "my-quiz" in record["data"]["source"]
    expect(status(page)).to_contain_text("finished · step 2 of 2")


@pytest.mark.long
def test_a_killed_run_is_told_and_goes_on_and_others_wait_in_order(fine_tune: Page) -> None:
    page = fine_tune
    small(page, 100_000)
    fold_out(page, "Validation, samples and checkpoints")
    fill(page, "save-every-steps", "5")
    first = start(page)
    wait_for(lambda: first.checkpoints())
    second, third = start(page), start(page)
    queue = page.locator("#train-queue li")
    expect(queue).to_have_count(3)
    expect(queue.nth(0)).to_contain_text(re.compile(r"running, step \d+ of 100000"))
    expect(queue.nth(1)).to_contain_text("queued, next")
    expect(queue.nth(2)).to_contain_text("queued, 1 before it")
    expect(status(page)).to_contain_text("1 ahead in the queue")
    shot(page, "fine-tune-queue")
    for waiting in (third, second):  # a run that waits is stopped like any other
        choose(page, waiting)
        page.click("#stop-run")
        expect(status(page)).to_contain_text("stopped")

    # A page that is loaded again shows the run that was chosen, not the newest one.
    choose(page, first)
    expect(status(page)).to_contain_text("running")
    page.reload()
    tab(page, "Fine-tune")
    expect(status(page)).to_contain_text("of 100000")
    expect(status(page)).to_contain_text("running")

    os.kill(process_of(first), signal.SIGKILL)
    expect(status(page)).to_contain_text(re.compile(r"died.*ended without a word at step \d+"))
    expect(page.locator("#stop-run")).to_be_hidden()
    steps = read_json(first.path / "status.json")["step"]
    page.click("#resume-run")
    expect(status(page)).to_contain_text("running")
    wait_for(lambda: first.status().get("step", 0) > steps)
    events = [event["step"] for event in first.metrics()[0] if "loss" in event]
    assert events == list(range(1, len(events) + 1))  # none twice, none lost
    page.click("#stop-run")
    expect(status(page)).to_contain_text("stopped")
    expect(page.locator("#compare-now")).to_be_visible()
    assert all(run.status()["state"] in ENDED for run in list_runs())


def choose(page: Page, run: Run) -> None:
    """Choose a run in the list: by its place, newest first."""
    page.locator("#train-run input").click()
    options = page.locator("#train-run [role=option]")
    expect(options).to_have_count(len(list_runs()))
    options.nth([other.id for other in list_runs()].index(run.id)).click()


def process_of(run: Run) -> int:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and f"work\0{run.path}" in _command(folder):
            return int(folder.name)
    raise AssertionError("no process works on it")


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""
