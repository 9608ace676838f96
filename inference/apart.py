"""Columns that can't share a batch: a pass a column.

DoRA scales a layer's whole output by the norm of base and adapter together, so its term can't be added to some rows of
a batch. Such a column is answered by the resident base with PEFT's layers in it, which are taken out again after. A
merged model has weights of its own: it is loaded for its pass, in the precision it is computed in, and let go.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from finetune.certificate import load_dense
from finetune.prompt import Template
from inference.columns import Column
from inference.decode import Answer, decode
from inference.lora import read_config
from inference.sampling import Sampling

NOTICE = "A DoRA adapter or a merged model can't share a batch: the columns are answered one after the other."
_WAITING = Answer("", 0, 0.0, 0.0, None)


def is_apart(column: Column) -> bool:
    """Whether the column needs a pass of its own. Raises ValueError if its adapter is not there."""
    if column.model is not None:
        return True
    return column.adapter is not None and bool(column.strength) and bool(read_config(column.adapter).get("use_dora"))


def decode_apart(
    base: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    columns: Sequence[Column],
    sampling: Sampling,
    max_new_tokens: int,
    cancelled: Callable[[], bool],
) -> Iterator[list[Answer]]:
    """As `decode`, a column after the other; each draws the same noise. Seconds count from a column's own start.

    Raises:
        ValueError: an adapter does not fit, or is to be applied at a strength between.
    """
    answers = [_WAITING] * len(columns)
    for row, column in enumerate(columns):
        if cancelled():
            answers = [a if a.stop else a._replace(stop="cancelled") for a in answers]
            yield answers
            return
        with its_model(base, column) as model:
            for (answer,) in decode(model, template, [prompts[row]], [], sampling, max_new_tokens, cancelled):
                answers = [*answers[:row], answer, *answers[row + 1 :]]
                yield answers


@contextmanager
def its_model(base: Any, column: Column) -> Iterator[Any]:
    """The model that answers for a column alone: a merged one, or `base` with the adapter on it."""
    if column.model is not None:
        loaded = load_dense(column.model)
        try:
            yield loaded
        finally:
            del loaded
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    else:
        with through_peft(base, column):
            yield base


@contextmanager
def through_peft(base: Any, column: Column) -> Iterator[None]:
    """Within it `base` answers with the column's adapter on every row; after it, it is the bare base again."""
    if column.adapter is None or not column.strength:
        yield
        return
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale

    if column.strength != 1 and is_apart(column):
        raise ValueError(f"The adapter in {column.adapter} is DoRA, which has no strength between: ask for 0 or 1.")
    try:
        adapted = PeftModel.from_pretrained(base, column.adapter)
    except Exception as error:  # PEFT and safetensors have no common class for a broken adapter
        _take_out(base)
        raise ValueError(f"The adapter in {column.adapter} can't be put on this base: {error}.") from error
    try:
        with rescale_adapter_scale(adapted.eval(), column.strength):
            yield
    finally:
        adapted.unload()
        _forget(base)


def _take_out(base: Any) -> None:
    """Undo a placement that failed halfway."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            base.set_submodule(name, module.get_base_layer())
    _forget(base)


def _forget(base: Any) -> None:
    """PEFT notes on the base that it was there, and would warn of a second adapter next time."""
    if hasattr(base, "peft_config"):
        del base.peft_config
