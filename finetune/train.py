"""train(run): rows → examples → batches → adapter. Read it top to bottom and you have read the data flow."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import set_seed

from finetune import data, datareport, model, pilot, room, samples
from finetune.base import (
    add_lora,
    compute_dtype,
    context_limit,
    load_base,
    load_tokenizer,
    parameter_report,
    under_fsdp,
)
from finetune.config import TrainConfig, from_mapping
from finetune.launch import is_main, processes
from finetune.loss import headless
from finetune.packing import Batch, group, pack
from finetune.progress import AfterFirstStep, Diverged, Progress, any_process
from finetune.prompt import template
from finetune.run import Reporter, Run
from finetune.settled import with_checkpointing_settled, with_compiling_settled
from finetune.trainer import Data, PackTrainer, arguments, save_adapter
from finetune.whole import finish_folder, is_whole, write_atomically


class Loaded(NamedTuple):
    """The model of a run, with its adapter on."""

    source: model.Source
    tokenizer: Any
    adapted: Any
    head: Tensor | None
    """The output head's weight, which is taken off for the chunked loss; None under FSDP, which shards it."""
    own_head: Any
    """The head itself."""


class Prepared(NamedTuple):
    """The rows of a run as examples, what became of them on the way, and the report on them, once it is asked for."""

    train: list[data.Example]
    validation: list[data.Example]
    facts: dict[str, Any]
    report: Callable[[], datareport.DataReport]


def train(run: Run, reporter: Reporter) -> None:
    """Train the adapter that `run` asks for, or go on from its last whole checkpoint; it ends as run.adapter.

    Raises:
        ValueError: with a sentence, for what the config asks and can't be had, and for a loss that went wrong.
    """
    config = from_mapping(run.config()["config"])
    started = reporter.started_at

    def say(text: str) -> None:
        reporter.status(message=text)

    source = model.fetch(config.model, config.revision, say)
    tokenizer = load_tokenizer(source)
    say("reading rows")
    prepared = prepare(config, tokenizer, context_limit(source))
    with ExitStack() as held:
        taken = held.enter_context(room.claimed(lambda: room.fits(config, source), run.stop_requested, say))
        if any_process(run.stop_requested()):
            reporter.status(state="stopped")
            return
        config = with_checkpointing_settled(config, source)
        say("loading the base in 4 bits")
        ready = held.enter_context(loaded(config, source, tokenizer))
        if config.training.minutes is not None:
            say("a short pilot: what fits into the time?")
            config, prepared = _fit_to_time(run, config, ready, prepared, started)
        if is_main():
            _write_facts(run, config, prepared, ready)
        trainer = make_trainer(run, config, ready, prepared, reporter, started)
        attach_samples(trainer, config, ready, prepared)
        trainer.add_callback(AfterFirstStep(taken))
        try:
            _loop(run, trainer, reporter)
        except Diverged as error:
            raise ValueError(f"{error}: try a lower learning rate. {_keep_last_good(run)}") from error
    if trainer.args.should_save:
        finish_adapter(run, trainer, reporter)
    done = trainer.state.global_step
    reporter.status(**({"state": "stopped"} if run.stop_requested() and done < trainer.args.max_steps else {}))


def prepare(config: TrainConfig, tokenizer: Any, limit: int) -> Prepared:
    """Rows, split, encoded. Raises ValueError where nothing is left to train on."""
    rows = data.load_rows(config.data, config.columns)
    split = data.select(config, rows)
    chosen = template(tokenizer, config.encoding.template)
    train, validation = data.encode_split(config, split, chosen, limit)
    facts = {
        "data": rows.source,
        "data_sha256": rows.sha256,
        "template": chosen.id,
        "max_length": train.max_length,
        "rows": {
            "all": len(rows.rows),
            "train": len(train.examples),
            "validation": len(validation),
            "test": len(split.test),
            "shortened": train.shortened,
            "dropped": train.dropped,
        },
        "tokens": sum(len(e.ids) for e in train.examples),
        "supervised_tokens": sum(e.supervised for e in train.examples),
    }
    report = partial(datareport.describe, config, rows, split, chosen, train, limit)
    return Prepared(train.examples, validation, facts, report)


@contextmanager
def loaded(config: TrainConfig, source: model.Source, tokenizer: Any) -> Iterator[Loaded]:
    """The base in 4 bits with a fresh adapter, ready to train; within it the base is without its head."""
    base = load_base(source, trainable=True, packed=config.training.batching == "packed")
    set_seed(config.seed)
    adapted = add_lora(base, config.lora)
    own_head = base.get_output_embeddings()
    with nullcontext() if under_fsdp() else headless(base) as head:
        yield Loaded(source, tokenizer, adapted, head, own_head)


