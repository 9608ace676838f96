"""Evaluate in Chromium: verdict, table, chart, examples, downloads, a new evaluation; nothing runs as HTML."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import shots, tab
from conftest import App
from playwright.sync_api import Page, expect

from evaluation.report import Sample
from finetune.about import write_about
from finetune.run import Run

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)
ATTACK = "<img src=x onerror=\"document.title='owned'\"> ${document.title='owned'} {{title}} `'"


@pytest.fixture
def copied(small_runs: list[Any]) -> Iterator[Run]:
    """A copy of the evaluated run, in whose rows someone hides an attack; it has the name of one too."""
    (evaluated,) = [run for run in small_runs if run.evaluations()]
    folder = evaluated.path.with_name(f"{evaluated.id}-hostile")
    shutil.copytree(evaluated.path, folder)
    run = Run(folder)
    write_about(run.path, f"mine {ATTACK}"[:80], "")
    file = run.evaluations()[0].path / "samples.jsonl"
    first, *rest = file.read_text().splitlines()
    sample = Sample.model_validate_json(first)
    values = sample.values | {"rouge_l": [0.0, 1.0]}  # the largest gain there can be
    changed = {name: f"{name} {ATTACK}" for name in ("instruction", "context", "reference", "category")}
    changed["answers"] = [f"first {ATTACK}", f"second {ATTACK}"]  # type: ignore[assignment]
    hostile = sample.model_copy(update=changed | {"values": values})
    file.write_text("\n".join([hostile.model_dump_json(), *rest]) + "\n")
    yield run
    shutil.rmtree(folder)


def choose(page: Page, dropdown: str, label: str) -> None:
    """Choose the option whose text begins like that."""
    page.locator(f"{dropdown} input").click()
    page.get_by_role("option", name=re.compile(re.escape(label))).first.click()


def test_an_evaluation_is_seen_from_every_side(page: Page, small_app: App, copied: Run, tmp_path: Path) -> None:
    page.goto(small_app.address)
    tab(page, "Evaluate")
    page.locator("#eval-run input").click()
    page.get_by_role("option", name="mine <img").click()
    report = json.loads((copied.evaluations()[0].path / "report.json").read_text())
    expect(page.locator("#verdict h3")).to_contain_text(re.compile("response loss"))
    expect(page.locator("#verdict")).to_contain_text("24 examples")
    expect(page.locator("#scores tbody th")).to_contain_text(["response loss", "perplexity", "ROUGE-L"])
    expect(page.locator("#loss-chart .bars path").first).to_be_attached()
    choose(page, "#eval-metric", "ROUGE-L")
    expect(page.locator("#loss-chart .xtitle")).to_have_text("ROUGE-L")
    choose(page, "#eval-category", "closed qa")
    expect(page.locator("#scores tbody")).to_contain_text("exact match")
    expect(page.locator("#leaderboard")).to_contain_text("mine <img")

    # The largest gain first: the one with the attack, shown as text and never run.
    choose(page, "#example-metric", "ROUGE-L")
    first = page.locator("#examples article").first
    for text in ("instruction", "first", "second", "reference", "category"):
        expect(first).to_contain_text(f"{text} {ATTACK}")
    expect(first).to_contain_text("ROUGE-L 0.000 → 1.000 +1.000")
    shots(page, "evaluate")
    assert page.locator("img[src=x]").count() == 0 and page.title() == "Tandem"
    changes = [float(text.split()[-1]) for text in page.locator("#examples .change").all_inner_texts()]
    assert changes == sorted(changes, reverse=True) and len(changes) == 6
    expect(page.locator("#examples-place")).to_contain_text("1 to 6 of 24")
    page.click("#examples-on")
    expect(page.locator("#examples-place")).to_contain_text("7 to 12 of 24")
    choose(page, "#example-order", "Largest loss first")
    expect(page.locator("#examples-place")).to_contain_text("1 to 6 of 24")
    changes = [float(text.split()[-1]) for text in page.locator("#examples .change").all_inner_texts()]
    assert changes == sorted(changes)
    choose(page, "#example-category", "open qa")
    expect(page.locator("#examples .tag").first).to_have_text("open qa")
    assert set(page.locator("#examples header .tag:first-child").all_inner_texts()) == {"open qa"}

    # What is downloaded is opened.
    files = {}
    for kind in ("report", "examples", "page", "comparator"):
        with page.expect_download(timeout=30_000) as waiting:
            page.click(f"#download-{kind}")
        files[kind] = tmp_path / kind
        assert waiting.value.suggested_filename.startswith(copied.id)
        waiting.value.save_as(files[kind])
    assert json.loads(files["report"].read_text()) == report
    assert len(list(csv.DictReader(files["examples"].open()))) == 24
    assert files["page"].read_text().startswith("<!doctype html>")
    assert len(json.loads(files["comparator"].read_text())["examples"]) == 24


@pytest.mark.long
def test_more_columns_are_scored_from_the_page(page: Page, small_app: App, copied: Run) -> None:
    before = len(copied.evaluations())
    page.goto(small_app.address)
    tab(page, "Evaluate")
    page.locator("#eval-run input").click()
    page.get_by_role("option", name="mine <img").click()
    expect(page.locator("#verdict h3")).to_be_visible(timeout=30_000)
    page.fill("#eval-rows input", "0")
    page.click("#evaluate")
    expect(page.locator(".toast-body").last).to_contain_text("rows: input should be greater than or equal to 1")
    page.locator(".toast-close").last.click()
    page.fill("#eval-rows input", "4")
    page.fill("#eval-length input", "3")
    choose(page, "#eval-columns", "tuned at strength 0.5")
    page.keyboard.press("Escape")
    choose(page, "#eval-metrics", "response loss")
    page.keyboard.press("Escape")
    page.locator("#eval-probe input").check()
    page.click("#evaluate")
    expect(page.locator("#eval-status")).to_contain_text(re.compile("queued|preparing|running"))
    expect(page.locator("#eval-column")).to_be_visible(timeout=120_000)
    assert len(copied.evaluations()) == before + 1
    choose(page, "#eval-column", "0.5")
    expect(page.locator("#verdict h3")).to_contain_text("Too few examples to tell")
    expect(page.locator("#scores thead")).to_contain_text("0.5")
    expect(page.locator("#findings")).to_contain_text("Text that is no instruction")
    expect(page.locator("#verdict")).to_contain_text("0.5 departs from base by")
    # The older one is still there.
    choose(page, "#evaluation", "24 rows")
    expect(page.locator("#verdict")).to_contain_text("24 examples")
