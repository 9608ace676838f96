"""Compare as text: prompts with their answers side by side, as HTML in which all that was said stays text."""

from collections.abc import Sequence
from html import escape

from studio import sides
from studio.conversation import Conversation, Exchange, Said

STOPS = {"end": "ended by itself", "length": "reached the length limit", "cancelled": "stopped"}
LETTERS = "ABCD"
TRY = (
    "Explain to a child why the sky is blue.",
    "Write a short note to a neighbour about a borrowed ladder.",
    "Name three ways to keep bread fresh.",
)


def past(conversation: Conversation) -> str:
    """All exchanges but the last, which do not change while the last is answered."""
    return _exchanges(conversation, 0, len(conversation.exchanges) - 1)


def live(conversation: Conversation, message: str = "", going: bool = False) -> str:
    """The last exchange with what goes on, if something does; an invitation where there is none yet."""
    if not conversation.exchanges:
        return _invitation()
    last = len(conversation.exchanges) - 1
    return _exchanges(conversation, last, last + 1, message, going)


def figures(said: Said, blind: bool = False) -> str:
    """What is shown under an answer. Blind, only what its text shows anyway: a speed tells which column it is."""
    if not said.tokens:
        return STOPS.get(said.stop or "", "")
    parts = [] if blind else [f"first token after {said.first_token_seconds:.1f} s"]
    if said.tokens_per_second and not blind:
        parts.append(f"{said.tokens_per_second:.1f} tokens/s")
    parts.append("1 token" if said.tokens == 1 else f"{said.tokens} tokens")
    if said.stop:
        parts.append(STOPS[said.stop])
    return " · ".join(parts)


def _exchanges(conversation: Conversation, first: int, end: int, message: str = "", going: bool = False) -> str:
    names = list(LETTERS) if conversation.blind else sides.names(conversation.sides)
    shown = conversation.exchanges[first:end]
    # A column that has to wait for the others would give itself away: blind, all appear when all are there.
    held = conversation.blind and any(sides.answers_apart(side) for side in conversation.sides)
    return "".join(_exchange(exchange, conversation, names, held, message, going) for exchange in shown)


def _exchange(
    exchange: Exchange, conversation: Conversation, names: Sequence[str], held: bool, message: str, going: bool
) -> str:
    answers = []
    held = held and any(said.is_open for said in exchange.answers)
    for place, column in enumerate(conversation.places()):
        said = exchange.answers[column] if column < len(exchange.answers) and not held else Said(text="")
        name = names[place] if conversation.blind else names[column]
        ink = "blind" if conversation.blind else str(column)
        answers.append(_answer(said, place, name, ink, conversation.blind, going))
    context = f"<details><summary>Read with it</summary>{_text(exchange.context)}</details>" if exchange.context else ""
    reference = ""
    if exchange.reference and not all(said.is_open for said in exchange.answers):
        head = f"<header><b>Reference answer</b><span>{_COPY}</span></header>"
        reference = f'<aside class="reference">{head}{_text(exchange.reference)}</aside>'
    note = f'<p class="note" role="status">{escape(message)}</p>' if message and not conversation.blind else ""
    return (
        f'<section class="exchange"><div class="asked">{_text(exchange.prompt)}{context}</div>'
        f'{note}<div class="answers">{"".join(answers)}</div>{reference}</section>'
    )


_COPY = '<button type="button" class="copy" title="Copy this text">Copy</button>'


def _answer(said: Said, place: int, name: str, ink: str, blind: bool, waiting: bool) -> str:
    label = escape(name)
    widen = (
        f'<button type="button" class="widen" data-place="{place}" '
        f'aria-label="{label} at full width, and back" title="Full width, and back">⤢</button>'
    )
    copy = _COPY if said.text else ""
    state = "writing" if said.is_open and said.tokens else "waiting" if said.is_open and waiting else "still"
    nothing = '<p class="figures">Not asked yet</p>' if state == "still" and said.is_open else ""
    return (
        f'<article class="answer {state}" data-place="{place}" data-ink="{ink}" aria-label="{label}">'
        f"<header><b>{label}</b><span>{copy}{widen}</span></header>{_text(said.text)}"
        f'{nothing}<p class="figures">{figures(said, blind)}</p></article>'
    )


def _text(text: str) -> str:
    """What a model or a person wrote: shown as it is, whatever it holds."""
    return f'<div class="text" dir="auto">{escape(text)}</div>'


def _invitation() -> str:
    tries = "".join(f'<button type="button" class="try">{escape(text)}</button>' for text in TRY)
    return f'<div class="invitation"><p>One prompt for every column. Try one:</p><p>{tries}</p></div>'
