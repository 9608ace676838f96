"""Compare's composer: where the next prompt is written, and what can be done with the last one."""

from typing import Any

import gradio as gr

from studio.conversation import Conversation
from studio.drafts import Draft
from studio.tabs.compare_columns import HIDDEN

LONGEST_PROMPT = 20_000  # characters


class Composer:
    """Its components; it stays at the window's lower edge while the answers scroll."""

    def __init__(self) -> None:
        self.row = gr.State(None)  # of finetune.data: see Draft
        self.editing = gr.State(False)
        with gr.Column(elem_id="composer"):
            self.context = gr.Textbox(
                "",
                label="To be read with the prompt",
                lines=2,
                max_lines=5,
                max_length=LONGEST_PROMPT,
                elem_id="context",
                visible=False,
            )
            with gr.Row(elem_id="ask"):
                self.prompt = gr.Textbox(
                    "",
                    show_label=False,
                    label="Prompt",
                    placeholder="One prompt for all columns",
                    autofocus=True,
                    elem_id="prompt",
                    container=False,
                    max_lines=8,
                    max_length=LONGEST_PROMPT,
                    scale=8,
                    min_width=120,
                )
                self.send = gr.Button("Send", variant="primary", elem_id="send", scale=0, min_width=84)
                self.stop = gr.Button("Stop", elem_id="stop", scale=0, min_width=84, visible=False)
            with gr.Row(elem_id="acts"):
                small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 40}
                self.regenerate = gr.Button("Regenerate", elem_id="regenerate", interactive=False, **small)
                self.edit = gr.Button("Edit", elem_id="edit", interactive=False, **small)
                self.unedit = gr.Button("Leave it as it was", elem_id="unedit", visible=False, **small)
                self.undo = gr.Button("Undo", elem_id="undo", interactive=False, **small)
                self.clear = gr.Button("Clear", elem_id="clear", interactive=False, **small)
                self.fill = gr.Button("Ask the new column", elem_id="fill", visible=False, **small)
        self.acts = [self.regenerate, self.edit, self.undo, self.clear, self.fill, self.send, self.stop]
        self.written = [self.prompt, self.context, self.row, self.editing]
        self.draft = [*self.written, self.unedit]

    def wire(self, conversation: gr.State) -> None:
        """Edit, and leave it."""
        self.edit.click(self._edit, conversation, self.draft, **HIDDEN)
        self.unedit.click(lambda: self.draw(Draft()), None, self.draft, **HIDDEN)

    def draw(self, draft: Draft) -> list[Any]:
        """Updates of `draft`."""
        context = gr.update(value=draft.context, visible=bool(draft.context))
        return [draft.prompt, context, draft.row, draft.editing, gr.update(visible=draft.editing)]

    def _edit(self, conversation: Conversation) -> list[Any]:
        if not conversation.exchanges:
            return [gr.skip()] * len(self.draft)
        return self.draw(Draft.of_last(conversation))


def acts(conversation: Conversation, going: bool) -> list[Any]:
    """Updates of `Composer.acts`: what may be done now."""
    some = gr.update(interactive=bool(conversation.exchanges) and not going)
    fill = gr.update(visible=bool(conversation.gaps()) and not going)
    return [some, some, some, some, fill, gr.update(visible=not going), gr.update(visible=going)]
