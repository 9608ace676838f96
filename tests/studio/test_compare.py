"""The Compare tab: its pure parts, and the whole of it in Chromium over a tiny model."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import longest, shots
from conftest import App, wait_for
from playwright.sync_api import Browser, Locator, Page, expect

from finetune.data import Row
from finetune.prompt import Turn
from studio import drafts, heldout, sides
from studio.conversation import Conversation, Exchange, Said, Settings, Side
from studio.drafts import Draft
from studio.tabs.compare_asking import PRESETS, read
from studio.views import compare as view

browser_test = pytest.mark.browser
DONE = re.compile("ended by itself|length limit")
ATTACK = "<img src=x onerror=\"document.title='owned'\"> ${document.title='owned'} {{value}} a < b && c"
SLOW = 60_000  # milliseconds: nothing here takes long, but the machine may be busy


def said(text: str, **values: Any) -> Said:
    return Said(text=text, tokens=3, seconds=1.5, first_token_seconds=0.5, **{"stop": "end"} | values)


TWO = Conversation(
    sides=(Side(), Side(run="r", name="tuned", strength=0.5)),
    exchanges=(Exchange(prompt="p", answers=(said("b"), said("t")), context="c", reference="known"),),
)


# Pure parts.


def test_each_column_has_its_own_history() -> None:
    asked = TWO.ask("q")
    assert asked.history(0) == [Turn("p", "c", "b"), Turn("q")]
    assert asked.history(1) == [Turn("p", "c", "t"), Turn("q")]
    assert asked.history(1, 0) == [Turn("p", "c", "t")]
    assert asked.gaps() == [(1, [0, 1])]


def test_a_changed_column_loses_its_answers_and_the_others_keep_theirs() -> None:
    changed = TWO.put(1, Side(run="r", name="checkpoint-4"))
    assert [s.text for s in changed.exchanges[0].answers] == ["b", ""]
    assert changed.gaps() == [(0, [1])]
    more = TWO.add(Side(run="r", name="merged"))
    assert more.gaps() == [(0, [2])] and more.history(2, 0) == [Turn("p", "c", None)]
    shuffled = more.with_(order=(2, 0, 1)).drop(0)
    assert shuffled.order == (1, 0) and [s.text for s in shuffled.exchanges[0].answers] == ["t", ""]


def test_an_answer_that_was_being_written_is_stopped_and_one_not_yet_asked_for_stays_open() -> None:
    going = TWO.ask("q").say(1, {0: said("half", stop=None)})
    assert [s.stop for s in going.halted().exchanges[1].answers] == ["cancelled", None]


def test_a_reference_belongs_to_its_prompt_as_it_was() -> None:
    draft = Draft.of_row(Row("Ask\n", "Read", "Known", "open_qa"))
    assert (draft.prompt, draft.context, draft.reference) == ("Ask", "Read", "Known")
    assert draft._replace(prompt="Ask else").reference == ""
    edited = drafts.send(TWO, Draft.of_last(TWO)._replace(prompt="p2"))
    assert [e.prompt for e in edited.exchanges] == ["p2"] and edited.exchanges[0].context == "c"
    with pytest.raises(ValueError, match="Write a prompt first"):
        drafts.send(TWO, Draft(" \n"))


def test_regenerating_draws_other_noise_where_noise_is_drawn() -> None:
    assert drafts.regenerate(TWO).settings == TWO.settings
    drawn = drafts.with_settings(TWO, Settings(sampling=PRESETS["Creative"]))
    again = drafts.regenerate(drawn)
    assert again.settings.sampling == PRESETS["Creative"].model_copy(update={"seed": 1})
    assert again.exchanges[-1].prompt == "p" and again.gaps() == [(0, [0, 1])]


def test_settings_that_are_off_are_named() -> None:
    assert read("be brief", 32, *PRESETS["Balanced"].model_dump().values()).sampling == PRESETS["Balanced"]
    with pytest.raises(ValueError, match=r"^Top-k: input should be greater than or equal to 0 \(given: -1\)"):
        read("", 32, 0, -1, 1, 0, 1, 0)
    with pytest.raises(ValueError, match=r"^Seed is empty"):
        read("", 32, 0, 0, 1, 0, 1, None)  # type: ignore[arg-type]


def test_what_was_said_is_text() -> None:
    html = view.live(Conversation(sides=(Side(),)).ask(ATTACK, ATTACK, ATTACK).say(0, {0: said(ATTACK)}))
    assert "<img" not in html and html.count("&lt;img src=x") == 4


def test_figures_under_an_answer() -> None:
    assert view.figures(said("x")) == "first token after 0.5 s · 2.0 tokens/s · 3 tokens · ended by itself"
    assert view.figures(Said(text="", stop="cancelled")) == "stopped"
    assert view.figures(Said(text="")) == ""


def test_blind_nothing_tells_which_is_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "answers_apart", lambda side: False)
    html = view.live(TWO.with_(blind=True, order=(1, 0)))
    assert html.index(">A<") < html.index(">t<") < html.index(">B<") < html.index(">b<")
    assert not re.search(r"Base|Tuned|0\.5|tokens/s|first token|data-ink=\"\d", html)
    # One that comes after the others would be known by that: nothing is shown until all is.
    monkeypatch.setattr(sides, "answers_apart", lambda side: side.run is not None)
    half = TWO.with_(blind=True).ask("q").say(1, {0: said("early")})
    assert "early" not in view.live(half, "loading", True)
    assert "early" in view.live(half.say(1, {1: said("late")}))


def test_columns_of_one_comparison_share_a_base(small_runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = small_runs
    tuned = [Side(run=run.id, name="tuned") for run in small_runs]
    asked, columns = sides.resolve([Side(), *tuned])
    assert asked.sha256 == "tiny" and [c.adapter for c in columns] == [None, newer.adapter, older.adapter]
    monkeypatch.setattr(sides, "subject", lambda run: asked._replace(sha256=run.id))
    with pytest.raises(ValueError, match=f"{older.id} was trained on another model than {newer.id}"):
        sides.resolve(tuned)
    monkeypatch.setattr(sides, "subject", lambda run: asked._replace(template="dolly" if run == newer else "chat"))
    with pytest.raises(ValueError, match="choose runs of one template"):
        sides.resolve(tuned)
    with pytest.raises(ValueError, match="There is no run"):
        sides.resolve([sides.to_side("../../etc/tuned")])


def test_a_page_begins_with_what_there_is(runs: Path) -> None:
    assert sides.settle(Conversation()).sides == (Side(),)  # `runs` is empty
    assert sides.choices() == [("Base", "base")]


def test_held_out_rows_are_the_runs_own(small_runs: list[Any]) -> None:
    rows = heldout.held_out(small_runs[0].id)
    category = heldout.categories(rows)[1]
    first = heldout.another(rows, category, None)
    assert first.category == category and heldout.another(rows, heldout.ANY, first) != first
    with pytest.raises(ValueError, match="No held-out row is of the category 'poetry'"):
        heldout.another(rows, "poetry", None)


# In the browser.


def ask(page: Page, text: str) -> None:
    page.fill("#prompt textarea", text)
    page.keyboard.press("Enter")


def answer(page: Page, place: int) -> Locator:
    return page.locator(f"#live .answer[data-place='{place}']")


def text(page: Page, place: int) -> str:
    return answer(page, place).locator(".text").inner_text()


def finished(page: Page, count: int) -> None:
    for place in range(count):
        expect(answer(page, place).locator(".figures").last).to_contain_text(DONE, timeout=SLOW)
    expect(page.locator("#send")).to_be_visible(timeout=SLOW)


def opened(page: Page, app: App) -> None:
    page.goto(app.address)
    loaded = page.locator("#side-1, #first").first  # the one where something is tuned, the other where nothing is
    expect(loaded).to_be_visible(timeout=SLOW)


@browser_test
def test_four_columns_and_what_can_be_done_with_them(page: Page, small_app: App, small_runs: list[Any]) -> None:
    opened(page, small_app)
    expect(page.locator("#side-1 input")).to_have_value(re.compile("^Tuned · quick-demo"))
    longest(page, 48)
    ask(page, ATTACK)
    finished(page, 2)
    assert page.title() == "Tandem" and page.locator("#compare img[src=x]").count() == 0
    expect(page.locator("#live .asked .text")).to_have_text(ATTACK)
    expect(page.locator("#prompt textarea")).to_have_value("")
    first = [text(page, 0), text(page, 1)]
    assert first[0] != first[1]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer(page, 0).locator("button.copy").click()
    expect(answer(page, 0).locator("button.copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == answer(page, 0).locator(".text").text_content()

    # Two columns more: they are asked what was asked before, and the first two keep what they said.
    for place in (2, 3):
        page.click("#add-column")
        expect(page.locator(f"#side-{place}")).to_be_visible()
    expect(page.locator("#add-column")).to_be_hidden()
    expect(answer(page, 3)).to_contain_text("Not asked yet")
    page.click("#fill")
    finished(page, 4)
    assert [text(page, 0), text(page, 1)] == first

    # A strength of 0 is the base; only that column's answer goes.
    page.fill("#strength-1 input[type=number]", "0")
    page.keyboard.press("Tab")
    expect(answer(page, 1)).to_contain_text("Not asked yet")
    assert text(page, 0) == first[0]

    # A second turn: what is missing is answered first, then all four from their own histories.
    page.fill("#prompt textarea", "Line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    expect(page.locator("#past .exchange")).to_have_count(1, timeout=SLOW)
    finished(page, 4)
    expect(page.locator("#live .asked .text")).to_have_text("Line one\nline two")
    assert page.locator("#past .answer[data-place='1'] .text").inner_text() == first[0]
    assert text(page, 0) == text(page, 1) != text(page, 3)
    shots(page, "compare-four")

    # One at full width, and back.
    answer(page, 2).locator("button.widen").click()
    expect(answer(page, 0)).to_be_hidden()
    expect(page.locator("#side-0")).to_be_hidden()
    assert (box := answer(page, 2).bounding_box()) and box["width"] > 900
    answer(page, 2).locator("button.widen").click()
    expect(answer(page, 0)).to_be_visible()

    # Edit takes the place of the last exchange; Esc leaves it; undo takes it back; clear starts anew.
    page.click("#edit")
    expect(page.locator("#prompt textarea")).to_have_value("Line one\nline two")
    expect(page.locator("#unedit")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#unedit")).to_be_hidden()
    page.click("#edit")
    expect(page.locator("#unedit")).to_be_visible()
    ask(page, "Another line")
    expect(page.locator("#live .asked .text")).to_have_text("Another line")
    finished(page, 4)
    expect(page.locator("#past .exchange")).to_have_count(1)
    page.click("#drop-3")
    expect(answer(page, 3)).to_have_count(0)
    page.click("#undo")
    expect(page.locator("#past .exchange")).to_have_count(0)
    expect(page.locator("#live .asked .text")).to_have_text(ATTACK)
    page.click("#clear")
    expect(page.locator("#live .invitation")).to_be_visible()
    expect(page.locator("#regenerate")).to_be_disabled()


@browser_test
def test_stop_regenerate_and_what_fails(page: Page, small_app: App, small_runs: list[Any]) -> None:
    opened(page, small_app)
    longest(page, 1024)
    page.get_by_label("Creative").check()
    page.get_by_text("All of the sampling").click()
    expect(page.locator("#sampling-temperature input[type=number]")).to_have_value("1.1")
    ask(page, "Go on")
    wait_for(lambda: len(text(page, 0)) > 20 and len(text(page, 1)) > 20, 60)
    page.keyboard.press("Escape")
    for place in (0, 1):
        expect(answer(page, place).locator(".figures")).to_contain_text("stopped", timeout=SLOW)
    expect(page.locator("#send")).to_be_visible()
    early = text(page, 0)
    # The same prompt with other noise; the seed says so. Stopped by changing a column: it alone is to be asked again.
    page.click("#regenerate")
    expect(page.locator("#sampling-seed input")).to_have_value("1")
    wait_for(lambda: len(text(page, 0)) > 20, 60)
    assert text(page, 0)[:20] != early[:20]
    page.fill("#strength-1 input[type=number]", "0.5")
    page.keyboard.press("Tab")
    expect(answer(page, 1)).to_contain_text("Not asked yet", timeout=SLOW)
    expect(answer(page, 0).locator(".figures")).to_contain_text("stopped")
    expect(answer(page, 1).locator("header")).to_contain_text("× 0.5")

    # What can't be done is a sentence, and nothing is lost.
    page.fill("#sampling-top_k input", "-3")
    ask(page, "Keep me")
    expect(page.locator(".toast-body").last).to_contain_text("Top-k: input should be greater than or equal to 0")
    expect(page.locator("#prompt textarea")).to_have_value("Keep me")
    expect(page.locator("#live .asked .text")).to_have_text("Go on")
    page.fill("#sampling-top_k input", "0")


@browser_test
def test_a_held_out_prompt_and_its_reference(page: Page, small_app: App, small_runs: list[Any]) -> None:
    rows = {row.instruction.strip(): row for row in heldout.held_out(small_runs[0].id)}
    opened(page, small_app)
    longest(page, 16)
    page.get_by_text("Prompts from held-out rows").click()
    with_context = next(row.category for row in rows.values() if row.context)
    page.locator("#row-category input").click()
    page.get_by_role("option", name=with_context).click()
    prompts = set()

    def another() -> bool:
        page.click("#another-row")
        page.wait_for_timeout(300)
        prompts.add(page.locator("#prompt textarea").input_value())
        return page.locator("#context textarea").is_visible() and len(prompts) > 1

    wait_for(another, 60)
    row = rows[page.locator("#prompt textarea").input_value()]
    assert row.category == with_context
    page.click("#send")
    finished(page, 2)
    expect(page.locator("#live .reference .text")).to_have_text(row.response)
    expect(page.locator("#live .asked details .text")).to_have_text(row.context.strip())
    expect(page.locator("#context")).to_be_hidden()
    shots(page, "compare-reference")


@browser_test
def test_a_closed_tab_leaves_the_model_to_the_next(
    page: Page, browser: Browser, small_app: App, small_runs: list[Any]
) -> None:
    other = browser.new_page()
    opened(other, small_app)
    opened(page, small_app)
    longest(page, 16)
    longest(other, 1024)
    ask(other, "Go on")
    wait_for(lambda: len(text(other, 0)) > 20, 60)
    ask(page, "My turn")
    expect(page.locator("#live .note")).to_have_text("Waiting for the model, 1 ahead", timeout=SLOW)
    figures = answer(other, 0).locator(".figures").inner_text()
    rate, tokens = (float(re.search(rf"([\d.]+) {unit}", figures).group(1)) for unit in ("tokens/s", "tokens"))  # type: ignore[union-attr]
    left = (1024 - tokens) / rate  # seconds that the other would have gone on
    closed = time.monotonic()
    other.close()
    expect(answer(page, 0).locator(".figures")).to_contain_text("tokens", timeout=SLOW)
    waited = time.monotonic() - closed
    print(f"answered {waited:.2f} s after the other tab was closed, which had {left:.1f} s to go")
    assert waited < left / 3


@pytest.fixture
def empty_app(furnished: dict[str, str], tmp_path: Path) -> Iterator[App]:
    """The page on a machine with the model and without any run."""
    started = App(tmp_path, furnished | {"TANDEM_RUNS": str(tmp_path / "runs")})
    started.start()
    yield started
    started.kill()


@browser_test
@pytest.mark.long
def test_a_first_visit(page: Page, empty_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(page, empty_app)
    expect(page.locator("#first")).to_contain_text("the base answers alone")
    expect(page.locator("#side-1")).to_be_hidden()
    longest(page, 16)
    ask(page, "Hello")
    finished(page, 1)
    shots(page, "compare-first")
    page.click("#make-first")
    expect(page.locator("#first-status")).to_contain_text(re.compile("queued|preparing|running"), timeout=SLOW)
    expect(page.locator("#make-first")).to_be_hidden()
    expect(page.locator("#first-status")).to_contain_text(re.compile(r"step [1-9]\d* of 30"), timeout=2 * SLOW)
    (run,) = (path for path in empty_app.runs.iterdir() if not path.name.startswith("."))
    (run / "stop").touch()  # it keeps what it has, and that is the second column
    expect(page.locator("#side-1 input")).to_have_value(re.compile("^Tuned"), timeout=SLOW)
    expect(page.locator("#first")).to_be_hidden()
    expect(page.locator("#live .answer")).to_have_count(2)
    page.click("#fill")
    finished(page, 2)
    shutil.rmtree(run)  # chosen, and gone: a sentence, and the prompt stays
    ask(page, "Still there?")
    expect(page.locator(".toast-body").last).to_contain_text("There is no run")
    expect(page.locator("#prompt textarea")).to_have_value("Still there?")
