"""Compare's kept conversations: the list, a name, a link, files, and deletion asked twice."""

import re
import uuid
from typing import Any

import gradio as gr

from studio.conversation import Conversation
from studio.store import Store, title_of
from studio.views import keeping

HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# What the server hands over becomes a file in the browser: nothing is left lying on the server for others to fetch.
DOWNLOAD = """(file) => {
  const url = URL.createObjectURL(new Blob([file.text], {type: file.type}));
  const link = Object.assign(document.createElement('a'), {href: url, download: file.name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}"""
# A browser's own id, random, made at its first visit. (gr.BrowserState may be asked before it has looked.)
BROWSER = """(conversation, browser) => {
  const hex = (byte) => byte.toString(16).padStart(2, '0');
  const make = () => [...crypto.getRandomValues(new Uint8Array(16))].map(hex).join('');
  let id = null;
  try {
    id = localStorage.getItem('tandem-browser');
    if (!/^[0-9a-f]{32}$/.test(id || '')) localStorage.setItem('tandem-browser', (id = make()));
  } catch (refused) {
    id = id || make();
  }
  return [conversation, id];
}"""
LINK = "(kept) => `${location.origin}${location.pathname}?c=${kept.id}`"


class Keeping:
    """A fold with the list; its acts are on the conversation that stands on the page."""

    def __init__(self) -> None:
        with gr.Accordion("Conversations", open=False, elem_id="conversations"):
            self.list = gr.Radio(
                [], label="Yours, newest first: choose one to reopen it", elem_id="kept", elem_classes="kept"
            )
            self.none = gr.Markdown("None yet: each one is kept as soon as it is answered.", elem_classes="figures")
            with gr.Column(visible=False, elem_id="kept-acts") as self.acts:
                with gr.Row(equal_height=True):
                    self.title = gr.Textbox(
                        label="Name of this conversation", elem_id="kept-title", max_lines=1, scale=3, min_width=200
                    )
                    self.rename = gr.Button("Rename", elem_id="rename", min_width=88, scale=0)
                with gr.Row():
                    self.markdown = gr.Button("Markdown", size="sm", elem_id="as-markdown", min_width=88)
                    self.json = gr.Button("JSON", size="sm", elem_id="as-json", min_width=88)
                    self.share = gr.Button("Link", size="sm", elem_id="share", min_width=88)
                    self.delete = gr.Button("Delete", size="sm", elem_id="delete-kept", min_width=88)
                    self.sure = gr.Button(
                        "Delete for good", size="sm", variant="stop", elem_id="delete-sure", min_width=88, visible=False
                    )
                self.link = gr.Textbox(
                    label="Whoever has this link can read the conversation, and go on with a copy of it",
                    elem_id="link",
                    interactive=False,
                    buttons=["copy"],
                    visible=False,
                )
        self.file = gr.JSON(visible=False)  # on its way to the browser
        self.parts = [self.list, self.none, self.acts, self.title, self.delete, self.sure, self.link]

    def show(self, store: Store, owner: str, conversation: Conversation) -> list[Any]:
        """Updates of `parts`."""
        kept = store.listed(owner)
        here = next((k for k in kept if k.id == conversation.id), None)
        return [
            gr.update(choices=[(keeping.line(k), k.id) for k in kept], value=here and here.id, visible=bool(kept)),
            gr.update(visible=not kept),
            gr.update(visible=here is not None),
            here.title if here else "",
            gr.update(visible=True),
            gr.update(visible=False),
            gr.update(value="", visible=False),
        ]

    def wire(self, store: Store, conversation: gr.State, owner: Any) -> None:
        """Its events but opening and deleting, which change the conversation."""
        asked = [conversation, owner]
        for button, make, kind, suffix in (
            (self.markdown, keeping.as_markdown, "text/markdown", "md"),
            (self.json, keeping.as_json, "application/json", "json"),
        ):
            made = button.click(_exporter(store, make, kind, suffix), asked, self.file, **HIDDEN)
            made.success(None, self.file, None, js=DOWNLOAD, api_visibility="private")
        shared = self.share.click(_share, conversation, [self.file, self.link], **HIDDEN)
        shared.success(None, self.file, self.link, js=LINK, api_visibility="private")
        self.delete.click(
            lambda: [gr.update(visible=False), gr.update(visible=True)], None, [self.delete, self.sure], **HIDDEN
        )


def owner_of(request: gr.Request, browser: Any) -> str:
    """Who asks: the name they logged in with, else a random id that their browser keeps."""
    if request.username:
        return f"user:{request.username}"
    if isinstance(browser, str) and re.fullmatch(r"[0-9a-f]{32}", browser):
        return f"browser:{browser}"
    return f"session:{request.session_hash or uuid.uuid4().hex}"  # a client without a browser: while it lasts


def _exporter(store: Store, make: Any, kind: str, suffix: str) -> Any:
    def export(request: gr.Request, conversation: Conversation, browser: Any) -> dict[str, str]:
        """The conversation as a file's name, type and text."""
        title = store.title(owner_of(request, browser), conversation.id) or title_of(conversation)
        try:
            return {"name": keeping.file_name(title, suffix), "type": kind, "text": make(conversation, title)}
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error

    return export


def _share(conversation: Conversation) -> list[Any]:
    return [{"id": conversation.id}, gr.update(visible=True)]
