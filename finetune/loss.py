"""Cross-entropy that never holds all logits: the output head is applied to a few supervised positions at a time.

The head is frozen in QLoRA, so only the gradient to the hidden states is needed, and it is computed together with the
loss while a chunk's logits are at hand (the idea of Liger's fused linear cross-entropy, Hsu et al. 2024,
arXiv:2410.10989, in plain torch).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data import IGNORED

CHUNK_LOGITS = 4 * 2**20  # elements of logits held at once: 16 MiB in float32


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over hidden states [tokens, width] and a frozen head [vocabulary, width].

    The products are taken in the head's precision: accelerate hands out hidden states in fp32, whatever they were.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = max(1, CHUNK_LOGITS // weight.shape[0])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            log_p = (hidden[part].to(weight.dtype) @ weight.T).float().log_softmax(-1)  # [rows, vocabulary]
            target = targets[part, None]
            total -= log_p.gather(1, target).sum()
            if gradient is not None:
                p = log_p.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=log_p.dtype))
                gradient[part] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * upstream[0]), None, None


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target in nats, [tokens], without gradients; same chunks as the training loss."""
    rows = max(1, CHUNK_LOGITS // weight.shape[0])
    with torch.no_grad():
        parts = [
            nn.functional.cross_entropy((h @ weight.T).float(), t, reduction="none")
            for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
    return torch.cat(parts) if parts else torch.zeros(0, device=hidden.device)


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) in nats over hidden states [tokens, width]; differentiable in `hidden` alone."""
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return loss


def supervised_hidden(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Final hidden states [tokens, width] that predict a supervised token, and those tokens [tokens].

    Call it within `headless(model)`. `batch` has input_ids and labels [rows, time], and position_ids or attention_mask.
    """
    labels = batch["labels"][:, 1:]
    supervised = labels != IGNORED
    hidden = model(**model_inputs(batch), use_cache=False).logits[:, :-1]
    return hidden[supervised], labels[supervised]


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a collated batch the model's forward takes."""
    return {name: value for name, value in batch.items() if name not in ("labels", "real_tokens")}


@contextmanager
def headless(base: Any) -> Iterator[Tensor]:
    """Within it `base` returns its last hidden states as logits; yields the head's weight [vocabulary, width].

    Going through the model's own forward keeps whatever wraps it (PEFT, autocast, data-parallel) at work.

    Raises:
        ValueError: the model changes its logits after the head (soft cap, scale), which this loss does not know.
    """
    config = base.config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"This model is not supported yet: it changes its logits after the head ({name}).")
    head = base.get_output_embeddings()
    names = [name for name, module in base.named_modules() if module is head]
    assert len(names) == 1, names
    base.set_submodule(names[0], nn.Identity())
    try:
        yield head.weight
    finally:
        base.set_submodule(names[0], head)
