"""The page: its tabs over one engine, and what leads from one to another."""

from pathlib import Path
from typing import Any

import gradio as gr

from inference.engine import Engine
from studio import api
from studio.conversation import Conversation, Side
from studio.form import offer_runs, offer_tuned
from studio.limits import Limits
from studio.store import Store
from studio.tabs import compare, compare_more, evaluate, runs, train, votes

ASSETS = Path(__file__).resolve().parents[1] / "assets"
CSS = (ASSETS / "page.css").read_text()
KEYS = (ASSETS / "page.js").read_text()


def build(engine: Engine) -> gr.Blocks:
    """The whole page, not yet launched, over that engine."""
    limits, store = Limits(), Store()
    with gr.Blocks(title="Tandem", analytics_enabled=False) as page:
        api.build(engine, limits)
        gr.Markdown("# Tandem\nFine-tune a 4-bit model, and see what it changed.", elem_id="head")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Compare", id="compare"):
                comparing = compare.build(page, engine, limits)
            with gr.Tab("Fine-tune", id="train"):
                training = train.build(page, limits)
            with gr.Tab("Evaluate", id="evaluate") as evaluate_tab:
                evaluating = evaluate.build(page, limits)
                votes.build(evaluate_tab, evaluating.votes, store)
            with gr.Tab("Runs", id="runs"):
                kept = runs.build(page, limits)
        leads = [_lead(tab.compare_now, tab.run, tabs, comparing) for tab in (training, kept)]
        comparing = comparing._replace(changed=[*comparing.changed, *leads])
        compare_more.build(engine, limits, store, comparing)
        for tab in (training, kept):
            _lead_on(tab.evaluate_now, tab.run, tabs, "evaluate", evaluating.run, offer_tuned)
        _lead_on(training.merge_now, training.run, tabs, "runs", kept.run, offer_runs)
        page.load(None, None, None, js=f"() => {{\n{KEYS}\n}}", api_visibility="private")
    return page


def _lead(button: gr.Button, run: gr.Dropdown, tabs: gr.Tabs, to: compare.Compare) -> Any:
    """A button that puts base and the chosen run side by side, in a new conversation. Returns its event."""

    def go(request: gr.Request, run_id: str | None, conversation: Conversation) -> list[Any]:
        if not run_id:
            return [gr.skip()] * (len(to.drawn) + 1)
        to.halt(conversation, request)
        fresh = Conversation(sides=(Side(), Side(run=run_id, name="tuned")), settings=conversation.settings)
        return [gr.Tabs(selected="compare"), *to.show(fresh)]

    asked = [run, to.conversation]
    return button.click(go, asked, [tabs, *to.drawn], show_progress="hidden", api_visibility="private")


def _lead_on(button: gr.Button, run: gr.Dropdown, tabs: gr.Tabs, tab: str, its_run: gr.Dropdown, offer: Any) -> None:
    """A button that opens another tab with the same run chosen there."""

    def go(run_id: str | None) -> list[Any]:
        return [gr.Tabs(selected=tab), offer(run_id)]

    button.click(go, run, [tabs, its_run], show_progress="hidden", api_visibility="private")
