"""Compare, blind: names hidden and sides shuffled until a vote; then who was who."""

import random
import time
from typing import Any

import gradio as gr

from evaluation.votes import BAD, LETTERS, TIE, Vote
from studio import looking, sides
from studio.conversation import Conversation
from studio.store import Store
from studio.view import plain

ASK = "Names are hidden and the sides shuffled. Ask something, then choose."
CHOOSE = "Which answer is better? Names are shown once you have chosen."
TAKES_TWO = "Blind takes two columns: add one, or make your first adapter under Fine-tune."
MORE = "This was said already, so nothing is counted twice."


class Blind:
    """The switch and the ballot."""

    def __init__(self) -> None:
        with gr.Row(elem_id="blind-line"):
            self.switch = gr.Checkbox(
                False, label="Blind: hide the names until I have chosen", container=False, elem_id="blind"
            )
        self.text = gr.Markdown(elem_id="blind-text", visible=False)
        with gr.Row(elem_id="ballot", visible=False) as self.ballot:
            self.places = [
                gr.Button(f"{letter} is better", size="sm", elem_id=f"vote-{letter}", min_width=96)
                for letter in LETTERS
            ]
            self.tie = gr.Button("Tie", size="sm", elem_id="vote-tie", min_width=72)
            self.bad = gr.Button("Both bad", size="sm", elem_id="vote-bad", min_width=96)
        self.again = gr.Button("Next blind comparison", size="sm", elem_id="blind-again", visible=False)
        self.parts = [self.switch, self.text, self.ballot, *self.places, self.bad, self.again]
        self.choices = {**dict(zip(LETTERS, self.places, strict=True)), TIE: self.tie, BAD: self.bad}

    def show(self, conversation: Conversation, told: str = "") -> list[Any]:
        """Updates of `parts`; `told` is what a vote has revealed."""
        columns = len(conversation.sides)
        may_vote = conversation.blind and is_answered(conversation)
        text = told or (CHOOSE if may_vote else ASK if conversation.blind else "")
        return [
            conversation.blind,
            gr.update(value=text, visible=bool(text)),
            gr.update(visible=may_vote),
            *(gr.update(visible=place < columns) for place in range(len(LETTERS))),
            "Both bad" if columns == 2 else "All bad",
            gr.update(visible=bool(told)),
        ]


def is_answered(conversation: Conversation) -> bool:
    """Whether there is a last prompt and every column has answered."""
    return bool(conversation.exchanges) and not conversation.gaps()


def begun(conversation: Conversation) -> Conversation:
    """A blind conversation of the same columns, asked alike: what one has seen under names would tell who is who.

    Raises:
        ValueError: there is only one column.
    """
    conversation = sides.settle(conversation)
    if len(conversation.sides) < 2:
        raise ValueError(TAKES_TWO)
    places = range(len(conversation.sides))
    order = tuple(random.SystemRandom().sample(places, len(places)))
    return Conversation(sides=conversation.sides, settings=conversation.settings, blind=True, order=order)


def voted(store: Store, owner: str, conversation: Conversation, choice: str) -> tuple[Conversation, str]:
    """The vote is kept; returns the conversation with its names, and who was who in a line of Markdown.

    Raises:
        ValueError: there is nothing to vote on, or a column is no longer there.
    """
    if not conversation.blind:
        raise ValueError("The names are shown already, so this would be no blind vote: begin the next comparison.")
    if not is_answered(conversation):
        raise ValueError("Wait until every column has answered, then choose.")
    places, exchange = conversation.places(), len(conversation.exchanges) - 1
    columns = looking.entrants(conversation)
    vote = Vote(columns, places, choice, conversation.id, exchange, time.time(), owner)
    counted = store.vote(vote, conversation)
    shown = conversation.with_(blind=False)
    store.keep(owner, shown)
    names = sides.names(conversation.sides)
    who = [f"{LETTERS[place]} is {plain(names[column])}" for place, column in enumerate(places)]
    kept = "The vote is counted under Evaluate." if counted else MORE
    if choice in LETTERS:
        first = f"**You chose {choice}: {plain(names[places[LETTERS.index(choice)]])}.** "
    else:
        first = "**You chose neither.** " if len(places) == 2 else "**You chose none.** "
    return shown, f"{first}{', '.join(who)}. {kept}"
