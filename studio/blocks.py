"""The page: its tabs over one engine, and what leads from one to another."""

from pathlib import Path

import gradio as gr

from inference.engine import Engine
from studio import api
from studio.limits import Limits
from studio.tabs import compare, evaluate, runs, train

ASSETS = Path(__file__).resolve().parents[1] / "assets"
CSS = (ASSETS / "page.css").read_text()
KEYS = (ASSETS / "page.js").read_text()


def build(engine: Engine) -> gr.Blocks:
    """The whole page, not yet launched, over that engine."""
    with gr.Blocks(title="Tandem", analytics_enabled=False) as page:
        api.build(engine, Limits())
        gr.Markdown("# Tandem\nFine-tune a 4-bit model, and see what it changed.", elem_id="head")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Compare", id="compare"):
                compare.build(page, engine)
            with gr.Tab("Fine-tune", id="train"):
                train.build(page, engine)
            with gr.Tab("Evaluate", id="evaluate"):
                evaluate.build(page)
            with gr.Tab("Runs", id="runs"):
                runs.build(page)
        page.load(None, None, None, js=f"() => {{\n{KEYS}\n}}", api_visibility="private")
    return page
