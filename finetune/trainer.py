"""transformers' Trainer over micro-batches of whole examples: our loss, our validation, and what to do on failure."""

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerControl, TrainingArguments

from finetune import compiling
from finetune.base import compute_dtype
from finetune.config import Training
from finetune.data import IGNORED
from finetune.launch import processes
from finetune.looks import looks
from finetune.loss import model_inputs, summed_loss, supervised_hidden
from finetune.packing import Batch, Fixed, collate_packed, collate_padded, divide
from finetune.progress import Diverged, Progress
from finetune.whole import finish_folder, seal

KEPT_CHECKPOINTS = 2  # the one being written, and the whole one before it
EXPLODED = 1.0  # nats above the base's own validation loss that count as a run gone wrong


class Data(NamedTuple):
    """Micro-batches to train and to validate on."""

    train: list[Batch]
    validation: list[Batch]


class PackTrainer(Trainer):  # the rest of the loop, its checkpoints and their resumption are transformers'
    """QLoRA over packs (or padded batches), the loss normalized by the supervised tokens of the whole accumulation."""

    control: TrainerControl

    def __init__(
        self,
        adapted: Any,
        head: Tensor | None,
        batches: Data,
        args: TrainingArguments,
        training: Training,
        pad_id: int,
        progress: Progress,
        folder: Path,
    ) -> None:
        plain = collate_packed if training.batching == "packed" else partial(collate_padded, pad_id=pad_id)
        fixed = Fixed.of(batches.train, training.tokens_per_batch) if training.compile == "on" else None
        super().__init__(
            adapted,
            args,
            data_collator=partial(collate_packed, fixed=fixed) if fixed else plain,
            train_dataset=batches.train,
            eval_dataset=batches.validation,
            callbacks=[progress, *looks(training, progress, folder)],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the tokens of the whole accumulation itself
        self.head, self.training, self.progress, self.folder = head, training, progress, folder
        self.collate = plain  # validation batches keep their own shapes
        self.parts = 1  # slices of a micro-batch; doubled when memory runs out
        self.base_loss = math.inf

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """-log p in nats over this micro-batch's supervised tokens, as a share of the mean over the whole step."""
        assert num_items_in_batch is not None and not return_outputs
        loss = self._summed(model, inputs) / num_items_in_batch
        # Data-parallel averages gradients over processes, and num_items_in_batch counts the tokens of them all.
        return loss * self.accelerator.num_processes

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A micro-batch's forward and backward; in more and smaller slices when memory does not suffice."""
        inputs = self._prepare_inputs(inputs)
        self.progress.count(inputs)
        before = [None if p.grad is None else p.grad.clone() for p in self._trainable()]
        while True:
            try:
                return self._in_parts(model, inputs, num_items_in_batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
            self._use_smaller_slices(inputs)
            for parameter, gradient in zip(self._trainable(), before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()

    def _in_parts(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None) -> Tensor:
        if self.parts == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        with compiling.as_written():  # slices have shapes of their own
            losses = [
                super(PackTrainer, self).training_step(model, p, num_items_in_batch) for p in divide(inputs, self.parts)
            ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean -log p over all supervised validation tokens; no logits are kept or gathered. Keeps the best weights."""
        if not self.eval_dataset:
            return {}
        was_training = self.model.training
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for examples in self.eval_dataset[self.args.process_index :: self.args.world_size]:
            batch = self._prepare_inputs(self.collate([examples]))
            with self.accelerator.autocast(), compiling.as_written():
                sums[0] += self._summed(self.model, batch)
            sums[1] += (batch["labels"][:, 1:] != IGNORED).sum()
        total, count = self.accelerator.reduce(sums).tolist()
        self.model.train(was_training)
        loss = total / count
        self.log({"eval_loss": loss})
        self._judge(loss)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {"eval_loss": loss})
        return {"eval_loss": loss}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The chosen optimizer, with LoRA+'s higher rate on the up matrices where it is asked for."""
        if self.training.lora_plus_ratio == 1 or self.optimizer is not None:
            created: torch.optim.Optimizer = super().create_optimizer(model)
            return created
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        rates = {"lr": options.pop("lr"), "loraplus_lr_ratio": self.training.lora_plus_ratio}
        optimizer: torch.optim.Optimizer = create_loraplus_optimizer(self.model, kind, **rates, **options)
        self.optimizer: Any = optimizer
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter alone, in PEFT's format."""
        assert output_dir is not None
        if self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            save_weights(self.model, Path(output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """transformers' checkpoint, and then its manifest: a folder without one was cut short and is never resumed."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            seal(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def _summed(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        if self.head is None:  # FSDP shards the head, so the model applies it itself
            logits = model(**model_inputs(batch), use_cache=False).logits
            labels = batch["labels"][:, 1:].flatten()
            return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, reduction="sum")
        hidden, targets = supervised_hidden(model, batch)
        return summed_loss(hidden, self.head, targets)

    def _judge(self, loss: float) -> None:
        """Note the best weights so far; end a run that has gone wrong, or has stopped getting better."""
        step = self.state.global_step
        if step == 0:
            self.base_loss = loss
            return
        if not math.isfinite(loss) or loss > self.base_loss + EXPLODED:
            raise Diverged(f"The validation loss went from {self.base_loss:.2f} to {loss:.2f} by step {step}")
        if self.state.best_metric is None or loss < self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = loss, step
            if self.training.keep_best and self.args.should_save:
                save_adapter(self.model, self.folder / "best")
        looks = {entry["step"] for entry in self.state.log_history if "eval_loss" in entry}
        stale = sum(look > self.state.best_global_step for look in looks)
        if self.training.patience is not None and stale >= self.training.patience:
            self.control.should_training_stop = True
            self.progress.say(f"no lower validation loss in {stale} looks: stopping early")

    def _use_smaller_slices(self, inputs: dict[str, Tensor]) -> None:
        if len(divide(inputs, 2 * self.parts)) == len(divide(inputs, self.parts)):
            raise ValueError(
                "Memory does not suffice for one example alone: lower max_length, or set checkpointing on."
            )
        self.parts *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.progress.say(f"memory ran out: micro-batches are now computed in {self.parts} parts, for the same steps")

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in torch's CPU allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def arguments(training: Training, steps: int, folder: Path, seed: int) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    dtype = compute_dtype()
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=1,  # a pack is a batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=training.accumulation // processes(),  # the effective batch stays what was asked
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        optim=training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        neftune_noise_alpha=training.neftune_alpha,
        activation_checkpointing=training.checkpointing == "on",
        activation_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=training.validate_every_steps,
        save_strategy="steps",
        save_steps=training.save_every_steps,
        save_total_limit=KEPT_CHECKPOINTS,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
    )


def save_weights(adapted: Any, folder: Path) -> None:
    """An adapter's weights and config in `folder`, in PEFT's format."""
    adapted.save_pretrained(folder, save_embedding_layers=False)


def save_adapter(adapted: Any, target: Path, save: Callable[[Any, Path], None] = save_weights) -> None:
    """The adapter in PEFT's format, in a folder that appears only when it is whole."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".adapter-") as work:
        hidden = Path(work) / "adapter"
        save(adapted, hidden)
        finish_folder(hidden, target)
