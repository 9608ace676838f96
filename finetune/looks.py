"""Every N steps the answers of the newest checkpoint are scored by a process of its own, while training waits.

Training knows of it only as a command that reads the run's folder and prints a line of figures. So nothing that scoring
does can change a weight, a random number or a mode of the training, and its memory is gone when it ends. It works
within the run's own turn on the device. See docs/decisions/0006-scores-while-training.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.config import Training
from finetune.progress import Progress
from finetune.run import Run, runs_folder

COMMAND = (sys.executable, "-m", "evaluation", "look")  # then: the run's folder, the step
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 540.0  # other processes of the run wait in a collective, which gives up after ten minutes


def looks(training: Training, progress: Progress, folder: Path) -> list[TrainerCallback]:
    """The callback that a run's settings ask for, or none."""
    return [Looks(Run(folder), training.evaluate_every_steps, progress)] if training.evaluate_every_steps else []


class Looks(TrainerCallback):
    """Asks for a checkpoint every N steps, has it scored, and writes what came out among the run's metrics."""

    def __init__(self, run: Run, every: int, progress: Progress, command: tuple[str, ...] = COMMAND) -> None:
        self.run, self.every, self.progress, self.command = run, every, progress, command

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.every == 0:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.every or not state.is_world_process_zero or self.run.stop_requested():
            return
        self.progress.reporter.status(message=f"scoring step {state.global_step}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the last step needed is free for the scoring
        figures = self._figures(state.global_step)
        if figures:
            self.progress.reporter.metric(step=state.global_step, scores=figures)
        self.progress.restart_clock(state.global_step)
        self.progress.reporter.status(message="training")

    def _figures(self, step: int) -> dict[str, Any]:
        """What the command printed in its last line; {} where it failed, or the run was asked to stop."""
        process = subprocess.Popen(
            [*self.command, str(self.run.path), str(step)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the training, which passes it on
            cwd=Path(__file__).resolve().parents[1],
            env=os.environ | {"TANDEM_RUNS": str(runs_folder())},
        )
        try:
            printed = _wait(process, self.run)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        try:
            if process.returncode == 0:
                figures: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
                return figures
        except (ValueError, IndexError):
            pass
        if not self.run.stop_requested():
            self.progress.say(f"step {step} could not be scored; run.log says why, and training goes on")
        return {}


def _wait(process: "subprocess.Popen[str]", run: Run) -> str:
    """What it prints until it ends; "" where it takes too long, or the run is asked to stop."""
    waited = 0.0
    while waited < PATIENCE_SECONDS and not run.stop_requested():
        try:
            return process.communicate(timeout=POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            waited += POLL_SECONDS
    return ""
