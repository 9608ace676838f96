"""What stands on Compare: differences, the lens, votes and kept conversations; the pure parts, then all in Chromium."""

import json
import re
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from browsing import shots
from conftest import App
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page, expect

from evaluation.votes import Entrant, Vote, vote_summary
from inference.lens import Lens, Score
from studio.conversation import Conversation, Exchange, Said, Side
from studio.store import Store
from studio.tabs import compare_blind
from studio.tabs.compare_kept import owner_of
from studio.views import keeping
from studio.views.differences import Piece, differences, pieces
from studio.views.lens import heat, perplexity, two_by_two
from studio.views.votes import vote_sentence, vote_table

ATTACK = "<img src=x onerror=\"document.title='owned'\"> ${document.title='owned'} {{value}} ```\n# not a heading"
DONE = re.compile("ended by itself|length limit")
SLOW = 30_000


def said(text: str) -> Said:
    return Said(text=text, tokens=3, seconds=1.0, first_token_seconds=0.5, stop="end")


def talk(*answers: str, prompt: str = "Ask", **values: Any) -> Conversation:
    given = tuple(map(said, answers))
    return Conversation(exchanges=(Exchange(prompt=prompt, answers=given, reference="Known"),), **values)


# Pure parts.


def test_words_are_held_to_the_first_answer() -> None:
    found = pieces("The cat sat on the mat.", "The black cat sat\non a mat!")
    assert found == [
        Piece("same", "The "),
        Piece("ins", "black "),
        Piece("same", "cat sat\non "),
        Piece("del", "the "),
        Piece("ins", "a "),
        Piece("same", "mat"),
        Piece("del", "."),
        Piece("ins", "!"),
    ]
    for first, other in [("", "new"), ("old", ""), ("", ""), ("  a\n", "a"), ("naïve 蜂", "naïve 🐝 蜂")]:
        assert "".join(p.text for p in pieces(first, other) if p.kind != "del") == other
    shown = differences([f"a {ATTACK}", f"b {ATTACK}"], [ATTACK, "B"], ["0", "1"])
    assert "<img" not in shown and "<del>a </del><ins>b </ins>" in shown
    assert "same words as A" in differences(["x", " x"], ["A", "B"], ["0", "1"])


def test_differences_of_the_longest_texts_end() -> None:
    """What is worst for difflib: few words over and over, a little shifted."""
    start = time.process_time()
    for words in ("a b ", "a b c d e f g h ", " ".join(map(str, range(40))) + " "):
        first, other = words * 1000, words[2:] * 1000
        assert "Only the first 1,500 words" in differences([first, other], ["A", "B"], ["0", "1"])
    assert time.process_time() - start < 6


def test_the_lens_as_text() -> None:
    lens = Lens(
        [1, 2, 3], [[-1.0, -2.0, -3.0], [-1.5, -0.1, -9.0]], [[0, 0, 0], [0.01, 2.0, 0.5]], [None, 1], ["<b>", "", "\n"]
    )
    shown = heat(lens, 1, ["Base <i>", "Tuned"], "Tuned")
    assert "<b>" not in shown.replace("<b></b>", "") and "<i>" not in shown
    assert shown.count("data-tip=") == 3 and shown.count('tabindex="0"') == 1
    assert "They first differ at token 2 of 3" in shown and "mean 0.837 nats" in shown
    assert "log p Base &lt;i&gt; -2.00 · log p Tuned -0.10 · KL 2.000" in shown
    tokens = re.findall(r'<span class="(token[^"]*)" style="--k:([\d.]+)"', shown)
    assert tokens == [("token", "0.005"), ("token strong split", "1.000"), ("token", "0.250")]
    assert "this text stays below" in heat(lens._replace(kl=[[0] * 3, [0, 0.001, 0]]), 1, ["A", "B"], "A")


