"""train(run): rows → examples → packs → adapter. Read it top to bottom and you have read the data flow."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerControl, TrainingArguments, set_seed

from finetune import data, model
from finetune.base import add_lora, compute_dtype, context_limit, load_base, load_tokenizer
from finetune.config import TrainConfig, from_mapping
from finetune.loss import headless, summed_loss, supervised_hidden
from finetune.packing import Pack, collate, pack
from finetune.progress import Progress
from finetune.prompt import template
from finetune.run import Reporter, Run, finish_folder, write_atomically


class Prepared(NamedTuple):
    """The rows of a run as packs, and what became of them on the way."""

    train: list[Pack]
    validation: list[Pack]
    facts: dict[str, Any]


def train(run: Run, reporter: Reporter) -> None:
    """Train the adapter that `run` asks for; it ends as run.adapter, and its end is in the status.

    Raises:
        ValueError: with a sentence, for what the config asks and can't be had.
    """
    config = from_mapping(run.config()["config"])
    set_seed(config.seed)
    source = model.fetch(config.model, config.revision, lambda text: reporter.status(message=text))
    tokenizer = load_tokenizer(source)
    reporter.status(message="reading rows")
    prepared = prepare(config, tokenizer, limit=context_limit(source))
    reporter.status(message="loading the base in 4 bits")
    base = load_base(source, trainable=True)
    adapted = add_lora(base, config.lora)
    trainable, total = adapted.get_nb_trainable_parameters()
    facts = prepared.facts | {
        "model": source.origin,
        "model_sha256": source.sha256,
        "dtype": str(compute_dtype()).removeprefix("torch."),
        "trainable_parameters": trainable,
        "total_parameters": total,
    }
    write_atomically(run.path / "facts.json", json.dumps(facts, indent=2) + "\n")
    with headless(base) as head:
        progress = Progress(reporter, config.training.steps or 0)
        trainer = PackTrainer(adapted, head, prepared, arguments(config, run.path), progress)
        trainer.evaluate()  # the base's own validation loss: the adapter's output is still 0
        if not run.stop_requested():
            trainer.train()
            if trainer.state.global_step % config.training.validate_every_steps:
                trainer.evaluate()
    save_adapter(adapted, run.adapter)
    if trainer.state.global_step < trainer.args.max_steps:
        reporter.status(state="stopped")


def prepare(config: TrainConfig, tokenizer: Any, limit: int) -> Prepared:
    """Rows, split, encoded and packed. Raises ValueError where nothing is left to train on."""
    rows = data.load_rows(config.data)
    split = data.split_rows(rows.rows, config.holdout)
    chosen = template(tokenizer, config.encoding.template)
    if not split.train:
        raise ValueError(f"The split leaves none of the {len(rows.rows)} rows to train on: give more rows.")
    budget = config.training.tokens_per_batch
    limit = min(limit, budget)
    train_rows = data.take(split.train, config.rows)
    train = data.encode_rows(train_rows, chosen, config.encoding.max_length, limit)
    held_out = data.take(split.validation, config.training.validation_rows)
    validation = data.encode_rows(held_out, chosen, train.max_length, limit).examples if held_out else []
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
        "supervised_tokens": sum(len(e.ids) - e.prompt_length for e in train.examples),
    }
    return Prepared(pack(train.examples, budget, config.seed), pack(validation, budget), facts)


class PackTrainer(Trainer):
    """transformers' Trainer over packs, with the chunked loss normalized by supervised tokens."""

    control: TrainerControl

    def __init__(
        self, adapted: Any, head: Tensor, prepared: Prepared, args: TrainingArguments, progress: Progress
    ) -> None:
        super().__init__(
            adapted,
            args,
            data_collator=collate,
            train_dataset=prepared.train,
            eval_dataset=prepared.validation,
            callbacks=[progress],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the tokens of the whole accumulation itself
        self.head = head
        self.progress = progress

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean -log p in nats over the supervised tokens of all micro-batches of this step."""
        assert num_items_in_batch is not None and not return_outputs
        self.progress.tokens += inputs["input_ids"].numel()
        return summed_loss(*_split_head(supervised_hidden(model, inputs), self.head)) / num_items_in_batch

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean -log p over all supervised validation tokens; no logits are kept or gathered."""
        if not self.eval_dataset:
            return {}
        was_training = self.model.training
        self.model.eval()
        total, count = 0.0, 0
        for batch in self.get_eval_dataloader():
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                hidden, targets = supervised_hidden(self.model, batch)
                total += summed_loss(hidden, self.head, targets).item()
            count += len(targets)
        self.model.train(was_training)
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _split_head(supervised: tuple[Tensor, Tensor], head: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden, targets = supervised
    return hidden, head, targets


def arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    training = config.training
    dtype = compute_dtype()
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=training.steps or -1,
        per_device_train_batch_size=1,  # a pack is a batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        optim=training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        activation_checkpointing=training.checkpointing == "on",
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=training.validate_every_steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=config.seed,
    )


def save_adapter(adapted: Any, target: Path) -> None:
    """The adapter in PEFT's format, in a folder that appears only when it is whole."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".adapter-") as work:
        hidden = Path(work) / "adapter"
        adapted.save_pretrained(hidden, save_embedding_layers=False)
        finish_folder(hidden, target)
