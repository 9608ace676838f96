"""The page: three tabs over one engine."""

import gradio as gr

from inference.engine import Engine
from studio.tabs import compare, evaluate, train

CSS = """
.figures { opacity: .75; font-size: .85rem; min-height: 1.4rem; font-variant-numeric: tabular-nums; }
#verdict { font-size: 1.1rem; }
"""


def theme() -> gr.themes.Base:
    """System fonts: nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue="orange",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def build(engine: Engine) -> gr.Blocks:
    """The whole page, not yet launched, over that engine."""
    with gr.Blocks(title="Tandem", analytics_enabled=False) as page:
        gr.Markdown("# Tandem\nFine-tune a 4-bit model, and see what it changed.")
        with gr.Tab("Compare", id="compare"):
            compare.build(page, engine)
        with gr.Tab("Fine-tune", id="train"):
            train.build(page, engine)
        with gr.Tab("Evaluate", id="evaluate"):
            evaluate.build(page)
    return page
