"""The blind votes of Compare, counted, on Evaluate."""

from typing import Any

import gradio as gr

from evaluation.votes import vote_summary
from studio import view
from studio.store import Store
from studio.views.votes import vote_sentence, vote_table


def build(tab: gr.Tab, place: gr.Column, store: Store) -> None:
    """Fill `place`; it is counted again whenever `tab` is opened."""
    with place:
        gr.Markdown("### Blind votes")
        sentence = gr.Markdown(elem_id="vote-sentence")
        table = gr.Dataframe(label="Votes", interactive=False, wrap=True, elem_id="vote-table", visible=False)

    def count() -> list[Any]:
        summary = vote_summary(store.votes())
        drawn = gr.update(value=vote_table(summary), visible=bool(summary.votes))
        return [view.plain(vote_sentence(summary)), drawn]

    tab.select(count, None, [sentence, table], show_progress="hidden", api_visibility="private")
