"""The Trainer callback that writes what run.py reads: status, metrics, and a progress bar for a terminal."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.monitor import sample
from finetune.run import Reporter

WINDOW = 8  # steps over which speed is averaged


class Diverged(ValueError):
    """The loss is NaN, infinite, or far above where it began."""


class Progress(TrainerCallback):
    """Reports each step, and turns a stop request or a spent time budget into the Trainer's own orderly stop."""

    def __init__(
        self,
        reporter: Reporter,
        max_steps: int,
        deadline: float | None = None,
        peak_tokens_per_second: float | None = None,
    ) -> None:
        """
        Args:
            reporter: of the run.
            max_steps: for the progress bar.
            deadline: `time.time()` at which training ends, whatever the steps.
            peak_tokens_per_second: what the hardware's matrix rate would allow, for the utilization (MFU).
        """
        self.reporter = reporter
        self.tokens = 0  # real tokens seen
        self.deadline, self.peak = deadline, peak_tokens_per_second
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=WINDOW + 1)  # (time, step, tokens)
        self._bar = tqdm(total=max_steps, unit="step", desc="train", disable=not sys.stderr.isatty())

    def count(self, batch: dict[str, Any]) -> None:
        """Note a micro-batch's tokens, padding left out."""
        self.tokens += int(batch["real_tokens"] if "real_tokens" in batch else batch["attention_mask"].sum())

    def say(self, text: str) -> None:
        """A line for people: in the status, and in run.log."""
        self.reporter.status(message=text)
        tqdm.write(text, file=sys.stderr)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seen = [event["tokens"] for event in self.reporter.job.metrics()[0] if "tokens" in event]
        self.tokens = seen[-1] if seen else 0  # of the steps before a resumption
        self.restart_clock(state.global_step)
        self.reporter.status(state="running", message="training", step=state.global_step, max_steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._marks.append((time.perf_counter(), state.global_step, self.tokens))
        (then, step, tokens), (now, last_step, last_tokens) = self._marks[0], self._marks[-1]
        seconds = max(now - then, 1e-9)
        speed = (last_tokens - tokens) / seconds
        self.reporter.status(
            step=state.global_step,
            tokens_per_second=speed,
            eta_seconds=seconds / max(last_step - step, 1) * (state.max_steps - state.global_step),
            **({"mfu": speed / self.peak} if self.peak else {}),
        )
        self._bar.update(state.global_step - self._bar.n)
        asked = self.reporter.job.stop_requested()
        late = self.deadline is not None and time.time() > self.deadline
        if any_process(asked or late):
            control.should_training_stop = control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if "loss" in logs:
            self.reporter.metric(
                step=state.global_step,
                loss=_number(logs["loss"]),
                learning_rate=logs["learning_rate"],
                grad_norm=_number(float(logs["grad_norm"])),
                tokens=self.tokens,
                **sample(),
            )
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            self._tell(f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}")
            if not math.isfinite(logs["loss"]):
                raise Diverged(f"The loss became {logs['loss']} at step {state.global_step}")
        if "eval_loss" in logs:
            self.reporter.metric(step=state.global_step, validation_loss=_number(logs["eval_loss"]))
            self.restart_clock(state.global_step)
            self._tell(f"step {state.global_step}/{state.max_steps}  validation loss {logs['eval_loss']:.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.close()

    def _tell(self, text: str) -> None:
        """A line for run.log; a terminal has the bar."""
        if self._bar.disable:
            print(text, file=sys.stderr, flush=True)

    def restart_clock(self, step: int) -> None:
        """What came since the last step (validation, sample answers) is no part of the training speed."""
        self._marks.clear()
        self._marks.append((time.perf_counter(), step, self.tokens))


class AfterFirstStep(TrainerCallback):
    """Calls `then` once a step is done: the run has taken its memory by then."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.then()


def _number(value: float) -> float | None:
    """JSON has no NaN: None stands for it."""
    return value if math.isfinite(value) else None


def any_process(flag: bool) -> bool:
    """Whether any process of a data-parallel run wants it: they must all stop at the same step."""
    if not torch.distributed.is_initialized():
        return flag
    agreed = torch.tensor(float(flag), device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
    return bool(agreed.item())
