"""The whole path in Chromium, on the real 135M model: chat, train, reload, restart, compare, evaluate.

Whether it helped clearly, beyond the interval, takes more steps and rows: tests/test_learning.py.
"""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from browsing import longest, shot, tab
from conftest import DOLLY_ROWS, App, read_json, wait_for
from playwright.sync_api import Locator, Page, expect

from evaluation.report import EvalReport
from finetune.run import ENDED, Run

PROMPT = "Write a short note to a neighbour about a borrowed ladder."
ATTACK = "Repeat: <img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def ask(page: Page, text: str) -> None:
    page.fill("#prompt textarea", text)
    page.keyboard.press("Enter")


def answer(page: Page, place: int) -> str:
    return page.locator(f"#live .answer[data-place='{place}'] .text").inner_text().strip()


def figures(page: Page, place: int) -> Locator:
    return page.locator(f"#live .answer[data-place='{place}'] .figures")


def only_run(app: App) -> Run:
    (folder,) = [p for p in app.runs.iterdir() if not p.name.startswith(".")]
    return Run(folder)


def some_of_dolly(folder: Path) -> Path:
    """2,000 real rows as a file to upload."""
    with DOLLY_ROWS.open() as rows:
        (folder / "dolly.jsonl").write_text("".join(islice(rows, 2000)))
    return folder / "dolly.jsonl"


def upload(page: Page, file: Path) -> None:
    page.get_by_text("Your own rows").click()
    page.locator("input[type=file]").first.set_input_files(file)
    # While it is uploaded the name stands in one piece, after that in two: the link is there only at the end.
    expect(page.locator(f'a[href$="/{file.name}"]')).to_be_visible(timeout=30_000)


def test_the_main_path(page: Page, app: App, smollm2: Any, tmp_path: Path) -> None:
    page.goto(app.address)
    # First visit: nothing is tuned yet, and the base answers alone.
    longest(page, 32)
    ask(page, ATTACK)
    expect(page.locator("#first")).to_contain_text("Nothing is tuned here yet", timeout=60_000)
    expect(figures(page, 0)).to_contain_text(re.compile("ended by itself|length limit"), timeout=90_000)
    expect(page.locator("#live .answer")).to_have_count(1)
    expect(page.locator("#live")).to_contain_text("<script>")  # shown as text …
    assert page.title() == "Tandem"  # … and never run
    assert page.locator("#live img[src=x]").count() == 0

    # A quick-demo run, shortened, survives a reload of the page and a restart of the app.
    tab(page, "Fine-tune")
    if DOLLY_ROWS.exists():  # else on the rows that come with Tandem
        upload(page, some_of_dolly(tmp_path))
        # What is understood of them is shown first: it moves the button down.
        expect(page.locator("#data-says")).to_contain_text("rows in dolly.jsonl", timeout=60_000)
    page.fill("#steps input", "10")
    page.get_by_text("All settings").click()
    page.get_by_text("Length, batches and memory").click()
    page.fill("#tokens-per-batch input", "256")
    page.click("#start")
    expect(page.locator("#train-status")).to_contain_text(re.compile(r"step [1-9]\d* of 10"), timeout=300_000)
    run = only_run(app)
    page.reload()
    tab(page, "Fine-tune")
    expect(page.locator("#train-status")).to_contain_text("running")
    app.kill()
    assert run.is_alive()
    app.start()
    page.goto(app.address)
    tab(page, "Fine-tune")
    expect(page.locator("#train-status")).to_contain_text(re.compile(r"step \d+ of 10"))
    expect(page.locator("#train-status")).to_contain_text("finished", timeout=420_000)
    losses = [event["validation_loss"] for event in run.metrics()[0] if "validation_loss" in event]
    assert losses[-1] < losses[0]
    expect(page.locator("#loss-plot path.mark-line, #loss-plot .mark-line path").first).to_be_attached()
    shot(page, "fine-tune")

    # Both answer, differently, and stream while they do.
    page.reload()
    longest(page, 64)
    ask(page, PROMPT)
    wait_for(lambda: page.locator("#live .answer").count() == 2 and answer(page, 1), 60)
    early = len(answer(page, 1))
    for place in (0, 1):
        expect(figures(page, place)).to_contain_text(re.compile("ended|limit"), timeout=90_000)
        expect(figures(page, place)).to_contain_text("tokens/s")
    assert early < len(answer(page, 1))
    assert answer(page, 0) != answer(page, 1)
    shot(page, "compare")

    # Scores, as a sentence, a table and charts.
    tab(page, "Evaluate")
    page.fill("#eval-rows input", "8")
    page.fill("#eval-length input", "4")
    page.click("#evaluate")
    expect(page.locator("#verdict")).to_contain_text("response loss", timeout=420_000)
    expect(page.locator("#scores")).to_contain_text("perplexity")
    expect(page.locator("#loss-chart .bars path").first).to_be_attached()
    shot(page, "evaluate")
    assert run.evaluations()[0].status()["state"] in ENDED
    report = EvalReport.model_validate(read_json(run.evaluations()[0].path / "report.json"))
    loss = report.scores[0]
    assert (loss.metric, loss.category) == ("loss", "all")
    assert loss.tuned < loss.base, report.verdict


def test_bad_input_is_a_sentence_on_the_page(page: Page, small_app: App, tmp_path: Path) -> None:
    before = set(small_app.runs.iterdir()) if small_app.runs.exists() else set()
    page.goto(small_app.address)
    tab(page, "Fine-tune")

    def refused(sentence: str) -> None:
        page.click("#start")
        expect(page.locator(".toast-body").last).to_contain_text(sentence)
        page.locator(".toast-close").last.click()
        expect(page.locator(".toast-body")).to_have_count(0)

    page.fill("#steps input", "0")
    refused("steps: input should be greater than or equal to 1")
    page.fill("#steps input", "3")
    page.locator("#model input").fill("smollm9")
    page.keyboard.press("Enter")
    refused("There is no model 'smollm9'")
    page.locator("#model input").fill("/etc")
    page.keyboard.press("Enter")
    refused("Here a model is one of")
    page.locator("#model input").fill("smollm2-135m")
    page.keyboard.press("Enter")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "response": "b"}\n{"instruction": "only a question", "response": ""}\n')
    upload(page, rows)
    refused("has no response")
    tab(page, "Compare")
    page.click("#send")
    expect(page.locator(".toast-body").last).to_contain_text("Write a prompt first")
    after = set(small_app.runs.iterdir()) if small_app.runs.exists() else set()
    assert {path for path in after - before if not path.name.startswith(".")} == set()
