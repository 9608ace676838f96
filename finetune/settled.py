"""Settings that a run settles for itself: what "auto" means for its base, its rows and its device."""

from typing import Any

from finetune import compiling, model, pilot
from finetune.base import compute_dtype, parameter_report
from finetune.config import TrainConfig, Training, with_settings
from finetune.memory import needs_checkpointing


def with_checkpointing_settled(config: TrainConfig, source: model.Source) -> TrainConfig:
    """What checkpointing "auto" means: on only where the run does not fit without."""
    if config.training.checkpointing != "auto":
        return config
    return with_settings(config, {"checkpointing": "on" if needs_checkpointing(config, source) else "off"})


def with_compiling_settled(training: Training, adapted: Any, batches: int) -> Training:
    """What compile "auto" means for so many micro-batches; where it is on, the layers are made ready for it."""
    on = training.compile != "off" and compiling.possible(training)
    if on and training.compile == "auto":
        rate = pilot.matrix_rate(compute_dtype())
        parameters = parameter_report(adapted)["total_parameters"]
        on = compiling.worth_it(training, parameters, batches * training.tokens_per_batch, rate)
    if on:
        compiling.compile_layers(adapted)
    return training.model_copy(update={"compile": "on" if on else "off"})
