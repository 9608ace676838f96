"""A short measured pilot: how fast is this machine on these rows, and what fits into the time there is?"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.config import TrainConfig, with_settings
from finetune.data import Example
from finetune.loss import summed_loss, supervised_hidden
from finetune.packing import Batch, collate_packed, pack
from finetune.trainer import out_of_memory

TRIALS = 2  # measured micro-batches a budget, after one to warm up
RESERVE = 0.08  # share of the time kept for saving and for what the pilot did not see
MAX_EPOCHS = 3.0  # more passes than this over few rows teach a small model to recite


class Speed(NamedTuple):
    """Real tokens a second of training, and of looking at the validation loss."""

    train: float
    validation: float


def measure(
    adapted: Any,
    head: Tensor,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    collate: Callable[[Sequence[Batch]], dict[str, Any]] = collate_packed,
) -> Speed:
    """Forward and backward over the first few micro-batches; the weights stay as they are."""
    device = head.device.type
    train, validation = [], []
    adapted.train()
    for number, batch in enumerate(batches[: TRIALS + 1]):
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in collate([batch]).items()}
        started = _now()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            hidden, targets = supervised_hidden(adapted, inputs)
            loss = summed_loss(hidden, head, targets)
        half_way = _now()
        loss.backward()
        ended = _now()
        adapted.zero_grad()
        if number or len(batches) == 1:
            tokens = sum(len(e.ids) for e in batch)
            train.append(tokens / (ended - started))
            validation.append(tokens / (half_way - started))
    return Speed(median(train), median(validation))


def fit_to_time(
    config: TrainConfig,
    adapted: Any,
    head: Tensor,
    examples: Sequence[Example],
    validation_tokens: int,
    deadline: float,
    dtype: torch.dtype,
) -> TrainConfig:
    """`config` with budget, rows, steps and schedule set so that the run ends by `deadline` (`time.time()`).

    The budget is the faster of the given one and its double, as measured. Rows are as many as there is time to see;
    where time is left, they are seen up to three times. The rate falls along a cosine to the end.
    """
    budget, speed = _best_budget(config, adapted, head, examples, dtype)
    training = config.training
    looks = 4
    left = (deadline - time.time()) * (1 - RESERVE) - (looks + 1) * validation_tokens / speed.validation
    tokens = sum(len(e.ids) for e in examples)
    seen = min(max(left, 0) * speed.train, MAX_EPOCHS * tokens)
    steps = max(1, int(seen / (budget * training.accumulation)))
    rows = min(len(examples), max(1, round(len(examples) * steps * budget * training.accumulation / tokens)))
    return with_settings(
        config,
        {
            "tokens_per_batch": budget,
            "rows": rows,
            "steps": steps,
            "schedule": "cosine",
            "warmup_steps": max(1, steps // 20),
            "validate_every_steps": max(1, steps // looks),
            "save_every_steps": max(1, steps // looks),
        },
    )


def _best_budget(
    config: TrainConfig, adapted: Any, head: Tensor, examples: Sequence[Example], dtype: torch.dtype
) -> tuple[int, Speed]:
    given = config.training.tokens_per_batch
    speeds: dict[int, Speed] = {}
    for budget in (given, 2 * given):
        try:
            speeds[budget] = measure(adapted, head, pack(examples, budget, config.seed), dtype)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not speeds or not out_of_memory(error):
                raise
    best = max(speeds, key=lambda budget: speeds[budget].train)
    return best, speeds[best]


def matrix_rate(dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Operations a second of a large matrix product here, in `dtype`: what utilization is measured against."""
    where, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    a = torch.randn(size, size, device=where, dtype=dtype)
    _ = a @ a  # the first one also sets things up
    count, started = 0, _now()
    while _now() - started < seconds:
        _ = a @ a
        count += 1
    return count * 2 * size**3 / (_now() - started)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
