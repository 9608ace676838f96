"""What a step is: the same gradients however its examples are split into micro-batches, packed or padded."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_packing import examples
from transformers import TrainerCallback

from finetune.base import add_lora, load_base
from finetune.config import Lora, TrainConfig, with_settings
from finetune.data import Example
from finetune.loss import headless
from finetune.progress import Progress
from finetune.run import Job, Reporter
from finetune.trainer import Data, PackTrainer, arguments

LENGTHS = [[31, 12], [40], [9, 9, 9], [25, 18]]  # of the examples of four micro-batches: unequal supervised counts


class Seen(TrainerCallback):  # type: ignore[misc]
    """The gradients of the first step, as the optimizer gets them."""

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def first_step(source: Any, folder: Path, batches: list[list[Example]], **changed: Any) -> dict[str, torch.Tensor]:
    settings = {"steps": 1, "accumulation": len(batches), "max_grad_norm": 1e9, "tokens_per_batch": 512} | changed
    training = with_settings(TrainConfig(), settings).training
    torch.manual_seed(0)
    base = load_base(source, dtype=torch.float32, trainable=True, packed=training.batching == "packed")
    adapted = add_lora(base, Lora(r=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder.mkdir()
    with headless(base) as head:
        args, progress, seen = arguments(training, 1, folder, 0), Progress(Reporter(Job(folder)), 1), Seen()
        trainer = PackTrainer(adapted, head, Data(batches, []), args, training, 0, progress, folder)
        trainer.add_callback(seen)
        trainer.train()
    return seen.gradients


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_accumulated_gradients_equal_those_of_one_big_batch(
    tiny_source: Any, tmp_path: Path, single_precision: None, batching: str
) -> None:
    drawn = iter(examples(*(length for lengths in LENGTHS for length in lengths)))
    parts = [[next(drawn) for _ in lengths] for lengths in LENGTHS]
    whole = first_step(tiny_source, tmp_path / "whole", [[e for part in parts for e in part]])
    accumulated = first_step(tiny_source, tmp_path / "parts", parts, batching=batching)
    assert whole.keys() == accumulated.keys() and whole
    for name, gradient in whole.items():
        assert torch.allclose(accumulated[name], gradient, atol=1e-4 * gradient.abs().max().item()), name
    # The mean of the micro-batches' own means, which the field long took for it, is another gradient.
    means = [first_step(tiny_source, tmp_path / f"part{n}", [part]) for n, part in enumerate(parts)]
    name = max(whole, key=lambda n: whole[n].norm().item())
    mean = torch.stack([gradients[name] for gradients in means]).mean(0)
    assert not math.isclose((mean - whole[name]).norm() / whole[name].norm(), 0, abs_tol=1e-2)
