"""What stands on Compare: blind votes, a closer look at answers, and conversations that are kept."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from inference.engine import Engine
from studio.conversation import Conversation
from studio.limits import Limits
from studio.store import Store
from studio.tabs import compare_blind
from studio.tabs.compare import Compare
from studio.tabs.compare_blind import Blind
from studio.tabs.compare_closer import Closer
from studio.tabs.compare_kept import BROWSER, HIDDEN, Keeping, owner_of


def build(engine: Engine, limits: Limits, store: Store, compare: Compare) -> None:
    """Fill Compare's empty containers, and wire them."""
    _More(engine, limits, store, compare).wire()


class _More:
    """The three parts, and what they do to the conversation."""

    def __init__(self, engine: Engine, limits: Limits, store: Store, compare: Compare) -> None:
        self.engine, self.limits, self.store, self.compare = engine, limits, store, compare
        self.browser = gr.State("")  # the id that the browser keeps; see compare_kept.owner_of
        self.carrier = gr.Textbox(visible=False)  # in which it comes from there
        with compare.under:
            self.blind = Blind()
        with compare.extras:
            self.closer = Closer()
            self.kept = Keeping()
        self.parts = [*self.blind.parts, *self.closer.parts, *self.kept.parts]

    def wire(self) -> None:
        """All events."""
        compare, asked = self.compare, [self.compare.conversation, self.browser]
        compare.answering.success(self._answered, asked, self.parts, **HIDDEN)
        for event in compare.changed:
            event.success(self._refresh, asked, self.parts, **HIDDEN)
        arriving, arrived = [compare.conversation, self.carrier], [self.browser, *compare.drawn, *self.parts]
        compare.loaded.then(self._arrive, arriving, arrived, js=BROWSER, **HIDDEN)
        whole, light = [*compare.drawn, *self.parts], [*compare.light, *self.parts]
        self.kept.list.input(self._open, [*asked, self.kept.list], whole, **HIDDEN)
        self.kept.sure.click(self._delete, asked, light, **HIDDEN)
        renames = [self.kept.rename.click, self.kept.title.submit]
        gr.on(renames, self._rename, [*asked, self.kept.title], self.kept.parts, **HIDDEN)
        self.blind.switch.input(self._switch, [*asked, self.blind.switch], light, **HIDDEN)
        self.blind.again.click(self._again, asked, light, **HIDDEN)
        for choice, button in self.blind.choices.items():
            # One at a time, so that two buttons pressed at once are one vote and a sentence.
            button.click(self._voter(choice), asked, light, concurrency_id="ballot", **HIDDEN)
        self.closer.wire(self.engine, self.limits, compare.conversation)
        self.kept.wire(self.store, compare.conversation, self.browser)

    def _show(self, owner: str, conversation: Conversation, told: str = "") -> list[Any]:
        """Updates of `parts`."""
        kept = self.kept.show(self.store, owner, conversation)
        return [*self.blind.show(conversation, told), *self.closer.show(conversation), *kept]

    def _light(self, owner: str, conversation: Conversation, told: str = "") -> list[Any]:
        return [*self.compare.redraw(conversation), *self._show(owner, conversation, told)]

    def _refresh(self, request: gr.Request, conversation: Conversation, browser: Any) -> list[Any]:
        return self._show(owner_of(request, browser), conversation)

    def _answered(self, request: gr.Request, conversation: Conversation, browser: Any) -> list[Any]:
        """Keep what was answered."""
        owner = owner_of(request, browser)
        if conversation.exchanges:
            self.store.keep(owner, conversation)
        return self._show(owner, conversation)

    def _arrive(self, request: gr.Request, conversation: Conversation, browser: Any) -> list[Any]:
        """A fresh page: who it is, what they have kept, and what their link reopens."""
        owner, link = owner_of(request, browser), request.query_params.get("c")
        drawn: list[Any] = [gr.skip()] * len(self.compare.drawn)
        if link:
            try:
                conversation = self.store.find(owner, link).halted()
                drawn = self.compare.show(conversation)
            except ValueError as error:
                gr.Warning(str(error), duration=None)
        return [browser, *drawn, *self._show(owner, conversation)]

    def _open(self, request: gr.Request, conversation: Conversation, browser: Any, wanted: str) -> list[Any]:
        """Reopen a kept conversation, with its columns and settings."""
        self.compare.halt(conversation, request)
        owner = owner_of(request, browser)
        found = _or_error(lambda: self.store.find(owner, wanted)).halted()
        return [*self.compare.show(found), *self._show(owner, found)]

    def _delete(self, request: gr.Request, conversation: Conversation, browser: Any) -> list[Any]:
        """Forget the conversation; a new one of the same columns takes its place."""
        self.compare.halt(conversation, request)
        owner = owner_of(request, browser)
        _or_error(lambda: self.store.delete(owner, conversation.id))
        return self._light(owner, Conversation(sides=conversation.sides, settings=conversation.settings))

    def _rename(self, request: gr.Request, conversation: Conversation, browser: Any, title: str) -> list[Any]:
        owner = owner_of(request, browser)
        _or_error(lambda: self.store.rename(owner, conversation.id, title))
        return self.kept.show(self.store, owner, conversation)

    def _switch(self, request: gr.Request, conversation: Conversation, browser: Any, on: bool) -> list[Any]:
        """On: a new, blind conversation. Off: the names, without a vote."""
        if on:
            return self._again(request, conversation, browser)
        owner, shown = owner_of(request, browser), self.compare.halt(conversation, request).with_(blind=False)
        if shown.exchanges:
            self.store.keep(owner, shown)
        return self._light(owner, shown)

    def _again(self, request: gr.Request, conversation: Conversation, browser: Any) -> list[Any]:
        owner, before = owner_of(request, browser), self.compare.halt(conversation, request)
        try:
            return self._light(owner, compare_blind.begun(before))
        except ValueError as error:
            gr.Warning(str(error), duration=None)
            return self._light(owner, before)  # the switch goes back

    def _voter(self, choice: str) -> Callable[..., list[Any]]:
        def vote(request: gr.Request, conversation: Conversation, browser: Any) -> list[Any]:
            """Keep the vote, and show the names."""
            owner = owner_of(request, browser)
            shown, told = _or_error(lambda: compare_blind.voted(self.store, owner, conversation, choice))
            return self._light(owner, shown, told)

        return vote


def _or_error(work: Callable[[], Any]) -> Any:
    """What it returns; a ValueError becomes a sentence on the page."""
    try:
        return work()
    except ValueError as error:
        raise gr.Error(str(error), duration=None) from error
