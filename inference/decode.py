"""The batched token loop: all rows in one pass a step, streamed, each with its own end, cancellable between steps."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from finetune.prompt import Template
from inference.captured import Captures, Step
from inference.lora import Placed, placed
from inference.prefix import Prefix
from inference.sampling import Sampler, Sampling

StopReason = Literal["end", "length", "cancelled"]


class Answer(NamedTuple):
    """What a row has said so far; `stop` is None while it goes on.

    Seconds count from the start of the call, without those that a capture took.
    """

    text: str
    tokens: int
    first_token_seconds: float
    seconds: float
    stop: StopReason | None

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first, over the time since the first."""
        return (self.tokens - 1) / max(self.seconds - self.first_token_seconds, 1e-9) if self.tokens > 1 else 0.0


@dataclass
class _Row:
    """One answer in the making."""

    template: Template
    max_new_tokens: int
    started: float
    ids: list[int] = field(default_factory=list)
    first_at: float = 0.0
    last_at: float = 0.0
    paused: float = 0.0  # seconds that no token could come in
    stop: StopReason | None = None
    text: str = ""

    def add(self, token: int) -> None:
        """Take the next token; the text leaves out whatever may still turn out to be the end or half a character."""
        if self.stop is not None:
            return
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at
        self.ids.append(token)
        ended = token in self.template.stop_ids
        text = self.template.tokenizer.decode(self.ids[:-1] if ended else self.ids, skip_special_tokens=True)
        cut = min((at for stop in self.template.stop_strings if (at := text.find(stop)) >= 0), default=-1)
        if ended or cut >= 0:
            self.stop = "end"
            text = text[:cut] if cut >= 0 else text
        elif len(self.ids) >= self.max_new_tokens:
            self.stop = "length"
        self.text = text.strip() if self.stop else _sure(text, self.template.stop_strings)

    def answer(self) -> Answer:
        first = self.first_at - self.started
        seconds = first + max(0.0, self.last_at - self.first_at - self.paused)
        return Answer(self.text, len(self.ids), first, seconds, self.stop)


def _sure(text: str, stop_strings: Sequence[str]) -> str:
    """`text` less its tail that further tokens could still change: half a UTF-8 character, the start of a stop."""
    text = text.rstrip("\ufffd")
    held = max((n for stop in stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held].strip()


@torch.inference_mode()
def decode(
    base: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[Placed],
    sampling: Sampling,
    max_new_tokens: int,
    cancelled: Callable[[], bool] = lambda: False,
    prefix: Prefix | None = None,
    captures: Captures | None = None,
) -> Iterator[list[Answer]]:
    """Answers of all rows after every step, until each has ended.

    Args:
        base: the causal LM.
        template: whose stop rule ends an answer.
        prompts: token ids of each row; they may differ in length (rows are padded on the left).
        adapters: what is on which row.
        sampling: how tokens are chosen.
        max_new_tokens: longest answer.
        cancelled: asked between steps; rows that go on then end as "cancelled".
        prefix: what the last call left, to begin with as far as it fits, and where this call leaves its own.
        captures: the step of the last call, to be used again where it fits; None: nothing is captured.
    """
    started = time.perf_counter()
    device = next(base.parameters()).device
    rows = [_Row(template, max_new_tokens, started) for _ in prompts]
    sampler = Sampler(sampling, device, prompts)
    prefix = prefix or Prefix()
    key = (id(base), tuple((id(adapter), tuple(strengths)) for adapter, strengths in adapters))
    cache, known, mask, rest = prefix.start(base, prompts, key)
    ids, own = pad_left(rest, template.tokenizer.pad_token_id, device)
    known, mask = torch.cat([known, ids], dim=1), torch.cat([mask, own], dim=1)  # [rows, slots]
    with placed(base, adapters) as parts:
        logits, step, whole = Step(base, cache)(ids, mask), None, True
        try:
            while True:
                tokens = sampler.next(logits)
                for row, token in zip(rows, tokens.tolist(), strict=True):
                    row.add(token)
                if cancelled():
                    for row in rows:
                        row.stop = row.stop or "cancelled"
                yield [row.answer() for row in rows]
                if all(row.stop for row in rows):
                    return
                whole = False  # should the next step fail halfway, the cache is not to be trusted
                if step is None:  # a capture takes its time, and the first tokens are not to wait for it
                    step, before = Step(base, cache), time.perf_counter()
                    if captures:
                        step = captures.step(base, cache, mask, max_new_tokens, key, parts)
                    for row in rows:
                        row.paused = time.perf_counter() - before
                ids = tokens[:, None]
                known, mask = torch.cat([known, ids], dim=1), torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                logits = step(ids, mask)
                whole = True
        finally:
            if whole:
                if step:
                    step.give_back()
                prefix.keep(cache, known, mask, key)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, each [rows, longest]."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
