"""The first steps of a run, taken for the sake of their time: what `plan --pilot` measures.

It is the run's own trainer on the run's own batches, in a folder that is thrown away: optimizer, clipping, checkpoints
and sample answers cost here what they will cost there.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from finetune.config import TrainConfig, with_settings
from finetune.run import Reporter, Run
from finetune.train import Loaded, Prepared, attach_samples, make_trainer
from finetune.trainer import PackTrainer

MEASURED = 2  # steps, after one to warm up; and as many micro-batches of the validation rows


class Pace(NamedTuple):
    """How fast this machine is at each thing that a run does."""

    train: float
    """Real tokens a second, the optimizer's step included."""
    warm_up: float
    """Seconds that the first step takes beyond that."""
    validation: float
    """Real tokens a second of a look at the validation loss; infinite where there are no validation rows."""
    save: float
    """Seconds of a checkpoint."""
    sample: float
    """Seconds of a set of sample answers; 0 where the run asks for none."""


class _Clock(TrainerCallback):
    """When each step began and ended, and how many tokens had been seen by then."""

    def __init__(self, trainer: PackTrainer) -> None:
        self.trainer = trainer
        self.steps: list[tuple[float, int]] = []  # (seconds, tokens)
        self._began = (0.0, 0)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = (_now(), self.trainer.progress.tokens)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        began, tokens = self._began
        self.steps.append((_now() - began, self.trainer.progress.tokens - tokens))


def rehearse(config: TrainConfig, ready: Loaded, prepared: Prepared) -> Pace:
    """Three steps, a checkpoint, a part of the validation rows and one set of sample answers. The adapter changes.

    Raises:
        ValueError: what the run itself would raise.
    """
    changed: dict[str, Any] = {"keep_best": False, "evaluate_every_steps": 0, "minutes": None}
    if config.training.steps is None and config.training.epochs is None:  # a time alone ends it, and steps are wanted
        changed["epochs"] = 1
    config = with_settings(config, changed)
    with tempfile.TemporaryDirectory(prefix="tandem-pilot-") as folder:
        run = Run(Path(folder))
        trainer = make_trainer(run, config, ready, prepared, Reporter(run), time.time())
        steps = min(trainer.args.max_steps, 1 + MEASURED)
        _shorten(trainer.args, steps)
        clock = _Clock(trainer)
        trainer.add_callback(clock)
        trainer.train()
        train, warm_up = _pace(clock.steps)
        started = _now()
        trainer._save_checkpoint(trainer.model, None)
        save = _now() - started
        validation = _validation_pace(trainer)
        looker = attach_samples(trainer, config, ready, prepared)
        started = _now()
        if looker:
            looker.answers()
        return Pace(train, warm_up, validation, save, _now() - started)


def _shorten(args: TrainingArguments, steps: int) -> None:
    args.max_steps = steps
    args.eval_strategy = args.save_strategy = IntervalStrategy.NO


def _pace(steps: list[tuple[float, int]]) -> tuple[float, float]:
    """Tokens a second without the first step, and what that took longer; steps are (seconds, tokens)."""
    measured = steps[1:] or steps
    rate = sum(tokens for _, tokens in measured) / sum(seconds for seconds, _ in measured)
    return rate, max(0.0, steps[0][0] - steps[0][1] / rate)


def _validation_pace(trainer: PackTrainer) -> float:
    if not trainer.eval_dataset:
        return float("inf")
    trainer.eval_dataset = trainer.eval_dataset[:MEASURED]
    started = _now()
    trainer.evaluate()
    return sum(len(example.ids) for batch in trainer.eval_dataset for example in batch) / (_now() - started)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
