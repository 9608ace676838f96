"""The Trainer callback that writes what run.py reads: status, metrics, and a progress bar for a terminal."""

import sys
import time
from collections import deque
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.run import Reporter

WINDOW = 8  # steps over which speed is averaged


class Progress(TrainerCallback):
    """Reports each step, and turns a stop request into the Trainer's own orderly stop."""

    def __init__(self, reporter: Reporter, max_steps: int) -> None:
        self.reporter = reporter
        self.tokens = 0  # real tokens seen; the trainer adds to it
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=WINDOW + 1)  # (time, step, tokens)
        self._bar = tqdm(total=max_steps, unit="step", desc="train", disable=not sys.stderr.isatty())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._marks.append((time.perf_counter(), 0, 0))
        self.reporter.status(state="running", message="training", step=0, max_steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._marks.append((time.perf_counter(), state.global_step, self.tokens))
        (then, step, tokens), (now, last_step, last_tokens) = self._marks[0], self._marks[-1]
        seconds = max(now - then, 1e-9)
        self.reporter.status(
            step=state.global_step,
            tokens_per_second=(last_tokens - tokens) / seconds,
            eta_seconds=seconds / max(last_step - step, 1) * (state.max_steps - state.global_step),
        )
        self._bar.update(state.global_step - self._bar.n)
        if self.reporter.job.stop_requested():
            control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if "loss" in logs:
            self.reporter.metric(
                step=state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=float(logs["grad_norm"]),
                tokens=self.tokens,
                memory_bytes=memory_in_use(),
            )
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            self._tell(f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}")
        if "eval_loss" in logs:
            self.reporter.metric(step=state.global_step, validation_loss=logs["eval_loss"])
            self._restart_clock(state.global_step)
            self._tell(f"step {state.global_step}/{state.max_steps}  validation loss {logs['eval_loss']:.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.close()

    def _tell(self, text: str) -> None:
        """A line for run.log; a terminal has the bar."""
        if self._bar.disable:
            print(text, file=sys.stderr, flush=True)

    def _restart_clock(self, step: int) -> None:
        """Time spent on validation is no part of the training speed."""
        self._marks.clear()
        self._marks.append((time.perf_counter(), step, self.tokens))


def memory_in_use() -> int:
    """Bytes reserved on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved()
    return int(psutil.Process().memory_info().rss)
