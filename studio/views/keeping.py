"""A kept conversation for people: its line in the list, and as a file. In Markdown, what was said is fenced text."""

import json
import re
import time

from inference.sampling import Sampling
from studio import sides
from studio.conversation import Conversation
from studio.store import Kept
from studio.view import plain
from studio.views.compare import figures

FORMAT = "tandem-conversation/1"
BLIND = "This comparison is still blind: vote, or turn Blind off, and then look at who is who."


def line(kept: Kept) -> str:
    """Its title and when it was last spoken in, in local time."""
    return f"{kept.title} · {time.strftime('%d %b %Y %H:%M', time.localtime(kept.updated))}"


def file_name(title: str, suffix: str) -> str:
    """A name that every system takes."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
    return f"{slug or 'conversation'}.{suffix}"


def as_json(conversation: Conversation, title: str) -> str:
    """All of it, to be read by programs. Raises ValueError while it is blind."""
    if conversation.blind:
        raise ValueError(BLIND)
    names = sides.names(conversation.sides)
    values = {"format": FORMAT, "title": title, "columns": names, "conversation": conversation.model_dump(mode="json")}
    return json.dumps(values, indent=2, ensure_ascii=False)


def as_markdown(conversation: Conversation, title: str) -> str:
    """All of it, to be read by people: no text in it becomes markup. Raises ValueError while it is blind."""
    if conversation.blind:
        raise ValueError(BLIND)
    names = [plain(name) for name in sides.names(conversation.sides)]
    parts = [f"# {plain(title)}", f"Columns: {', '.join(names)}", _settings(conversation)]
    if conversation.settings.system:
        parts += ["## System prompt", fenced(conversation.settings.system)]
    for number, exchange in enumerate(conversation.exchanges, 1):
        parts += [f"## Prompt {number}", fenced(exchange.prompt)]
        if exchange.context:
            parts += ["Read with it:", fenced(exchange.context)]
        for column in conversation.places():
            if column < len(exchange.answers):
                said = exchange.answers[column]
                parts += [f"### {names[column]}", fenced(said.text), figures(said)]
        if exchange.reference:
            parts += ["### Reference answer", fenced(exchange.reference)]
    return "\n\n".join(part for part in parts if part) + "\n"


def fenced(text: str) -> str:
    """Text in a fence that is longer than any in it, so nothing in it can end the block (CommonMark, section 4.5)."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _settings(conversation: Conversation) -> str:
    settings = conversation.settings
    own = {name: value for name, value in settings.sampling if value != getattr(Sampling(), name)}
    asked = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in own.items()) or "greedy"
    return f"Asked: {asked}; at most {settings.max_new_tokens} tokens"
