"""Compare's fold of prompts from held-out rows."""

from typing import Any

import gradio as gr

from finetune.data import Row
from studio import heldout
from studio.conversation import Conversation
from studio.drafts import Draft
from studio.tabs.compare_columns import HIDDEN


class Rows:
    """The fold's components."""

    def __init__(self) -> None:
        with (
            gr.Accordion("Prompts from held-out rows", open=False, elem_id="rows-fold") as self.fold,
            gr.Row(),
        ):
            self.category = gr.Dropdown(
                [heldout.ANY],
                value=heldout.ANY,
                label="Category",
                info="Rows that the run was not trained on, with the answer a person gave.",
                elem_id="row-category",
                scale=3,
            )
            self.another = gr.Button("Another one", elem_id="another-row", scale=1, min_width=140)

    def wire(self, conversation: gr.State, row: gr.State, draft: list[Any], draw: Any) -> None:
        """`draw` makes a Draft updates of `draft`."""

        def another(conversation: Conversation, category: str, last: Row | None) -> list[Any]:
            try:
                rows = heldout.held_out(heldout.run_of(conversation))
                drawn: list[Any] = draw(Draft.of_row(heldout.another(rows, category, last)))
            except ValueError as error:
                raise gr.Error(str(error), duration=None) from error
            return drawn

        self.another.click(another, [conversation, self.category, row], draft, **HIDDEN)
        for opened in (self.fold.expand, self.category.focus):
            opened(_offer, [conversation, self.category], self.category, **HIDDEN)


def _offer(conversation: Conversation, chosen: str) -> Any:
    try:
        offered = heldout.categories(heldout.held_out(heldout.run_of(conversation)))
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error
    return gr.update(choices=offered, value=chosen if chosen in offered else heldout.ANY)