def make_trainer(
    run: Run, config: TrainConfig, ready: Loaded, prepared: Prepared, reporter: Reporter, started: float
) -> PackTrainer:
    """The trainer over this run's batches, with its number of steps settled."""
    training = config.training
    make = pack if training.batching == "packed" else group
    batches: list[Batch] = make(prepared.train, training.tokens_per_batch, config.seed)
    validation = make(prepared.validation, training.tokens_per_batch)
    steps = training.steps or max(1, round((training.epochs or 1) * len(batches) / training.accumulation))
    deadline = started + 60 * training.minutes if training.minutes is not None else None
    progress = Progress(reporter, steps, deadline, _peak(config, ready.adapted))
    if training.accumulation % processes():
        raise ValueError(
            f"accumulation must be a multiple of the {processes()} processes, to keep the effective batch."
        )
    training = with_compiling_settled(training, ready.adapted, steps * training.accumulation)
    reporter.status(compiled=training.compile == "on")
    args = arguments(training, steps, run.path, config.seed)
    pad_id = ready.tokenizer.pad_token_id or 0
    return PackTrainer(ready.adapted, ready.head, Data(batches, validation), args, training, pad_id, progress, run.path)


def attach_samples(
    trainer: PackTrainer, config: TrainConfig, ready: Loaded, prepared: Prepared
) -> samples.Samples | None:
    """Have a run write sample answers, where its config asks for them."""
    chosen = template(ready.tokenizer, config.encoding.template)
    return samples.attach(trainer, ready.own_head, chosen, prepared.validation)


def _loop(run: Run, trainer: PackTrainer, reporter: Reporter) -> None:
    """Train from the start, or from the last whole checkpoint with all that was known there."""
    checkpoint = next(iter(run.checkpoints()), None)
    if checkpoint is None:
        reporter.rewind(-1)
        trainer.evaluate()  # the base's own validation loss: the adapter's output is still 0
    else:
        step, _ = checkpoint
        reporter.rewind(step)
        looks = [event for event in run.metrics()[0] if event.get("validation_loss") is not None]
        trainer.base_loss = looks[0]["validation_loss"] if looks else trainer.base_loss
        reporter.status(message=f"resuming from step {step}")
    if not run.stop_requested():
        trainer.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)
        looks = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
        if looks[-1:] != [trainer.state.global_step]:  # it was stopped between two looks
            trainer.evaluate()


def finish_adapter(run: Run, trainer: PackTrainer, reporter: Reporter) -> None:
    """The best weights by validation loss (else the last ones) become run.adapter, whole or not at all."""
    best, step = run.path / "best", trainer.state.best_global_step
    if trainer.training.keep_best and is_whole(best) and step and step < trainer.state.global_step:
        with tempfile.TemporaryDirectory(dir=run.path, prefix=".adapter-") as work:
            hidden = Path(shutil.copytree(best, Path(work) / "adapter"))
            finish_folder(hidden, run.adapter)
    else:
        step = trainer.state.global_step
        save_adapter(trainer.model, run.adapter)
    reporter.status(adapter_step=step, best_validation_loss=trainer.state.best_metric)


def _keep_last_good(run: Run) -> str:
    """After a loss that went wrong: the best weights, else the last checkpoint's, become the adapter."""
    sources = [run.path / "best", *(folder for _, folder in run.checkpoints())]
    for source in filter(is_whole, sources):
        with tempfile.TemporaryDirectory(dir=run.path, prefix=".adapter-") as work:
            hidden = Path(work) / "adapter"
            hidden.mkdir()
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy2(source / name, hidden)
            finish_folder(hidden, run.adapter)
        return "The last good weights are kept."
    return "There were no earlier weights to keep."


def _fit_to_time(
    run: Run, config: TrainConfig, ready: Loaded, prepared: Prepared, started: float
) -> tuple[TrainConfig, Prepared]:
    """The config that fits its minutes; what a pilot chose before is kept when a run is resumed."""
    if "chosen" in run.facts():
        config = from_mapping(run.facts()["chosen"])
    else:
        assert ready.head is not None and config.training.minutes is not None
        deadline = started + 60 * config.training.minutes
        validation_tokens = sum(len(e.ids) for e in prepared.validation)
        config = pilot.fit_to_time(
            config, ready.adapted, ready.head, prepared.train, validation_tokens, deadline, compute_dtype()
        )
    return config, prepare(config, ready.tokenizer, context_limit(ready.source))


def _write_facts(run: Run, config: TrainConfig, prepared: Prepared, ready: Loaded) -> None:
    found = {
        "model": ready.source.origin,
        "model_sha256": ready.source.sha256,
        "dtype": str(compute_dtype()).removeprefix("torch."),
        "chosen": config.model_dump(),
        "processes": processes(),
    }
    facts = prepared.facts | found | parameter_report(ready.adapted)
    write_atomically(run.path / "data.json", prepared.report().model_dump_json(indent=2) + "\n")
    write_atomically(run.path / "facts.json", json.dumps(facts, indent=2) + "\n")


def _peak(config: TrainConfig, adapted: Any) -> float | None:
    """Tokens a second at the GPU's own matrix rate: 4 operations a weight and token, 6 with recomputation."""
    if not torch.cuda.is_available():
        return None
    operations = 6 if config.training.checkpointing == "on" else 4
    return pilot.matrix_rate(compute_dtype()) / (operations * parameter_report(adapted)["total_parameters"])
