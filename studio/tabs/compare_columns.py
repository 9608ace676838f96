"""Compare's heads: what stands in each column and how strong, and columns more or fewer."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio import sides
from studio.conversation import MOST_COLUMNS, MOST_STRENGTH_ON_PAGE, Conversation

Change = Callable[[Conversation], Conversation]
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Heads:
    """A head for each place; all are built, and those that a conversation has are shown."""

    def __init__(self) -> None:
        self.heads: list[Any] = []
        self.choosers: list[Any] = []
        self.strengths: list[Any] = []
        self.drops: list[Any] = []
        with gr.Row(elem_id="heads", equal_height=True) as self.row:
            for place in range(MOST_COLUMNS):
                self._head(place)
        self.add = gr.Button("+ Add a column", size="sm", elem_id="add-column", variant="secondary")
        self.parts = [self.row, *self.heads, *self.choosers, *self.strengths, *self.drops, self.add]

    def _head(self, place: int) -> None:
        with gr.Column(min_width=150, elem_classes=_classes(place, place), visible=place == 0) as head:
            with gr.Row(elem_classes="side-line"):
                chooser = gr.Dropdown(
                    [("Base", sides.BASE_KEY)],
                    value=sides.BASE_KEY,
                    label=f"What answers in column {place + 1}",
                    show_label=False,
                    container=False,
                    elem_id=f"side-{place}",
                    scale=1,
                    min_width=80,
                )
                drop = gr.Button(
                    "✕", size="sm", elem_id=f"drop-{place}", elem_classes="drop", scale=0, min_width=36, visible=False
                )
            strength = gr.Slider(
                0,
                MOST_STRENGTH_ON_PAGE,
                1,
                step=0.05,
                label="Strength",
                elem_id=f"strength-{place}",
                elem_classes="strength",
                visible=False,
            )
        for kept, part in zip(
            (self.heads, self.choosers, self.strengths, self.drops), (head, chooser, strength, drop), strict=True
        ):
            kept.append(part)

    def show(self, conversation: Conversation) -> list[Any]:
        """Updates of `parts`. Blind, none of it is shown: it would tell."""
        places = conversation.places()
        shown = [conversation.sides[places[i]] if i < len(places) else None for i in range(MOST_COLUMNS)]
        offered = sides.choices()
        known = {key for _, key in offered}
        choosers = []
        for side in shown:
            key = sides.to_key(side) if side else sides.BASE_KEY
            gone = [] if key in known else [(f"{key} (no longer there)", key)]
            choosers.append(gr.update(choices=[*offered, *gone], value=key))
        room = len(places) < MOST_COLUMNS and not conversation.blind
        return [
            gr.update(visible=not conversation.blind),
            *(
                gr.update(visible=side is not None, elem_classes=_classes(i, places[i] if side else i))
                for i, side in enumerate(shown)
            ),
            *choosers,
            *(
                gr.update(visible=side is not None and sides.has_strength(side), value=side.strength if side else 1)
                for side in shown
            ),
            *(gr.update(visible=len(places) > 1) for _ in shown),
            gr.update(visible=room),
        ]

    def wire(self, change: Callable[..., Any], conversation: gr.State, outputs: list[Any]) -> list[Any]:
        """`change` makes a handler of a function (conversation, place, …values) → conversation. Returns the events."""
        events = []
        for place in range(MOST_COLUMNS):
            chosen = [self.choosers[place], self.strengths[place]]
            put = change(_put, place)
            for chosen_anew in (self.choosers[place].input, self.strengths[place].release):
                events.append(chosen_anew(put, [conversation, *chosen], outputs, **HIDDEN))
            events.append(self.drops[place].click(change(_drop, place), conversation, outputs, **HIDDEN))
            self.choosers[place].focus(_offer, self.choosers[place], self.choosers[place], **HIDDEN)
        events.append(self.add.click(change(_add, -1), conversation, outputs, **HIDDEN))
        return events


def _classes(place: int, column: int) -> list[str]:
    """Where it stands, and the colour of the column that stands there."""
    return ["side", f"place-{place}", f"ink-{column}"]


def _put(conversation: Conversation, place: int, key: str, strength: float) -> Conversation:
    column = conversation.places()[place]
    side = sides.to_side(key, strength)
    return conversation if side == conversation.sides[column] else conversation.put(column, side)


def _drop(conversation: Conversation, place: int) -> Conversation:
    return conversation.drop(conversation.places()[place]) if len(conversation.sides) > 1 else conversation


def _add(conversation: Conversation, _: int) -> Conversation:
    """The next thing there is that no column has yet; the base once more where there is nothing else."""
    if len(conversation.sides) >= MOST_COLUMNS:
        return conversation
    taken = {sides.to_key(side) for side in conversation.sides}
    new = next((key for _, key in sides.choices() if key not in taken), sides.BASE_KEY)
    return conversation.add(sides.to_side(new))


def _offer(chosen: str) -> Any:
    offered = sides.choices()
    return gr.update(choices=offered if chosen in {key for _, key in offered} else [*offered, (chosen, chosen)])
