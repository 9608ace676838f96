"""Compiled decoder layers: a third faster on a GPU once a quarter of a minute has gone into compiling them.

One graph serves all layers, since every pack of such a run has one shape (finetune/packing.py, `Fixed`). What has
another shape or mode (validation, slices after memory ran out) runs as it is written.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune.config import Training
from finetune.launch import processes

WORTH_SECONDS = 90.0  # of training without compiling: from about 60 on, what is saved exceeds what compiling takes
EAGER_UTILIZATION = 0.3  # share of the matrix rate that uncompiled layers reach on a large GPU
RECOMPILATIONS = 64  # dynamo counts one for each layer that its guards tell apart


def possible(training: Training) -> bool:
    """Whether layers can be compiled here: packs, on one GPU whose attention kernel takes them."""
    return (
        training.batching == "packed"
        and processes() == 1
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (8, 0)
    )


def worth_it(training: Training, parameters: int, tokens: int, operations_a_second: float) -> bool:
    """Whether a run of `tokens` tokens on so large a model is long enough; operations are the GPU's matrix rate."""
    operations = (6 if training.checkpointing == "on" else 4) * parameters * tokens
    return operations / (EAGER_UTILIZATION * operations_a_second) > WORTH_SECONDS


def compile_layers(adapted: Any) -> None:
    """Have every decoder layer of the model compiled at its first call.

    Checkpointing stays outside what is compiled: within it, the compiler keeps whatever it finds dear to compute again,
    and at 4,096 tokens of a 7B model that was 10 GiB.
    """
    torch._dynamo.config.recompile_limit = max(RECOMPILATIONS, torch._dynamo.config.recompile_limit)
    compiled: dict[type, Any] = {}
    for layer in adapted.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            kind = type(layer)
            if kind not in compiled:
                inner: Any = kind.forward  # wrapped by transformers, which does the checkpointing there
                compiled[kind] = torch.compile(getattr(inner, "__wrapped__", inner), dynamic=False)
            layer.forward = _forward(layer, compiled[kind])


def uncompile_layers(model: Any) -> None:
    """The layers as they were written."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            vars(layer).pop("forward", None)


def _forward(layer: Any, compiled: Any) -> Any:
    def forward(*args: Any, **named: Any) -> Any:
        if layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(partial(compiled, layer, **named), *args)
        return compiled(layer, *args, **named)

    return forward


def as_written() -> AbstractContextManager[None]:
    """Within it compiled layers run uncompiled."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
