"""Runs in Chromium: named, noted, compared, merged, exported, deleted; nothing that a person wrote runs as HTML."""

import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import shots, tab
from conftest import App, read_json
from playwright.sync_api import Page, expect

from finetune.run import Run

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)
ATTACK = "<img src=x onerror=\"document.title='owned'\"> ${1} {{title}}"


@pytest.fixture
def copied(small_runs: list[Any]) -> Iterator[Run]:
    folder = small_runs[0].path.with_name(f"{small_runs[0].id}-kept")
    shutil.copytree(small_runs[0].path, folder)
    yield Run(folder)
    shutil.rmtree(folder, ignore_errors=True)


def open_section(page: Page, name: str) -> None:
    page.locator(f"#{name}-section > button").click()


@pytest.mark.long
def test_a_runs_life_on_the_page(
    page: Page, small_app: App, small_runs: list[Any], copied: Run, tmp_path: Path
) -> None:
    page.goto(small_app.address)
    tab(page, "Runs")
    line = page.locator(f"#run-list tr[data-run='{copied.id}']")
    expect(line).to_contain_text("finished")
    expect(page.locator("#run-list tbody tr")).to_have_count(3)
    expect(line.locator("svg.curve polyline")).to_have_count(2)
    line.locator("button").focus()  # by keyboard
    page.keyboard.press("Enter")
    expect(page.locator("#run-facts")).to_contain_text(copied.id)
    expect(line.locator("button")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#run-evaluate-now")).to_be_enabled()
    expect(page.locator("#disk")).to_contain_text(re.compile(r"\d \w?B in runs · .* in the model cache · .* free"))

    # A name and a note that try to be HTML.
    page.fill("#run-name input", f"mine {ATTACK}")
    page.fill("#run-note textarea", f"learns {ATTACK}\nmore")
    page.click("#save-about")
    expect(line).to_contain_text(f"mine {ATTACK}")
    expect(page.locator("#run-facts h3")).to_have_text(f"mine {ATTACK}")
    assert read_json(copied.path / "about.json") == {"name": f"mine {ATTACK}", "note": f"learns {ATTACK}\nmore"}

    # Beside another run: what differs, then all.
    open_section(page, "settings")
    page.locator("#other-run input").click()
    page.get_by_role("option", name="quick-demo").last.click()
    settings = page.locator("#run-settings tbody tr")
    expect(settings.filter(has_text="training.steps")).to_contain_text("training.steps64")
    expect(settings).to_have_count(1)
    page.locator("#all-settings input").check()
    expect(page.get_by_role("row", name="lora.r 16 16")).to_be_visible()

    # A real merge, with its certificate.
    open_section(page, "merge")
    expect(page.locator("#certificate")).to_contain_text("There is no merged model yet")
    page.fill("#merge-rows input", "4")
    page.click("#merge")
    expect(page.locator("#merge-status")).to_contain_text("finished", timeout=90_000)
    expect(page.locator("#certificate tbody tr")).to_have_count(4)
    expect(page.locator("#certificate tr.chosen").first).to_contain_text("kept")
    certificate = read_json(copied.path / "merged" / "certificate.json")
    expect(page.locator("#certificate")).to_contain_text(f"{certificate['reference_loss']:.4f}")

    # An export is downloaded and opened.
    open_section(page, "export")
    page.click("#export")
    taking = page.locator("#exports button[data-export]")
    expect(taking).to_be_visible(timeout=60_000)
    with page.expect_download(timeout=30_000) as waiting:
        taking.click()
    assert waiting.value.suggested_filename == f"{copied.id}-adapter.zip"
    waiting.value.save_as(tmp_path / "adapter.zip")
    assert "adapter_model.safetensors" in zipfile.ZipFile(tmp_path / "adapter.zip").namelist()
    page.mouse.move(0, 0)
    shots(page, "runs")
    assert page.locator("img[src=x]").count() == 0 and page.title() == "Tandem"

    # After a reload all of it is still there; it is deleted only when asked twice.
    page.reload()
    tab(page, "Runs")
    line.click()
    expect(page.locator("#run-note textarea")).to_have_value(f"learns {ATTACK}\nmore")
    open_section(page, "delete")
    page.click("#delete")
    expect(page.locator("#delete-question")).to_contain_text(f"Delete mine {ATTACK}")
    page.click("#delete-no")
    expect(page.locator("#delete-question")).to_be_hidden()
    assert copied.path.exists()
    page.click("#delete")
    page.click("#delete-yes")
    expect(page.locator("#run-list tbody tr")).to_have_count(2)
    assert not copied.path.exists() and all(run.path.exists() for run in small_runs)


def test_a_living_run_is_not_deleted_and_a_lost_one_is_no_error(page: Page, small_app: App, copied: Run) -> None:
    import fcntl

    (copied.path / "status.json").write_text(json.dumps({"state": "running", "step": 2, "max_steps": 6}))
    page.goto(small_app.address)
    tab(page, "Runs")
    line = page.locator(f"#run-list tr[data-run='{copied.id}']")
    expect(line).to_contain_text("died")  # nobody holds its lock
    with (copied.path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        expect(line).to_contain_text("running")
        line.click()
        expect(page.locator("#run-facts")).to_contain_text(copied.id)
        open_section(page, "delete")
        page.click("#delete")
        page.click("#delete-yes")
        expect(page.locator(".toast-body").last).to_contain_text("It is still running: stop it first")
        assert copied.path.exists()
    shutil.rmtree(copied.path)  # from the command line, say
    expect(page.locator("#run-list tbody tr")).to_have_count(2)
    expect(page.locator("#run-facts")).not_to_contain_text(copied.id)
