"""Response-only negative log-likelihood: how surprised each column is by the reference answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from evaluation.batches import Batched, Hooks, Item, run_batched
from evaluation.cache import Cache, Value, ids_key
from evaluation.columns import Side, strengths
from finetune.data import IGNORED, Example
from finetune.loss import headless, supervised_hidden, token_losses
from inference.lora import Placed, placed

BATCH_TOKENS = 4096  # padded, all columns together; halved where memory runs out


class Likelihood(NamedTuple):
    """Sum of -log p over an example's response tokens in nats, and how many those are."""

    nll: float
    tokens: int


def response_nll(
    base: Any,
    examples: Sequence[Example],
    sides: Sequence[Side],
    pad_id: int,
    caches: Sequence[Cache] | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - a constant
    batch_tokens: int = BATCH_TOKENS,
) -> Batched:
    """A likelihood an example and column, as `Likelihood`'s fields: all columns of an example in the same batch.

    Logits are never gathered: the head is applied to a few positions at a time.

    Args:
        base: the causal LM.
        examples: encoded rows.
        sides: the columns.
        pad_id: what fills up short rows, on the right; never a target, and no real token sees it.
        caches: one a column, or None.
        hooks: see `Hooks`.
        batch_tokens: padded tokens in a batch at most, all columns together (one row always fits).

    Raises:
        ValueError: a single row is too much for the memory, or the model changes its logits after the head.
    """
    lengths = [len(example.ids) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: -lengths[i])
    keys = [ids_key(e.ids[: e.prompt_length], e.ids[e.prompt_length :]) for e in examples]
    with headless(base) as head:

        @torch.inference_mode()
        def work(items: list[Item]) -> list[Value | None]:
            batch = _batch([examples[item.example] for item in items], pad_id, head.device)
            with placed(base, [Placed(*pair) for pair in strengths([sides[item.column] for item in items])]):
                hidden, targets = supervised_hidden(base, batch)
            losses = token_losses(hidden, head, targets)
            per_row = losses.split((batch["labels"][:, 1:] != IGNORED).sum(1).tolist())
            return [Likelihood(part.double().sum().item(), len(part))._asdict() for part in per_row]

        return run_batched(order, lengths, len(sides), batch_tokens, work, caches, keys, hooks)


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
