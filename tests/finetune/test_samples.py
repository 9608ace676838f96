"""Sample answers while a run trains: they are there, they are what they claim, and the run is the same without them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run_settings

from finetune import train as whole_run
from finetune.base import load_base, load_tokenizer
from finetune.config import TrainConfig, with_settings
from finetune.data import Example, Row
from finetune.job import create_run, reopen
from finetune.prompt import Turn, template
from finetune.run import Reporter, Run
from finetune.samples import MAX_NEW_TOKENS, choose, cut, read_samples


def in_process(tiny_model: Path, **changed: Any) -> Run:
    run, lock = create_run(with_settings(TrainConfig(), tiny_run_settings(tiny_model) | changed), "test")
    work(run, lock)
    return run


def work(run: Run, lock: int) -> None:
    reporter = Reporter(run)
    whole_run.train(run, reporter)
    reporter.end()
    os.close(lock)


def losses(run: Run) -> list[Any]:
    return [(e["step"], e.get("loss"), e.get("validation_loss"), e.get("grad_norm")) for e in run.metrics()[0]]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"checkpointing": "on", "dropout": 0.1, "template": "dolly"},
        {"batching": "padded", "accumulation": 2, "neftune_alpha": 5},
    ],
    ids=["plain", "checkpointed", "padded"],
)
def test_looking_leaves_the_run_as_it_was_bit_for_bit(tiny_model: Path, runs: Path, changed: dict[str, Any]) -> None:
    settings = {"steps": 5, "validate_every_steps": 2, "learning_rate": 2e-2} | changed
    without = in_process(tiny_model, **settings)
    looked = in_process(tiny_model, **settings, sample_every_steps=2)
    assert losses(looked) == losses(without) and len(losses(looked)) >= 8
    assert not read_samples(without)
    seen = read_samples(looked)
    assert [look.step for look in seen] == [0, 2, 4]
    for look in seen:  # the same prompts and the same base at every look
        assert [a[:4] for a in look.answers] == [a[:4] for a in seen[0].answers]
    assert [a.tuned for a in seen[0].answers] == [a.base for a in seen[0].answers]
    assert [a.tuned for a in seen[-1].answers] != [a.base for a in seen[-1].answers]


def test_the_bases_answer_is_the_bare_bases(tiny_model: Path, tiny_source: Any, runs: Path) -> None:
    run = in_process(tiny_model, sample_every_steps=2, steps=2)
    tokenizer = load_tokenizer(tiny_source)
    chosen = template(tokenizer, "chat")
    base = load_base(tiny_source)
    for answer in read_samples(run)[-1].answers:
        ids, made = chosen.encode_prompt([Turn(answer.instruction, answer.context)]), list[int]()
        with torch.no_grad():
            while len(made) < MAX_NEW_TOKENS and not chosen.stop_ids & set(made):
                seen = torch.tensor([ids + made], device=base.device)
                made.append(int(base(seen).logits[0, -1].argmax()))
        expected = tokenizer.decode(made, skip_special_tokens=True).strip()
        # Rows of a batch may round otherwise than one alone; the beginning shows whose words they are.
        assert answer.base[:12] == expected[:12]


def test_a_resumed_run_drops_the_looks_after_its_checkpoint(tiny_model: Path, runs: Path) -> None:
    settings = {"steps": 4, "save_every_steps": 2, "sample_every_steps": 1, "learning_rate": 2e-2}
    run = in_process(tiny_model, **settings)
    whole, events = read_samples(run), losses(run)
    # As if it had been killed at step 3: the last whole checkpoint is that of step 2, and a line was cut short.
    (newest, folder) = run.checkpoints()[0]
    assert newest == 4
    (folder / "manifest.json").unlink()
    lines = (run.path / "answers.jsonl").read_text().splitlines(keepends=True)
    (run.path / "answers.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    assert [look.step for look in read_samples(run)] == [0, 1, 2, 3]
    (run.path / "status.json").write_text(json.dumps({"state": "running", "step": 3}))
    work(run, reopen(run))
    assert read_samples(run) == whole and losses(run) == events


def test_prompts_are_short_and_of_different_kinds() -> None:
    def example(kind: str, length: int) -> Example:
        return Example([5] * (length + 2), length, Row(f"{kind} {length}", "", "r", kind))

    many = [example("a", 900), example("a", 3), example("a", 4), example("b", 5), example("c", 6), example("d", 7)]
    assert [e.row.instruction for e in choose(many)] == ["a 3", "b 5", "c 6"]
    assert [e.row.instruction for e in choose(many[:4])] == ["a 3", "b 5", "a 4"]
    assert choose(many[:1]) == []


def test_an_answer_ends_where_the_template_says() -> None:
    assert cut("Yes.\n\n### End more", ("### End", "### Instruction:")) == "Yes."
