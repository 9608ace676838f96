"""Response-only negative log-likelihood: how surprised each column is by the reference answers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from finetune.data import IGNORED, Example
from finetune.loss import headless, supervised_hidden, token_losses
from inference.lora import Placed, placed


class Likelihood(NamedTuple):
    """Sum of -log p over an example's response tokens in nats, and how many those are."""

    nll: float
    tokens: int


@torch.inference_mode()
def response_nll(
    base: Any,
    examples: Sequence[Example],
    columns: int,
    place: Callable[[int], Sequence[Placed]],
    pad_id: int,
    on_batch: Callable[[int], None] = lambda done: None,
    cancelled: Callable[[], bool] = lambda: False,
    batch_tokens: int = 4096,
) -> list[list[Likelihood]]:
    """One Likelihood an example and column, [examples][columns]: all columns of an example in the same batch.

    Args:
        base: the causal LM.
        examples: encoded rows.
        columns: how many columns.
        place: adapters on a batch of that many examples, each repeated for every column in turn.
        pad_id: what fills up short rows, on the right; never a target, and no real token sees it.
        on_batch: told how many examples are done.
        cancelled: asked between batches; the examples done by then are returned.
        batch_tokens: padded tokens in a batch at most, all columns together (one example always fits).
    """
    results: dict[int, list[Likelihood]] = {}
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    with headless(base) as head:
        while order and not cancelled():
            longest = len(examples[order[0]].ids)
            size = max(1, batch_tokens // (longest * columns))
            chosen, order = order[:size], order[size:]
            batch = _batch([examples[i] for i in chosen for _ in range(columns)], pad_id, head.device)
            with placed(base, place(len(chosen))):
                hidden, targets = supervised_hidden(base, batch)
            losses = token_losses(hidden, head, targets)
            per_row = losses.split((batch["labels"][:, 1:] != IGNORED).sum(1).tolist())
            rows = [Likelihood(part.double().sum().item(), len(part)) for part in per_row]
            for at, i in enumerate(chosen):
                results[i] = rows[at * columns : (at + 1) * columns]
            on_batch(len(results))
    return [results[i] for i in range(len(examples)) if i in results]


def _batch(examples: Sequence[Example], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """input_ids, labels and attention_mask, each [rows, longest], padded on the right."""
    longest = max(len(e.ids) for e in examples)

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (longest - len(values))

    return {
        "input_ids": torch.tensor([padded(e.ids, pad_id) for e in examples], device=device),
        "labels": torch.tensor([padded([IGNORED, *e.labels[1:]], IGNORED) for e in examples], device=device),
        "attention_mask": torch.tensor([padded([1] * len(e.ids), 0) for e in examples], device=device),
    }
