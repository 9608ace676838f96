"""The peer of evaluate_cpu: transformers' forward and `generate`, row by row, one model after the other."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import StoppingCriteria, StoppingCriteriaList

from evaluation.answers import Said, prompts_of
from evaluation.batches import Batched, Item
from evaluation.likelihood import Likelihood
from finetune import data, model
from finetune.base import load_base
from finetune.prompt import Template


class Task(NamedTuple):
    """What both sides do."""

    source: model.Source
    template: Template
    examples: list[data.Example]
    adapter: Path
    max_new_tokens: int


class Peer(NamedTuple):
    """Of each row it was measured on, both models together, [rows]: seconds and tokens of reading, and of writing."""

    read_seconds: list[float]
    read_tokens: list[int]
    write_seconds: list[float]
    write_tokens: list[int]
    same: int
    """Answers that are ours, letter for letter."""


def row_by_row(task: Task, ours: Batched, places: list[int]) -> Callable[[], Peer]:
    """The peer, loaded; call it to do the work.

    Args:
        task: with the examples that it is measured on.
        ours: our answers, to compare with.
        places: these examples' places among ours.
    """
    peer = PeftModel.from_pretrained(load_base(task.source), str(task.adapter)).eval()
    prompts = prompts_of(task.template, [example.row for example in task.examples])
    count = len(prompts)
    found = Peer([0.0] * count, [0] * count, [0.0] * count, [0] * count, 0)

    def one_model(column: int) -> int:
        same = 0
        for i, example in enumerate(task.examples):
            started = time.perf_counter()
            _plain_likelihood(peer, example)
            read = time.perf_counter()
            said = _plain_answer(peer, task, prompts[i])
            found.write_seconds[i] += time.perf_counter() - read
            found.read_seconds[i] += read - started
            found.read_tokens[i] += len(example.ids)
            found.write_tokens[i] += said["tokens"]
            same += said["text"] == ours.results[Item(places[i], column)]["text"]
        return same

    def work() -> Peer:
        with peer.disable_adapter():
            same = one_model(0)
        return found._replace(same=same + one_model(1))

    with torch.inference_mode():
        peer(torch.tensor([prompts[0]]))
    return work


@torch.inference_mode()
def _plain_likelihood(peer: Any, example: data.Example) -> dict[str, Any]:
    out = peer(input_ids=torch.tensor([example.ids]), labels=torch.tensor([example.labels]))
    tokens = sum(label != data.IGNORED for label in example.labels)
    return Likelihood(out.loss.item() * tokens, tokens)._asdict()


class _Stop(StoppingCriteria):
    """The template's stop strings; its stop ids are generate's own business."""

    def __init__(self, of: Template, prompt_length: int) -> None:
        self.of, self.prompt_length = of, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        text = self.of.tokenizer.decode(input_ids[0, self.prompt_length :]) if self.of.stop_strings else ""
        return torch.tensor([any(stop in text for stop in self.of.stop_strings)])


@torch.inference_mode()
def _plain_answer(peer: Any, task: Task, prompt: list[int]) -> dict[str, Any]:
    stops = sorted(task.template.stop_ids)
    ids = torch.tensor([prompt])
    out = peer.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=task.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=task.template.tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([_Stop(task.template, len(prompt))]),
    )[0, len(prompt) :].tolist()
    ended = len(out) < task.max_new_tokens or out[-1] in stops
    text = task.template.tokenizer.decode(out, skip_special_tokens=True)
    cut = min((at for stop in task.template.stop_strings if (at := text.find(stop)) >= 0), default=len(text))
    return Said(text[:cut].strip(), len(out), "end" if ended else "length")._asdict()
