"""THE prompt templates and their stop rule: every character between what a person wrote and what a tokenizer sees.

Training, chat and evaluation call nothing else, so what was trained on is what is asked, token for token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

# Named once, so that rendering and the stop rule stay inverses.
BLURB = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
INSTRUCTION_KEY = "### Instruction:"
CONTEXT_KEY = "Input:"
RESPONSE_KEY = "### Response:"
END_KEY = "### End"
BLANK_LINE = "\n\n"
TEXT_WINDOW = 32  # tokens that are decoded together to tell the next one's text


class Turn(NamedTuple):
    """One exchange; `response` is None in the turn that is still to be answered."""

    instruction: str
    context: str = ""
    response: str | None = None


class Encoded(NamedTuple):
    """Token ids of a prompt, and of its response with the end that a model must learn to write."""

    prompt: list[int]
    response: list[int]


@dataclass(frozen=True)
class Template:
    """A template bound to a tokenizer. `stop_strings` and `stop_ids` are what ends an answer."""

    id: Literal["dolly", "chat"]
    tokenizer: Any
    closing: str
    stop_strings: tuple[str, ...]
    stop_ids: frozenset[int]

    def render(self, turns: Sequence[Turn], system: str = "") -> str:
        """The text up to where the last turn's answer begins."""
        turns = [Turn(*(None if part is None else defuse(part, self.tokenizer) for part in turn)) for turn in turns]  # type: ignore[arg-type]
        return _render_dolly(turns, system) if self.id == "dolly" else _render_chat(self.tokenizer, turns, system)

    def encode_prompt(self, turns: Sequence[Turn], system: str = "") -> list[int]:
        """Token ids of the rendered turns: what chat and evaluation send, and what training puts before a response."""
        return self._ids(self.render(turns, system))

    def encode(self, turn: Turn, system: str = "") -> Encoded:
        """Prompt and supervised ids of a whole turn. `turn.response` must be given.

        Prompt and response are tokenized as one text, so a response begins as it would be written by the model;
        where a token would span the border, they are tokenized apart.
        """
        assert turn.response is not None
        text = self.render([turn._replace(response=None)], system)
        prompt = self._ids(text)
        response = defuse(turn.response.strip(), self.tokenizer)
        whole = self._ids(text + response)
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._plain(response)
        return Encoded(prompt, ids + self._plain(self.closing))

    def as_jinja(self) -> str:
        """The template as a chat template in Jinja, for other software: the same text and, with that, the same ids.

        A context is part of the user's message there, after a blank line and, in the dolly template, its key.
        """
        if self.id == "chat":
            own: str = self.tokenizer.chat_template
            return own
        begin = self._ids("")  # what the tokenizer puts before a text by itself
        return _DOLLY_JINJA.replace("BEGIN", self.tokenizer.decode(begin))

    def _ids(self, text: str) -> list[int]:
        # A chat template writes its own begin-of-text token; the dolly template leaves it to the tokenizer.
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.id == "dolly").input_ids
        return ids[:-1] if ids and self.id == "dolly" and ids[-1] == self.tokenizer.eos_token_id else ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


# The same text as _render_dolly's.
_DOLLY_JINJA = (
    "BEGIN{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    + BLURB
    + "{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}{{ '"
    + (BLANK_LINE + INSTRUCTION_KEY + "\n").replace("\n", "\\n")
    + "' + m['content'] | trim }}{% elif m['role'] == 'assistant' %}{{ '"
    + (BLANK_LINE + RESPONSE_KEY + "\n").replace("\n", "\\n")
    + "' + m['content'] | trim + '"
    + (BLANK_LINE + END_KEY).replace("\n", "\\n")
    + "' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '"
    + (BLANK_LINE + RESPONSE_KEY + "\n").replace("\n", "\\n")
    + "' }}{% endif %}"
)


def template(tokenizer: Any, choice: Literal["auto", "dolly", "chat"] = "auto") -> Template:
    """The template of that name for that tokenizer; "auto" is the model's own where it has one.

    Raises:
        ValueError: "chat" for a model without a chat template, or with one whose prompt is no prefix of the whole.
    """
    if choice == "auto":
        choice = "chat" if tokenizer.chat_template else "dolly"
    eos: str = tokenizer.eos_token
    if choice == "dolly":
        closing, stop_strings = BLANK_LINE + END_KEY + eos, (END_KEY, INSTRUCTION_KEY)
        return Template("dolly", tokenizer, closing, stop_strings, frozenset({tokenizer.eos_token_id}))
    if not tokenizer.chat_template:
        raise ValueError("This model has no chat template of its own: set the template to dolly or auto.")
    closing = _chat_closing(tokenizer)
    end_id = tokenizer(closing, add_special_tokens=False).input_ids[-1]
    return Template("chat", tokenizer, closing, (), frozenset({tokenizer.eos_token_id, end_id}))


def defuse(text: str, tokenizer: Any) -> str:
    """`text` with the tokenizer's control tokens broken up, so that what a person or a row says stays text."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, token[0] + "\u200b" + token[1:])
    return text


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Each token's share of the decoded text; the shares make up the whole text.

    A token that ends inside a character has the empty text; the token that completes the character has it all.
    """
    shares: list[str] = []
    start, done = 0, ""  # the window's first token, and the text of what it holds so far
    for at in range(len(ids)):
        whole = tokenizer.decode(ids[start : at + 1], clean_up_tokenization_spaces=False)
        last = at + 1 == len(ids)
        share = "" if whole.endswith("\ufffd") and not last else whole[len(done) :]
        shares.append(share)
        done += share
        alone = tokenizer.decode([ids[at]], clean_up_tokenization_spaces=False) if at - start >= TEXT_WINDOW else ""
        if share and alone and "\ufffd" not in alone:
            start, done = at, alone
    return shares


def _render_dolly(turns: Sequence[Turn], system: str) -> str:
    parts = [system or BLURB]
    for turn in turns:
        parts.append(f"{INSTRUCTION_KEY}\n{turn.instruction.strip()}")
        if turn.context.strip():
            parts.append(f"{CONTEXT_KEY}\n{turn.context.strip()}")
        parts.append(f"{RESPONSE_KEY}\n{(turn.response or '').strip()}")
        if turn.response is not None:
            parts.append(END_KEY)
    return BLANK_LINE.join(parts)


def _render_chat(tokenizer: Any, turns: Sequence[Turn], system: str) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        parts = [part.strip() for part in (turn.instruction, turn.context) if part.strip()]
        messages.append({"role": "user", "content": BLANK_LINE.join(parts)})
        if turn.response is not None:
            messages.append({"role": "assistant", "content": turn.response.strip()})
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _chat_closing(tokenizer: Any) -> str:
    """What the model's own template writes after an answer, up to its first special token."""
    user = [{"role": "user", "content": "Question"}]
    prompt = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": "Answer"}], tokenize=False)
    if not whole.startswith(prompt + "Answer"):
        raise ValueError("This model's chat template can't be continued from its prompt: set the template to dolly.")
    tail = whole[len(prompt) + len("Answer") :]
    ends = [tail.index(token) + len(token) for token in tokenizer.all_special_tokens if token in tail]
    return tail[: min(ends)] if ends else tokenizer.eos_token
