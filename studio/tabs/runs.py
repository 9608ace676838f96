"""Runs: all runs there are."""

import gradio as gr


def build(page: gr.Blocks) -> None:
    """Wire the tab."""
    gr.Markdown("All runs.")
