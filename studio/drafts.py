"""The prompt that is being written, and what pressing a button of Compare makes of a conversation."""

from typing import NamedTuple, Self

from finetune.data import Row
from studio.conversation import Conversation, Settings


class Draft(NamedTuple):
    """What is written and not yet sent.

    Attributes:
        prompt, context: the text, and what is to be read with it.
        row: the row that they were taken from, whose response is the reference while they are as they were.
        editing: whether sending takes the place of the last exchange.
    """

    prompt: str = ""
    context: str = ""
    row: Row | None = None
    editing: bool = False

    @classmethod
    def of_row(cls, row: Row) -> Self:
        """A held-out row's prompt."""
        return cls(row.instruction.strip(), row.context.strip(), row)

    @classmethod
    def of_last(cls, conversation: Conversation) -> Self:
        """The last prompt, to be written anew; the exchange stays until that is sent."""
        last = conversation.exchanges[-1]
        return cls(last.prompt, last.context, Row(last.prompt, last.context, last.reference, ""), True)

    @property
    def reference(self) -> str:
        """The row's response, unless it was the answer to another prompt."""
        if self.row is None:
            return ""
        of_row = (self.row.instruction.strip(), self.row.context.strip())
        return self.row.response if of_row == (self.prompt.strip(), self.context.strip()) else ""


def send(conversation: Conversation, draft: Draft) -> Conversation:
    """With the draft to be answered. Raises ValueError where nothing is written."""
    if not draft.prompt.strip():
        raise ValueError("Write a prompt first.")
    if draft.editing and conversation.exchanges:
        conversation = conversation.undo()
    return conversation.ask(draft.prompt.strip(), draft.context.strip(), draft.reference)


def regenerate(conversation: Conversation) -> Conversation:
    """With the last prompt to be answered again; where tokens are drawn, from other noise, or they would be the same.

    Raises ValueError where there is none.
    """
    if not conversation.exchanges:
        raise ValueError("There is nothing to answer again yet: write a prompt first.")
    settings = conversation.settings
    if settings.sampling.temperature:
        sampling = settings.sampling.model_copy(update={"seed": settings.sampling.seed + 1})
        conversation = with_settings(conversation, settings.with_(sampling=sampling))
    return conversation.again()


def with_settings(conversation: Conversation, settings: Settings) -> Conversation:
    """Asked in that way from now on."""
    return conversation.with_(settings=settings)


def undo(conversation: Conversation) -> Conversation:
    """Without the last exchange, if there is one."""
    return conversation.undo() if conversation.exchanges else conversation


def clear(conversation: Conversation) -> Conversation:
    """A new conversation of the same columns, asked in the same way."""
    return conversation.with_(id=Conversation().id, exchanges=()) if conversation.exchanges else conversation