def test_the_two_by_two_says_who_is_surprised() -> None:
    scores = [[Score(-2.0, 4), Score(-4.0, 4)], [Score(-6.0, 3), Score(-3.0, 3)], [Score(0.0, 0), Score(0.0, 0)]]
    shown = two_by_two(scores, ["Base", "<b>", ""], ["Base", "<b>"], "Merged can't.")
    assert "The answer of Base is likeliest under Base: perplexity 1.65, against 2.72 under &lt;b&gt;." in shown
    assert "&lt;b&gt; is likeliest under &lt;b&gt;: perplexity 2.72, against 7.39" in shown
    assert "The reference has no words to score. Merged can&#x27;t." in shown and "<b>" not in shown
    assert perplexity(Score(-7.6 * 3, 3)) == "1,998"


def test_a_markdown_file_holds_no_markup_of_others() -> None:
    """Read by a CommonMark parser: the headings are ours, all that was said is in code blocks, unchanged."""
    nasty = f"````\n{ATTACK}\n~~~\n</pre><script>alert(1)</script>"
    found = MarkdownIt().parse(keeping.as_markdown(talk(nasty, "b", prompt=nasty), f"T *x* {ATTACK}"))
    assert [t.content for t in found if t.type == "fence"] == [f"{nasty}\n", f"{nasty}\n", "b\n", "Known\n"]
    assert not [t for t in found if t.type == "html_block"]
    inline = [child for t in found for child in t.children or []]
    assert {child.type for child in inline} <= {"text", "text_special", "softbreak"}
    assert [found[i + 1].content for i, t in enumerate(found) if t.type == "heading_open"][1:] == [
        "Prompt 1",
        "Base",
        "Tuned",
        "Reference answer",
    ]


def test_a_json_file_is_the_conversation() -> None:
    kept = talk(ATTACK, "b")
    read = json.loads(keeping.as_json(kept, "T"))
    assert Conversation.model_validate(read["conversation"]) == kept and read["columns"] == ["Base", "Tuned"]
    assert (
        keeping.file_name("../../etc/Pässwd <x>", "md") == "etc-p-sswd-x.md"
        and keeping.file_name("蜂", "md") == "conversation.md"
    )
    for make in (keeping.as_json, keeping.as_markdown):
        with pytest.raises(ValueError, match="still blind"):
            make(kept.with_(blind=True), "T")


