"""The lens: one text under several columns, token by token; and each answer under each model.

All columns are rows of one pass. The output head is applied to a few positions at a time, so a text of 4,096 tokens
never holds all its logits.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.loss import CHUNK_LOGITS, headless
from finetune.prompt import Template
from inference.lora import Placed, placed


class Lens(NamedTuple):
    """A text of T tokens under C columns; the first one is what the others are compared with.

    Attributes:
        ids: the text's tokens, [T].
        log_p: log-probability of each token in nats, [C][T].
        kl: KL(first‖column) of the next-token distributions at each position in nats, [C][T]; 0 for the first.
        divergence: where a column's likeliest token first differs from the first column's; None where it never does.
        texts: each token's share of the text, where someone with a tokenizer has filled it in.
    """

    ids: list[int]
    log_p: list[list[float]]
    kl: list[list[float]]
    divergence: list[int | None]
    texts: Sequence[str] = ()


class Score(NamedTuple):
    """Sum of log p over an answer's tokens in nats, and how many they are."""

    log_p: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.log_p / max(self.tokens, 1)


@torch.inference_mode()
def look(
    base: Any,
    prompt: Sequence[int],
    text: Sequence[int],
    adapters: Sequence[Placed],
    columns: int,
    chunk_logits: int = CHUNK_LOGITS,
) -> Lens:
    """Each token of `text` after `prompt` under every column.

    KL(p‖q) = Σ p (log p − log q) over the vocabulary (Kullback & Leibler 1951).

    Args:
        base: the causal LM.
        prompt, text: token ids; the prompt has one at least.
        adapters: what is on which row; a row is a column.
        columns: how many.
        chunk_logits: elements of logits held at once, all columns together (one position always fits).

    Raises:
        ValueError: there is no text, or the model changes its logits after the head.
    """
    if not prompt or not text:
        raise ValueError("The lens needs a prompt and a text after it.")
    log_p: list[Tensor] = []
    kl: list[Tensor] = []
    top: list[Tensor] = []
    for logits, targets in _logits(base, prompt, text, adapters, columns, chunk_logits):
        log_q = logits.float().log_softmax(-1)  # [columns, positions, vocabulary]
        log_p.append(log_q.gather(2, targets.expand(columns, -1)[..., None])[..., 0])
        kl.append(torch.stack([(log_q[0].exp() * (log_q[0] - other)).sum(-1).clamp(min=0) for other in log_q]))
        top.append(log_q.argmax(-1))
    differs = torch.cat(top, 1) != torch.cat(top, 1)[:1]
    firsts = [row.nonzero()[0].item() if row.any() else None for row in differs]
    return Lens(
        list(text),
        torch.cat(log_p, 1).tolist(),
        torch.cat(kl, 1).tolist(),
        [None if first is None else int(first) for first in firsts],
    )


def cross(
    base: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    adapters: Sequence[Placed],
    columns: int,
) -> list[list[Score]]:
    """Each answer to its prompt under each column, [answers][columns]: with two columns and their answers, the 2×2.

    An answer without tokens scores 0 over 0 tokens.
    """
    table = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer:
            rows = look(base, prompt, answer, adapters, columns).log_p
            table.append([Score(sum(row), len(row)) for row in rows])
        else:
            table.append([Score(0.0, 0)] * columns)
    return table


def answer_ids(chosen: Template, text: str) -> list[int]:
    """Token ids of an answer to be looked at."""
    ids: list[int] = chosen.tokenizer(text.strip(), add_special_tokens=False).input_ids
    return ids


def _logits(
    base: Any, prompt: Sequence[int], text: Sequence[int], adapters: Sequence[Placed], columns: int, chunk_logits: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [columns, positions, vocabulary] that predict the text, a few positions at a time, with their tokens."""
    device = next(base.parameters()).device
    ids = torch.tensor([[*prompt, *text]] * columns, device=device)
    with headless(base) as head:
        with placed(base, adapters):
            hidden = base(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1]  # [columns, T, width]
        positions = max(1, chunk_logits // (columns * head.shape[0]))
        for part, targets in zip(hidden.split(positions, 1), ids[:1, len(prompt) :].split(positions, 1), strict=True):
            yield part @ head.T, targets
