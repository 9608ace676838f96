"""python -m finetune plan: a run's data, the memory that it will need, and how long it will take."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune import datareport, memory, model
from finetune.config import TrainConfig, with_settings
from finetune.shapes import Shapes, read_shapes

if TYPE_CHECKING:
    from finetune.train import Prepared

PARTS = {
    "runtime": "Python and its libraries",
    "base": "base, NF4",
    "loading": "weight files while they are read",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "working": "working space",
    "fragmentation": "lost in the allocator",
}


@dataclass(frozen=True)
class Work:
    """What there is to compute, in tokens with padding left out."""

    steps: int
    train_tokens: float
    """Over all steps."""
    validation_tokens: int
    """In one look at the validation loss."""
    looks: int
    """At the validation loss, the one before the first step included."""
    samples: int
    """Sets of sample answers; the first of them is the base's."""
    saves: int
    """Checkpoints."""


@dataclass(frozen=True)
class Time:
    """How long a run will take, and how that is known."""

    method: Literal["pilot", "matrix rate", "limit"]
    """Measured steps; only a lower bound from the speed of a matrix product; or the run's own limit."""
    steps: int
    seconds_per_step: float
    preparing_seconds: float
    training_seconds: float
    validation_seconds: float
    other_seconds: float
    """Checkpoints and sample answers; the pilot alone knows."""

    @property
    def seconds(self) -> float:
        return self.preparing_seconds + self.training_seconds + self.validation_seconds + self.other_seconds


