"""Ollama's Modelfile for a merged model, its template derived from the chat template and checked against it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from finetune import certificate

SYSTEM, USER, ANSWER, AGAIN = "\u0001s\u0001", "\u0001u\u0001", "\u0001a\u0001", "\u0001v\u0001"  # in no template


class Pieces(NamedTuple):
    """What a chat template writes around a conversation's parts."""

    without_system: str
    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]
    """Its start is also what stands before an answer that is still to come."""

    def render(self, turns: list[tuple[str, str | None]], system: str = "") -> str:
        """A conversation of (question, answer) as the template writes it; the last answer is None."""
        text = self.system[0] + system + self.system[1] if system else self.without_system
        for question, answer in turns:
            text += self.user[0] + question + self.user[1] + self.answer[0]
            text += "" if answer is None else answer + self.answer[1]
        return text


def pieces(tokenizer: Any) -> Pieces:
    """The pieces of a tokenizer's chat template, by rendering marks in place of text.

    Raises:
        ValueError: it is more than pieces around parts.
    """

    def render(*contents: tuple[str, str], ask: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in contents]
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        return text

    one, two = ("user", USER), ("assistant", ANSWER)
    after_user = render(one).split(USER)[1]
    before_answer = render(one, ask=True).split(USER)[1].removeprefix(after_user)
    after_answer = render(one, two).split(ANSWER)[1]
    whole = render(one, two, ("user", AGAIN), ask=True)
    before_user = whole.split(ANSWER)[1].split(AGAIN)[0].removeprefix(after_answer)
    start = whole.split(USER)[0].removesuffix(before_user)
    with_system = render(("system", SYSTEM), one, ask=True)
    before, _, after = with_system.split(USER)[0].partition(SYSTEM)
    found = Pieces(
        without_system=start,
        system=(before, after.removesuffix(before_user)),
        user=(before_user, after_user),
        answer=(before_answer, after_answer),
    )
    if found.render([(USER, ANSWER), (AGAIN, None)]) != whole or found.render([(USER, None)], SYSTEM) != with_system:
        raise ValueError("This model's chat template can't be written as an Ollama template: use the GGUF file alone.")
    return found


def modelfile(folder: Path, gguf_name: str) -> str:
    """Ollama's Modelfile for a merged model: template, what ends an answer, greedy sampling.

    https://github.com/ollama/ollama/blob/main/docs/modelfile.md
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = pieces(tokenizer)
    if any(mark in piece for piece in _flat(found) for mark in ("{{", '"""')):
        raise ValueError("This model's chat template can't be written as an Ollama template: use the GGUF file alone.")
    begin = tokenizer.decode(tokenizer("").input_ids)  # Ollama puts it there by itself
    start, system = found.without_system.removeprefix(begin), found.system[0].removeprefix(begin)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    stops = [*(tokenizer.decode([end]) for end in ends), *(_stop_strings(folder))]
    chosen = (
        f"{{{{ if .System }}}}{system}{{{{ .System }}}}{found.system[1]}{{{{ else }}}}{start}{{{{ end }}}}"
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{found.user[0]}{{{{ .Content }}}}{found.user[1]}'
        f'{{{{ else if eq .Role "assistant" }}}}{found.answer[0]}{{{{ .Content }}}}{found.answer[1]}{{{{ end }}}}'
        f"{{{{ end }}}}{found.answer[0]}"
    )
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{chosen}"""', "PARAMETER temperature 0"]
    return "\n".join([*lines, *(f"PARAMETER stop {json.dumps(stop)}" for stop in stops)]) + "\n"


def _stop_strings(folder: Path) -> list[str]:
    """Strings that end an answer, as the certificate's run had them."""
    return certificate.read(folder).stop_strings


def _flat(found: Pieces) -> list[str]:
    return [found.without_system, *found.system, *found.user, *found.answer]
