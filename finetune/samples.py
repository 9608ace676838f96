"""Sample answers while a run trains: base and tuned on a few held-out prompts every few steps, in `answers.jsonl`.

Looking changes nothing of the run: greedy answers draw no random numbers, and mode, attention and head are put back.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune import compiling
from finetune.base import compute_dtype, under_fsdp
from finetune.data import Example
from finetune.prompt import Template
from finetune.run import Job
from finetune.trainer import PackTrainer
from finetune.whole import write_atomically

PROMPTS = 3
MAX_PROMPT_TOKENS = 512
MAX_NEW_TOKENS = 32


class Shown(NamedTuple):
    """A held-out prompt with its reference, and what base and tuned answered, cut at MAX_NEW_TOKENS."""

    instruction: str
    context: str
    reference: str
    base: str
    tuned: str


class Look(NamedTuple):
    """The answers at a step; at step 0 the adapter adds nothing yet, so both sides are the base."""

    step: int
    answers: list[Shown]


def read_samples(run: Job) -> list[Look]:
    """All looks of a run so far, in order of their steps. A line still being written is left for later."""
    file = run.path / "answers.jsonl"
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0]
    values = [json.loads(line) for line in whole.split("\n") if line]
    return [Look(value["step"], [Shown(**answer) for answer in value["answers"]]) for value in values]


def choose(examples: Sequence[Example]) -> list[Example]:
    """The first few held-out examples whose prompt is short, of as many categories as there are."""
    short = [example for example in examples if example.prompt_length <= MAX_PROMPT_TOKENS]
    first_of_kind = {example.row.category: example for example in reversed(short)}
    different = [example for example in short if first_of_kind[example.row.category] is example]
    return [*different, *(example for example in short if example not in different)][:PROMPTS]


def attach(trainer: PackTrainer, head: nn.Module, template: Template, examples: Sequence[Example]) -> "Samples | None":
    """Have a run write its looks, where its config asks for them; under FSDP no process has the whole model."""
    asked = trainer.training.sample_every_steps and choose(examples)
    if not asked or not trainer.args.should_save or under_fsdp():
        return None
    attached = Samples(trainer, head, template, examples)
    trainer.add_callback(attached)
    return attached


class Samples(TrainerCallback):
    """Writes a look before the first step and every few steps."""

    def __init__(self, trainer: PackTrainer, head: nn.Module, template: Template, examples: Sequence[Example]) -> None:
        """
        Args:
            trainer: the run's.
            head: the base's output head, which training has taken off (finetune/loss.py).
            template: the run's.
            examples: held-out ones; a few are chosen.
        """
        self.adapted, self.head, self.template = trainer.model, head, template
        self.every, self.progress = trainer.training.sample_every_steps, trainer.progress
        self.examples, self.file = choose(examples), trainer.folder / "answers.jsonl"
        self._base: list[str] = []  # its answers never change: they are asked for once
        self._lines: IO[str] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take up the file; after a resumption what came after the checkpoint is written again."""
        kept = [look for look in read_samples(Job(self.file.parent)) if look.step <= state.global_step]
        write_atomically(self.file, "".join(map(_line, kept)))
        self._lines = self.file.open("a", buffering=1)
        if kept:
            self._base = [answer.base for answer in kept[0].answers]
        else:
            with self.adapted.disable_adapter():
                self._base = self.answers()
            self._write(Look(0, self._shown(self._base)))
        self.progress.restart_clock(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self._write(Look(state.global_step, self._shown(self.answers())))
            self.progress.restart_clock(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._lines:
            self._lines.close()

    def _write(self, look: Look) -> None:
        assert self._lines is not None
        self._lines.write(_line(look))

    def _shown(self, tuned: list[str]) -> list[Shown]:
        rows = [example.row for example in self.examples]
        return [
            Shown(row.instruction, row.context, row.response, base, answer)
            for row, base, answer in zip(rows, self._base, tuned, strict=True)
        ]

    @torch.no_grad()
    def answers(self) -> list[str]:
        """Greedy answers to the prompts in one batch, padded on the left, by the adapter as it is (on or off)."""
        model, tokenizer = self.adapted, self.template.tokenizer
        prompts = [example.ids[: example.prompt_length] for example in self.examples]
        longest = max(map(len, prompts))
        pad = tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        greedy = GenerationConfig(
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(self.template.stop_ids),
            pad_token_id=pad,
            use_cache=True,
        )
        with ready_to_answer(model, self.head):
            made = model.generate(input_ids=ids, attention_mask=mask.to(ids.device), generation_config=greedy)
        texts = tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
        return [cut(text, self.template.stop_strings) for text in texts]


@contextmanager
def ready_to_answer(adapted: Any, head: nn.Module) -> Iterator[None]:
    """A model in training as one that generates: eval mode, its head on, attention that knows a cache, not compiled."""
    base, was_training, dtype = adapted.get_base_model(), adapted.training, compute_dtype()
    attention, bare = base.config._attn_implementation, base.get_output_embeddings()
    adapted.eval()
    base.set_attn_implementation("sdpa")  # training's own takes packs and nothing else
    base.set_output_embeddings(head)
    try:
        with compiling.as_written(), torch.autocast(base.device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        base.set_output_embeddings(bare)
        base.set_attn_implementation(attention)
        adapted.train(was_training)


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """An answer up to the first string that ends one."""
    for stop in stop_strings:
        text = text.partition(stop)[0]
    return text.strip()


def _line(look: Look) -> str:
    answers = [answer._asdict() for answer in look.answers]
    return json.dumps({"time": time.time(), "step": look.step, "answers": answers}) + "\n"