def test_a_blind_draw_is_fair_and_starts_anew(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    seen = talk("a", "b", sides=(Side(), Side(run="r", name="tuned")))
    drawn = [compare_blind.begun(seen) for _ in range(200)]
    assert {d.id for d in drawn} & {seen.id} == set() and all(d.blind and not d.exchanges for d in drawn)
    assert 60 < sum(d.order == (1, 0) for d in drawn) < 140  # 100 by chance; beyond this once in a hundred million
    with pytest.raises(ValueError, match="takes two columns"):
        compare_blind.begun(Conversation(sides=(Side(),)))


def test_votes_as_a_sentence_and_a_table() -> None:
    base, tuned, half = Entrant(None, "base", 1, "m"), Entrant("r", "tuned", 1, "m"), Entrant("r", "tuned", 0.5, "m")
    votes = [Vote((base, tuned), (1, 0), "A")] * 8 + [Vote((base, tuned), (1, 0), "tie")]
    summary = vote_summary(votes)
    told = vote_sentence(summary)
    assert told.startswith(
        "9 votes. Tuned · r was chosen over Base of m in 8 of 8 decided votes (100%; 95 % interval 63%"
    )
    assert told.endswith("p = 0.0078): a clear preference.")
    lost = vote_sentence(vote_summary([vote._replace(order=(0, 1)) for vote in votes[:2]]))
    assert "Base of m was chosen over Tuned · r in 2 of 2" in lost and lost.endswith("not enough to tell.")
    three = vote_table(vote_summary([*votes, Vote((base, tuned, half), (0, 1, 2), "C")]))
    assert next(iter(three["compared"])) == "Tuned · r over Base of m" and "Bradley–Terry: Tuned" in "".join(
        three["compared"]
    )
    assert vote_sentence(vote_summary([])).startswith("No votes yet")


def test_an_owner_is_who_logged_in_or_a_browser() -> None:
    anyone, ann = gr.Request(session_hash="s"), gr.Request(username="ann", session_hash="s")
    assert owner_of(ann, "a" * 32) == owner_of(ann, "user:bob") == "user:ann"
    assert owner_of(anyone, "a" * 32) == "browser:" + "a" * 32
    assert owner_of(anyone, "user:ann") == owner_of(anyone, None) == owner_of(anyone, ["x"]) == "session:s"


# In Chromium.


def ask(page: Page, text: str, count: int = 1) -> None:
    page.fill("#prompt textarea", text)
    page.keyboard.press("Enter")
    expect(page.locator("#live .asked")).to_contain_text(text[:20], timeout=SLOW)
    expect(page.locator("#live .answer .figures").nth(1)).to_contain_text(DONE, timeout=SLOW)


def is_harmless(page: Page, part: str) -> None:
    """The attack stands there as text."""
    expect(page.locator(part)).to_contain_text("<img src=x", timeout=SLOW)
    expect(page.locator(part)).to_contain_text("${document.title")
    assert page.title() == "Tandem" and page.locator(f"{part} img").count() == 0


@pytest.mark.browser
def test_answers_are_looked_at_closer(page: Page, small_app: App, small_runs: list[Any]) -> None:
    """Hostile prompt, answers and reference, which this one was given by a link."""
    nasty = talk(
        f"Yes {ATTACK}", f"No {ATTACK}", prompt=ATTACK, sides=(Side(), Side(run=small_runs[0].id, name="tuned"))
    )
    Store(small_app.runs / ".tandem.sqlite").keep("someone", nasty)
    page.goto(f"{small_app.address}/?c={nasty.id}")
    is_harmless(page, "#live")
    page.get_by_text("Look closer").click()
    expect(page.locator("#closer-exchange input")).to_have_value(re.compile("1 · <img src=x"))
    page.click("#differ")
    expect(page.locator("#differences .text ins")).to_have_text("No ", timeout=SLOW)
    expect(page.locator("#differences .text del")).to_have_text("Yes ")
    is_harmless(page, "#differences")
    page.click("#cross")
    expect(page.locator("#crossed tbody tr")).to_have_count(3, timeout=SLOW)  # the reference as well
    expect(page.locator("#crossed .told")).to_contain_text(re.compile("The answer of Base .* The reference "))
    page.click("#look")
    tokens = page.locator("#lens .lens .token")
    expect(tokens.first).to_be_visible(timeout=SLOW)
    is_harmless(page, "#lens .lens")
    assert "".join(tokens.all_text_contents()).replace("⏎", "") == f"No {ATTACK}"
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tip") == tokens.nth(1).get_attribute("title")
    expect(page.locator("#lens .lens-token")).to_have_text(re.compile(r"log p Base -.* · log p Tuned -.* · KL \d"))
    tokens.nth(5).hover()
    expect(page.locator("#lens .lens-token")).to_have_text(tokens.nth(5).get_attribute("title") or "")
    shots(page, "compare-closer")


@pytest.mark.browser
@pytest.mark.long
def test_a_conversation_is_kept_exported_and_shared(page: Page, browser: Browser, small_app: App) -> None:
    page.goto(small_app.address)
    expect(page.locator("#side-1 input")).to_have_value(re.compile("Tuned"), timeout=SLOW)
    page.get_by_text("How they are asked").click()
    page.fill("#length input[type=number]", "32")
    ask(page, ATTACK)
    page.get_by_text("Conversations").click()
    expect(page.locator("#kept")).to_contain_text("<img src=x", timeout=SLOW)
    assert page.locator("#kept img").count() == 0
    files = {}
    for kind in ("markdown", "json"):
        with page.expect_download() as download:
            page.click(f"#as-{kind}")
        files[kind] = Path(download.value.path()).read_text()
    assert "````text\n" + ATTACK in files["markdown"]
    assert json.loads(files["json"])["conversation"]["exchanges"][0]["prompt"] == ATTACK
    assert json.loads(files["json"])["conversation"]["settings"]["max_new_tokens"] == 32
    shots(page, "compare-kept")

    page.fill("#kept-title textarea, #kept-title input", ATTACK.replace("\n", " ")[:40] + " renamed")
    page.click("#rename")
    expect(page.locator("#kept label").first).to_contain_text("renamed", timeout=SLOW)
    page.click("#share")
    link = page.locator("#link textarea, #link input")
    expect(link).to_have_value(re.compile(r"\?c=[0-9a-f]{32}$"), timeout=SLOW)
    address = link.input_value()

    # A reload forgets nothing: the list reopens it.
    page.goto(small_app.address)
    expect(page.locator("#live .invitation")).to_be_visible(timeout=SLOW)
    page.get_by_text("Conversations").click()
    kept = page.locator("#kept label", has_text="renamed")
    expect(kept.locator("input")).not_to_be_checked(timeout=SLOW)  # a fresh page has a conversation of its own
    kept.click()
    expect(page.locator("#live .asked")).to_contain_text("<img src=x", timeout=SLOW)
    expect(page.locator("#live .answer")).to_have_count(2)

    # Another person has none of it but by the link, and goes on with a copy.
    other = browser.new_context().new_page()
    other.goto(address)
    expect(other.locator("#live .asked")).to_contain_text("<img src=x", timeout=SLOW)
    other.get_by_text("How they are asked").click()
    expect(other.locator("#length input[type=number]")).to_have_value("32")
    other.get_by_text("Conversations").click()
    expect(other.locator("#conversations")).to_contain_text("None yet")
    ask(other, "Second person")
    expect(other.locator("#kept label")).to_have_count(1, timeout=SLOW)
    other.goto(f"{small_app.address}/?c={'0' * 32}")
    expect(other.locator(".toast-body")).to_contain_text("no conversation behind this link", timeout=SLOW)
    other.context.close()

    # Deleted only when asked twice.
    page.click("#delete-kept")
    page.click("#delete-sure")
    expect(page.locator("#live .invitation")).to_be_visible(timeout=SLOW)
    expect(page.locator("#kept label", has_text="renamed")).to_have_count(0)


@pytest.mark.browser
def test_a_blind_vote_is_revealed_and_counted(page: Page, small_app: App) -> None:
    store = Store(small_app.runs / ".tandem.sqlite")
    before = len(store.votes())
    page.goto(small_app.address)
    expect(page.locator("#side-1 input")).to_have_value(re.compile("Tuned"), timeout=SLOW)
    page.get_by_text("How they are asked").click()
    page.fill("#length input[type=number]", "16")
    page.locator("#blind input").check()
    expect(page.locator("#blind-text")).to_contain_text("Names are hidden", timeout=SLOW)
    expect(page.locator("#heads")).to_be_hidden()
    expect(page.locator("#length input[type=number]")).to_have_value("16")  # what was set before stays
    ask(page, "Which of you?")
    expect(page.locator("#ballot")).to_be_visible(timeout=SLOW)
    shown = page.locator("#compare").inner_text()
    assert "Base" not in shown and "Tuned" not in shown and "tokens/s" not in shown
    page.get_by_text("Look closer").click()
    page.click("#differ")
    expect(page.locator("#differences header")).to_have_text(["A", "B"], timeout=SLOW)
    expect(page.locator("#cross")).to_be_hidden()  # under whom an answer is likely would tell
    shots(page, "compare-blind")
    page.click("#vote-B")
    expect(page.locator("#blind-text")).to_contain_text("You chose B", timeout=SLOW)
    expect(page.locator("#heads")).to_be_visible()
    (vote,) = store.votes()[before:]
    assert vote.winner is not None and vote.choice == "B"
    right = page.locator("#live .answer header b").nth(1)
    expect(right).to_have_text("Base" if vote.winner.name == "base" else "Tuned")
    expect(page.locator("#blind-text")).to_contain_text(f"You chose B: {right.inner_text()}")
    page.click("#blind-again")
    expect(page.locator("#live .invitation")).to_be_visible(timeout=SLOW)
    expect(page.locator("#blind input")).to_be_checked()
    assert len(store.votes()) == before + 1
