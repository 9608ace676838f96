"""Compare, closer: on demand, the differences between answers, each answer under each model, and the lens."""

from typing import Any

import gradio as gr

from inference.engine import Engine
from studio import looking, sides
from studio.conversation import Conversation
from studio.limits import Limits, person
from studio.views.compare import LETTERS
from studio.views.differences import differences
from studio.views.lens import KEYS, heat, two_by_two

DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 2, "api_visibility": "private"}
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LONGEST_OFFER = 60  # characters of a prompt


class Closer:
    """A fold with what looks at one exchange; what it shows is dropped when the conversation changes."""

    def __init__(self) -> None:
        with gr.Accordion("Look closer", open=False, elem_id="closer", visible=False) as self.fold:
            with gr.Row(elem_id="closer-acts"):
                self.exchange = gr.Dropdown(
                    [], label="On the answers to", elem_id="closer-exchange", scale=2, min_width=180
                )
                self.differ = gr.Button("Mark word differences", size="md", elem_id="differ", min_width=150)
                self.cross = gr.Button("Each answer under each model", size="md", elem_id="cross", min_width=170)
            self.differed = gr.HTML(elem_id="differences", elem_classes="chat closer", visible=False)
            self.crossed = gr.HTML(elem_id="crossed", elem_classes="chat closer", visible=False)
            with gr.Row(elem_id="lens-acts") as self.lens_acts:
                self.whose = gr.Dropdown([], label="Lens on the answer of", elem_id="lens-whose", min_width=150)
                self.under = gr.Dropdown([], label="Held against the first column", elem_id="lens-under", min_width=150)
                self.look = gr.Button("Look through the lens", size="md", elem_id="look", min_width=150)
            self.seen = gr.HTML(elem_id="lens", elem_classes="chat closer", visible=False, js_on_load=KEYS)
        self.looked = gr.State(None)  # a Looked: another column of it needs no further pass
        self.parts = [
            self.fold,
            self.exchange,
            self.differed,
            self.cross,
            self.crossed,
            self.lens_acts,
            self.whose,
            self.under,
            self.seen,
            self.looked,
        ]

    def show(self, conversation: Conversation) -> list[Any]:
        """Updates of `parts`."""
        answered = [i for i, e in enumerate(conversation.exchanges) if any(not said.is_open for said in e.answers)]
        names = sides.names(conversation.sides)
        prompts = [(_offer(i, conversation.exchanges[i].prompt), i) for i in answered]
        # Blind, who is who must not be told, nor under whom an answer is likely.
        named, shared = not conversation.blind, [] if conversation.blind else _shared(conversation)
        columns = [(names[c], c) for c in conversation.places()] if named else []
        others = [(names[c], c) for c in shared[1:]]
        none = gr.update(value="", visible=False)
        return [
            gr.update(visible=bool(answered) and len(names) > 1),
            gr.update(choices=prompts, value=answered[-1] if answered else None),
            none,
            gr.update(visible=named),
            none,
            gr.update(visible=named),
            gr.update(choices=columns, value=max((c for _, c in columns), default=None)),
            gr.update(
                choices=others,
                value=others[0][1] if others else None,
                visible=len(others) > 1,
                label=f"{names[shared[0]]} held against" if others else None,
            ),
            none,
            None,
        ]

    def wire(self, engine: Engine, limits: Limits, conversation: gr.State) -> None:
        """All its events."""
        asked = [conversation, self.exchange]
        self.differ.click(_differ, asked, self.differed, **HIDDEN)
        self.cross.click(_crosser(engine, limits), asked, self.crossed, **DEVICE)
        looks = [*asked, self.whose, self.under]
        gr.on([self.look.click], _looker(engine, limits), looks, [self.seen, self.looked], **DEVICE)
        self.under.input(_redraw, [conversation, self.under, self.looked], self.seen, **HIDDEN)


def _offer(at: int, prompt: str) -> str:
    line = " ".join(prompt.split())
    return f"{at + 1} · {line if len(line) <= LONGEST_OFFER else line[: LONGEST_OFFER - 1] + '…'}"


def _shared(conversation: Conversation) -> list[int]:
    """Columns that the lens can look under, in its order."""
    shared = []
    for column, side in enumerate(conversation.sides):
        try:
            if not sides.answers_apart(side):
                shared.append(column)
        except ValueError:  # its run has been deleted since
            continue
    return shared


def _differ(conversation: Conversation, exchange: int | None) -> Any:
    """The marked answers, in the order in which they stand."""
    at = _at(conversation, exchange)
    places, said = conversation.places(), conversation.exchanges[at].answers
    names = sides.names(conversation.sides)
    labels = [LETTERS[i] if conversation.blind else names[c] for i, c in enumerate(places)]
    inks = ["blind" if conversation.blind else str(c) for c in places]
    return gr.update(value=differences([said[c].text for c in places], labels, inks), visible=True)


def _crosser(engine: Engine, limits: Limits) -> Any:
    def cross(request: gr.Request, conversation: Conversation, exchange: int | None) -> Any:
        """The table of each answer under each model."""
        try:
            with limits.answer(person(request).answers):
                found = looking.cross(engine, conversation, _at(conversation, exchange))
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error
        return gr.update(value=two_by_two(found.scores, found.answers, found.names, found.note), visible=True)

    return cross


def _looker(engine: Engine, limits: Limits) -> Any:
    def look(
        request: gr.Request, conversation: Conversation, exchange: int | None, whose: int | None, under: int | None
    ) -> list[Any]:
        """The heat map, and what it was drawn from."""
        at, last = _at(conversation, exchange), len(conversation.sides) - 1
        column = last if whose is None else max(0, min(int(whose), last))
        try:
            with limits.answer(person(request).answers):
                found = looking.look(engine, conversation, at, column)
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error
        return [_redraw(conversation, under, found), found]

    return look


def _redraw(conversation: Conversation, under: int | None, found: looking.Looked | None) -> Any:
    """The same pass, held against another column."""
    if found is None:
        return gr.skip()
    shared = _shared(conversation)
    row = shared.index(int(under)) if under is not None and int(under) in shared[1:] else 1
    return gr.update(value=heat(found.lens, row, found.names, found.whose), visible=True)


def _at(conversation: Conversation, exchange: int | None) -> int:
    """The chosen exchange, or the last one."""
    if not conversation.exchanges:
        raise gr.Error("Ask something first.")
    last = len(conversation.exchanges) - 1
    return last if exchange is None else max(0, min(int(exchange), last))
