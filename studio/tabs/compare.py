"""Compare: one prompt for two to four columns, all streaming at once from one resident 4-bit base."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from finetune.data import Row
from inference.engine import Engine
from studio import sides
from studio.answering import Answering
from studio.conversation import Conversation
from studio.tabs.compare_asking import Asking, read
from studio.tabs.compare_columns import Heads
from studio.views import compare as view

AT_ONCE = 32  # pages that are answered or wait for the model: the engine keeps the line, and says how long it is
LONGEST_PROMPT = 20_000  # characters
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Compare(NamedTuple):
    """What others build on.

    Attributes:
        conversation: the truth of the tab, a Conversation's value.
        drawn: every component that is drawn from a conversation, the conversation itself first.
        show: a conversation as updates of `drawn`.
        halt: (conversation, request): ask it before a conversation is changed from outside; see Answering.halt.
        answering: the event after which a conversation has new answers.
        loaded: the event after which a fresh page has its conversation: chain on it what a link reopens.
        prompt: where the next prompt is written.
        extras: an empty container under the chat.
    """

    conversation: gr.State
    drawn: list[Any]
    show: Callable[[Conversation], list[Any]]
    halt: Callable[[Conversation, gr.Request], Conversation]
    answering: Any
    loaded: Any
    prompt: gr.Textbox
    extras: gr.Column


def build(page: gr.Blocks, engine: Engine) -> Compare:
    """Wire the tab."""
    return _Tab(page, Answering(engine)).wire()


class _Tab:
    """The tab's components, and what is done to the conversation."""

    def __init__(self, page: gr.Blocks, answering: Answering) -> None:
        self.page, self.answering = page, answering
        self.conversation = gr.State(Conversation())
        self.editing = gr.State(False)
        self.row = gr.State(None)  # the row that the prompt was taken from, while it is not sent
        with gr.Column(elem_id="compare"):
            self.heads = Heads()
            self.past = gr.HTML(elem_id="past", elem_classes="chat")
            self.live = gr.HTML(view.live(Conversation()), elem_id="live", elem_classes="chat")
            self._composer()
            self.asking = Asking()
            self.extras = gr.Column(elem_id="compare-extras")
        self.chat = [self.conversation, self.past, self.live]
        self.acts = [self.regenerate, self.edit, self.undo, self.clear, self.fill, self.send, self.stop]
        self.draft = [self.prompt, self.context, self.row, self.editing, self.unedit]
        self.light = [*self.chat, *self.heads.parts, *self.acts]
        self.drawn = [*self.light, *self.asking.parts]

    def _composer(self) -> None:
        with gr.Column(elem_id="composer"):
            self.context = gr.Textbox(
                label="To be read with the prompt",
                lines=2,
                max_lines=5,
                max_length=LONGEST_PROMPT,
                elem_id="context",
                visible=False,
            )
            with gr.Row(elem_id="ask"):
                self.prompt = gr.Textbox(
                    show_label=False,
                    label="Prompt",
                    placeholder="Ask every column the same thing",
                    autofocus=True,
                    elem_id="prompt",
                    container=False,
                    max_lines=8,
                    max_length=LONGEST_PROMPT,
                    scale=8,
                )
                self.send = gr.Button("Send", variant="primary", elem_id="send", scale=0, min_width=88)
                self.stop = gr.Button("Stop", elem_id="stop", scale=0, min_width=88, visible=False)
            with gr.Row(elem_id="acts"):
                self.regenerate = gr.Button("Regenerate", size="sm", elem_id="regenerate", interactive=False)
                self.edit = gr.Button("Edit", size="sm", elem_id="edit", interactive=False)
                self.unedit = gr.Button("Leave it as it was", size="sm", elem_id="unedit", visible=False)
                self.undo = gr.Button("Undo", size="sm", elem_id="undo", interactive=False)
                self.clear = gr.Button("Clear", size="sm", elem_id="clear", interactive=False)
                self.fill = gr.Button("Ask the new column", size="sm", elem_id="fill", visible=False)

    def wire(self) -> Compare:
        """All events of the tab."""
        seed = self.asking.sampling[-1]
        answering = gr.on(
            [self.send.click, self.prompt.submit, self.regenerate.click, self.fill.click],
            self._answer,
            [self.conversation, *self.draft[:-1], *self.asking.inputs],
            [*self.chat, *self.draft, *self.acts, seed],
            concurrency_id="answers",
            concurrency_limit=AT_ONCE,
            **HIDDEN,
        )
        self.stop.click(self._stop, None, None, queue=False, **HIDDEN)
        self.undo.click(self._change(_undo), self.conversation, self.light, **HIDDEN)
        self.clear.click(self._change(_clear), self.conversation, self.light, **HIDDEN)
        self.edit.click(_edit, self.conversation, self.draft, **HIDDEN)
        self.unedit.click(_unedit, None, self.draft, **HIDDEN)
        self.heads.wire(self._change, self.conversation, self.light)
        loaded = self.page.load(self._load, None, self.light, **HIDDEN)
        return Compare(self.conversation, self.drawn, self.show, self.halt, answering, loaded, self.prompt, self.extras)

    def show(self, conversation: Conversation) -> list[Any]:
        """Updates of `drawn`."""
        return [*self._light(conversation), *self.asking.show(conversation.settings)]

    def halt(self, conversation: Conversation, request: gr.Request) -> Conversation:
        """The conversation once nothing is written to it any more."""
        return self.answering.halt(_session(request), conversation)

    def _light(self, conversation: Conversation) -> list[Any]:
        chat = [conversation, view.past(conversation), view.live(conversation)]
        return [*chat, *self.heads.show(conversation), *_acts(conversation, False)]

    def _load(self) -> list[Any]:
        return self._light(sides.settle(Conversation()))

    def _stop(self, request: gr.Request) -> None:
        self.answering.stop(_session(request))

    def _change(self, change: Callable[..., Conversation], *given: Any) -> Callable[..., Any]:
        """A handler: the conversation is halted, changed and drawn; where nothing changes, nothing is touched."""

        def handler(request: gr.Request, conversation: Conversation, *values: Any) -> Any:
            if change(conversation, *given, *values) is conversation:
                return [gr.skip()] * len(self.light)
            return self._light(change(self.halt(conversation, request), *given, *values))

        return handler

    def _answer(
        self,
        event: gr.EventData,
        request: gr.Request,
        conversation: Conversation,
        prompt: str | None,
        context: str | None,
        row: Row | None,
        editing: bool,
        *settings: Any,
    ) -> Iterator[list[Any]]:
        """Every column's answer to what was asked, streamed. Whatever goes wrong, prompt and answers are as before."""
        before, prompt, context = self.halt(conversation, request), prompt or "", context or ""
        same = [gr.skip()] * len(self.draft)
        try:
            wanted, draft = _wanted(str(event.target.elem_id), before, prompt, context, row, editing, settings)
            wanted = sides.settle(wanted)
            looks = self.answering.answer(_session(request), wanted)
            past, busy = None, _acts(wanted, True)
            seed = wanted.settings.sampling.seed
            for conversation, exchange, message in looks:
                now = view.past(conversation) if past is None or exchange < len(wanted.exchanges) - 1 else past
                drawn = gr.skip() if now == past else now
                yield [conversation, drawn, view.live(conversation, message or " "), *draft, *busy, seed]
                past, busy, draft, seed = now, [gr.skip()] * len(busy), same, gr.skip()
        except Exception as error:
            chat = [before, view.past(before), view.live(before)]
            yield [*chat, prompt, context, row, editing, gr.update(visible=editing), *_acts(before, False), gr.skip()]
            if isinstance(error, ValueError):
                raise gr.Error(str(error), duration=None) from error
            raise
        yield [conversation, gr.skip(), view.live(conversation), *same, *_acts(conversation, False), gr.skip()]


