"""Compare: one prompt for two to four columns, all streaming at once from one resident 4-bit base."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from finetune.data import Row
from inference.engine import Engine
from studio import drafts, sides
from studio.answering import Answering
from studio.conversation import Conversation, Side
from studio.drafts import Draft
from studio.limits import Limits, person
from studio.tabs.compare_asking import Asking, read
from studio.tabs.compare_columns import HIDDEN, Heads
from studio.tabs.compare_composer import Composer, acts
from studio.tabs.compare_first import First, is_over
from studio.tabs.compare_rows import Rows
from studio.views import compare as view

AT_ONCE = 32  # pages that are answered or wait for the model: the engine keeps the line, and says how long it is


class Compare(NamedTuple):
    """What others build on.

    Attributes:
        conversation: the truth of the tab, a Conversation's value.
        drawn: every component that is drawn from a conversation, the conversation itself first.
        show: a conversation as updates of `drawn`.
        light, redraw: the same without the settings, which a person may be about to change.
        halt: (conversation, request): ask it before a conversation is changed from outside; see Answering.halt.
        answering: the event after which a conversation has new answers.
        changed: the events after which it is another one: undone, cleared, with other columns.
        loaded: the event after which a fresh page has its conversation: chain on it what a link reopens.
        prompt: where the next prompt is written.
        under: an empty container under the answers, above the prompt.
        extras: an empty container under the chat.
    """

    conversation: gr.State
    drawn: list[Any]
    show: Callable[[Conversation], list[Any]]
    light: list[Any]
    redraw: Callable[[Conversation], list[Any]]
    halt: Callable[[Conversation, gr.Request], Conversation]
    answering: Any
    changed: list[Any]
    loaded: Any
    prompt: gr.Textbox
    under: gr.Column
    extras: gr.Column


def build(page: gr.Blocks, engine: Engine, limits: Limits) -> Compare:
    """Wire the tab."""
    return _Tab(page, engine, limits).wire()


class _Tab:
    """The tab's components, and what is done to the conversation."""

    def __init__(self, page: gr.Blocks, engine: Engine, limits: Limits) -> None:
        self.page, self.answering = page, Answering(engine, limits)
        self.conversation = gr.State(Conversation(id=""))  # every page starts from this value: see _own
        with gr.Column(elem_id="compare"):
            self.heads = Heads()
            self.first = First(limits)
            self.past = gr.HTML(elem_id="past", elem_classes="chat")
            self.live = gr.HTML(view.live(Conversation()), elem_id="live", elem_classes="chat")
            self.under = gr.Column(elem_id="compare-under")
            self.composer = Composer()
            self.rows = Rows()
            self.asking = Asking()
            self.extras = gr.Column(elem_id="compare-extras")
        self.chat = [self.conversation, self.past, self.live]
        self.light = [*self.chat, *self.heads.parts, *self.composer.acts]
        self.drawn = [*self.light, *self.asking.parts]

    def wire(self) -> Compare:
        """All events of the tab."""
        box, seed = self.composer, self.asking.sampling[-1]
        answering = gr.on(
            [box.send.click, box.prompt.submit, box.regenerate.click, box.fill.click],
            self._answer,
            [self.conversation, *box.written, *self.asking.inputs],
            [*self.chat, *box.draft, *box.acts, seed],
            concurrency_id="answers",
            concurrency_limit=AT_ONCE,
            **HIDDEN,
        )
        answering.then(self._rest, self.conversation, [self.live, *box.acts], **HIDDEN)
        box.stop.click(self._stop, None, None, queue=False, **HIDDEN)
        undone = box.undo.click(self._change(drafts.undo), self.conversation, self.light, **HIDDEN)
        cleared = box.clear.click(self._change(drafts.clear), self.conversation, self.light, **HIDDEN)
        box.wire(self.conversation)
        self.rows.wire(self.conversation, box.row, box.draft, box.draw)
        changed = [undone, cleared, *self.heads.wire(self._change, self.conversation, self.light)]
        loaded = self.page.load(self._load, self.conversation, [*self.light, *self.first.parts], **HIDDEN)
        self.first.timer.tick(self._tick, self.conversation, [*self.light, *self.first.parts], **HIDDEN)
        return Compare(
            self.conversation,
            self.drawn,
            self.show,
            self.light,
            self._light,
            self.halt,
            answering,
            changed,
            loaded,
            box.prompt,
            self.under,
            self.extras,
        )

    def show(self, conversation: Conversation) -> list[Any]:
        """Updates of `drawn`."""
        return [*self._light(conversation), *self.asking.show(conversation.settings)]

    def halt(self, conversation: Conversation, request: gr.Request) -> Conversation:
        """The conversation once nothing is written to it any more."""
        return self.answering.halt(_session(request), conversation)

    def _light(self, conversation: Conversation) -> list[Any]:
        chat = [conversation, view.past(conversation), view.live(conversation)]
        return [*chat, *self.heads.show(conversation), *acts(conversation, False)]

    def _load(self, request: gr.Request, conversation: Conversation) -> list[Any]:
        """A fresh page's columns. Whoever was quicker than the page already has a prompt, which is left alone."""
        settled = sides.settle(_own(conversation))
        drawn = self._light(settled)
        if self.answering.is_going(_session(request)):
            heads = self.heads.show(settled)
            drawn = [*[gr.skip()] * len(self.chat), *heads, *[gr.skip()] * len(self.composer.acts)]
        return [*drawn, *self.first.show()]

    def _tick(self, request: gr.Request, conversation: Conversation) -> list[Any]:
        """The first run's progress; once it has its adapter, that is the second column."""
        going = self.answering.is_going(_session(request))
        if is_over() and going:
            return [gr.skip()] * (len(self.light) + len(self.first.parts))  # the next tick will do
        if not is_over() or len(conversation.sides) > 1:  # a tick that was under way must not draw what has gone on
            return [*[gr.skip()] * len(self.light), *self.first.show()]
        return [*self._light(sides.settle(conversation.add(Side(name="tuned")))), *self.first.show()]

    def _rest(self, request: gr.Request, conversation: Conversation) -> list[Any]:
        """The end of the answers once more: Gradio's client now and then loses a stream's last look but one."""
        if self.answering.is_going(_session(request)):
            return [gr.skip()] * (1 + len(self.composer.acts))
        return [view.live(conversation), *acts(conversation, False)]

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
        before, draft = self.halt(conversation, request), Draft(prompt or "", context or "", row, editing)
        session = _session(request)
        with self.answering.at_work(session):
            try:
                yield from self._stream(
                    session, person(request).answers, _wanted(str(event.target.elem_id), before, draft, settings)
                )
            except Exception as error:
                chat = [before, view.past(before), view.live(before)]
                yield [*chat, *self.composer.draw(draft), *acts(before, False), gr.skip()]
                if isinstance(error, ValueError):
                    raise gr.Error(str(error), duration=None) from error
                raise

    def _stream(self, session: str, who: str, wanted: tuple[Conversation, Draft | None]) -> Iterator[list[Any]]:
        asked, left = sides.settle(_own(wanted[0])), wanted[1]
        same = [gr.skip()] * len(self.composer.draft)
        draft = same if left is None else self.composer.draw(left)
        drawn: Any = view.past(asked)
        busy, seed, conversation = acts(asked, True), asked.settings.sampling.seed, asked
        for conversation, exchange, message in self.answering.answer(session, who, asked):
            if exchange < len(asked.exchanges) - 1:
                drawn = view.past(conversation)
            yield [conversation, drawn, view.live(conversation, message, True), *draft, *busy, seed]
            draft, busy, drawn, seed = same, [gr.skip()] * len(busy), gr.skip(), gr.skip()
        yield [conversation, gr.skip(), view.live(conversation), *same, *acts(conversation, False), gr.skip()]
        # Gradio sends the last of these once more at the end, which may come after another event's change: so nothing.
        yield [gr.skip()] * (len(self.chat) + len(same) + len(busy) + 1)


def _own(conversation: Conversation) -> Conversation:
    """With an id of its own, where it is as every fresh page has it."""
    return conversation if conversation.id else conversation.with_(id=Conversation().id)


def _wanted(
    pressed: str, conversation: Conversation, draft: Draft, settings: tuple[Any, ...]
) -> tuple[Conversation, Draft | None]:
    """The conversation with what is to be answered, and the draft that is left: None is the one there was.

    Raises ValueError with a sentence.
    """
    asked = conversation.with_(settings=read(*settings))
    if pressed == "fill":
        return asked, None
    if pressed == "regenerate":
        return drafts.regenerate(asked), None
    return drafts.send(asked, draft), Draft()


def _session(request: gr.Request) -> str:
    return request.session_hash or uuid.uuid4().hex