@dataclass(frozen=True)
class RunPlan:
    """The whole answer."""

    data: datareport.DataReport
    memory: memory.Plan
    time: Time

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes and seconds."""
        return {
            "data": self.data.model_dump(),
            "memory": self.memory.as_dict(),
            "time": asdict(self.time) | {"seconds": self.time.seconds},
        }


def make(config: TrainConfig, pilot: bool = False, say: model.Say = print) -> RunPlan:
    """The plan of a run. The weights are loaded only for the pilot, and only where memory suffices.

    Args:
        config: what the run is asked to do.
        pilot: whether to measure steps on the run's own batches.
        say: gets a progress line now and then.
    Raises:
        ValueError: what the run itself would raise about its model or data; a pilot that does not fit.
    """
    source = model.fetch(config.model, config.revision, say)
    started = time.perf_counter()
    from finetune.base import compute_dtype, context_limit, load_tokenizer
    from finetune.train import prepare

    shapes = read_shapes(source)
    need = memory.plan(config, shapes, compute_dtype(), memory.device())
    config = with_settings(config, {"checkpointing": "on" if need.checkpointing else "off"})
    tokenizer, limit = load_tokenizer(source), context_limit(source)
    prepared = prepare(config, tokenizer, limit)
    preparing = time.perf_counter() - started
    work = work_of(config, prepared)
    if not pilot:
        cost = _rough(config, shapes, work, preparing)
    elif need.fits:
        say("Measuring a few steps")
        cost = _measured(config, source, tokenizer, prepared, work, preparing)
    else:
        raise ValueError(f"The pilot was not started. {need.sentence}")
    return RunPlan(datareport.report(config, tokenizer, limit), need, cost)


def work_of(config: TrainConfig, prepared: "Prepared") -> Work:
    """Steps and tokens of a run, as its trainer counts them."""
    training = config.training
    micro_batches = len(_batches(config, prepared))
    steps = training.steps or max(1, round((training.epochs or 1) * micro_batches / training.accumulation))
    a_batch = sum(len(e.ids) for e in prepared.train) / micro_batches
    validation = sum(len(e.ids) for e in prepared.validation)
    return Work(
        steps=steps,
        train_tokens=steps * training.accumulation * a_batch,
        validation_tokens=validation,
        looks=1 + -(-steps // training.validate_every_steps) if validation else 0,
        samples=1 + steps // training.sample_every_steps if validation and training.sample_every_steps else 0,
        saves=-(-steps // training.save_every_steps),
    )


def _batches(config: TrainConfig, prepared: "Prepared") -> Any:
    from finetune.packing import group, pack

    make_batches = pack if config.training.batching == "packed" else group
    return make_batches(prepared.train, config.training.tokens_per_batch, config.seed)


def _measured(
    config: TrainConfig, source: model.Source, tokenizer: Any, prepared: "Prepared", work: Work, preparing: float
) -> Time:
    """Load the base, take the first steps of this run, and extrapolate by tokens."""
    from finetune.rehearsal import rehearse
    from finetune.train import loaded

    started = time.perf_counter()
    with loaded(config, source, tokenizer) as ready:
        preparing += time.perf_counter() - started
        pace = rehearse(config, ready, prepared)
    training = work.train_tokens / pace.train
    return _within_limit(
        config,
        Time(
            method="pilot",
            steps=work.steps,
            seconds_per_step=training / work.steps,
            preparing_seconds=preparing,
            training_seconds=training + pace.warm_up,
            validation_seconds=work.looks * work.validation_tokens / pace.validation,
            other_seconds=work.saves * pace.save + work.samples * pace.sample,
        ),
    )


def _rough(config: TrainConfig, shapes: Shapes, work: Work, preparing: float) -> Time:
    """No less than this: products alone, at the speed of a large one on this machine.

    A token takes 2 N operations forward and 2 N for the gradient of its activations, N weights in matrices (the frozen
    weights need no gradient); 2 N more where activations are computed again.
    """
    from finetune.base import compute_dtype
    from finetune.pilot import matrix_rate

    weights = sum(linear.parameters for linear in shapes.linear) + shapes.vocabulary * shapes.width
    operations = (6 if config.training.checkpointing == "on" else 4) * weights
    rate = matrix_rate(compute_dtype())
    training = work.train_tokens * operations / rate
    validation = work.looks * work.validation_tokens * 2 * weights / rate
    cost = Time("matrix rate", work.steps, training / work.steps, preparing, training, validation, 0.0)
    return _within_limit(config, cost)


def _within_limit(config: TrainConfig, cost: Time) -> Time:
    """A run with a limit in minutes sets its own steps and takes that long."""
    minutes = config.training.minutes
    if minutes is None:
        return cost
    left = max(0.0, 60 * minutes - cost.preparing_seconds)
    steps = max(1, round(left / cost.seconds_per_step))
    return Time("limit", steps, cost.seconds_per_step, 60 * minutes - left, left, 0.0, 0.0)


def text(plan: RunPlan) -> str:
    """The plan for a terminal."""
    return "\n".join([datareport.text(plan.data), "", *_memory_lines(plan.memory), "", _time_line(plan.time)])


def _memory_lines(plan: memory.Plan) -> list[str]:
    parts = {name: size for name, size in asdict(plan.need).items() if size}
    if plan.need.loading > plan.need.training:
        note = "memory is fullest while the weights are read"
    else:
        parts.pop("loading", None)
        note = "memory is fullest while training"
    lines = [f"  {PARTS[name]:34} {memory.gib(size):>10}" for name, size in parts.items()]
    return [f"Memory, predicted ({note})", *lines, f"  {plan.sentence}"]


def _time_line(cost: Time) -> str:
    per_step = f"{cost.steps} steps of {cost.seconds_per_step:.2f} s"
    if cost.method == "pilot":
        rest = (
            f"{duration(cost.validation_seconds)} for the validation loss, {duration(cost.other_seconds)} for "
            f"checkpoints and sample answers, {duration(cost.preparing_seconds)} to start"
        )
        return f"Time, measured on this run's own batches: {duration(cost.seconds)} ({per_step}, {rest})."
    if cost.method == "limit":
        return f"Time: its limit of {duration(cost.seconds)}; the run's own pilot sets the steps."
    return (
        f"Time, a rough estimate from this machine's matrix rate: no less than {duration(cost.seconds)} ({per_step}), "
        "often two or three times that. --pilot measures it."
    )


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