def _wanted(
    pressed: str,
    before: Conversation,
    prompt: str,
    context: str,
    row: Row | None,
    editing: bool,
    settings: tuple[Any, ...],
) -> tuple[Conversation, list[Any]]:
    """The conversation with what is to be answered, and the draft that is left. Raises ValueError with a sentence."""
    asked = before.with_(settings=read(*settings))
    kept = [gr.skip()] * 5
    if pressed == "fill":
        return asked, kept
    if pressed == "regenerate":
        if not asked.exchanges:
            raise ValueError("There is nothing to answer again yet: write a prompt first.")
        sampling = asked.settings.sampling
        if sampling.temperature:  # the same seed would say the same again
            other = sampling.model_copy(update={"seed": sampling.seed + 1})
            asked = asked.with_(settings=asked.settings.with_(sampling=other))
        return asked.again(), kept
    if not prompt.strip():
        raise ValueError("Write a prompt first.")
    if editing and asked.exchanges:
        asked = asked.undo()
    is_rows = row is not None and (row.instruction.strip(), row.context.strip()) == (prompt.strip(), context.strip())
    reference = row.response if row is not None and is_rows else ""
    return asked.ask(prompt.strip(), context.strip(), reference), _unedit()


def _undo(conversation: Conversation) -> Conversation:
    return conversation.undo() if conversation.exchanges else conversation


def _clear(conversation: Conversation) -> Conversation:
    """A new conversation of the same columns, asked in the same way."""
    return conversation.with_(id=Conversation().id, exchanges=()) if conversation.exchanges else conversation


def _edit(conversation: Conversation) -> list[Any]:
    """The last prompt in the box; sending it takes the place of the last exchange, which stays until then."""
    if not conversation.exchanges:
        return [gr.skip()] * 5
    last = conversation.exchanges[-1]
    row = Row(last.prompt, last.context, last.reference, "")
    context = gr.update(value=last.context, visible=bool(last.context))
    return [last.prompt, context, row, True, gr.update(visible=True)]


def _unedit() -> list[Any]:
    """An empty draft."""
    return ["", gr.update(value="", visible=False), None, False, gr.update(visible=False)]


def _acts(conversation: Conversation, going: bool) -> list[Any]:
    """What may be done now: regenerate, edit, undo, clear, fill, send, stop."""
    some = gr.update(interactive=bool(conversation.exchanges) and not going)
    fill = gr.update(visible=bool(conversation.gaps()) and not going)
    return [some, some, some, some, fill, gr.update(visible=not going), gr.update(visible=going)]


def _session(request: gr.Request) -> str:
    return request.session_hash or uuid.uuid4().hex
