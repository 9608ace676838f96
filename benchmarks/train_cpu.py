"""quick-demo's settings against the classic recipe, for the same time on the same rows: python -m benchmarks.train_cpu

Each side is a process of its own: SmolLM2-135M in NF4, Dolly rows (`--data`), the dolly template, so that both start
from the same loss. The classic side is transformers' Trainer as tutorials set it up: bf16, batch 1, accumulation 4,
gradient checkpointing, loss on the whole text with pad = eos, k-bit preparation, dropout 0.1, paged 8-bit AdamW.
"helped" is the same with what we choose for it: the precision that is faster on this CPU, and no checkpointing. The
bars are against the recipe as it is given; the ratios to "helped" stand beside them. Time is training time: loading and
the two looks at the held-out loss are outside. Also: what one micro-batch of 1,024 tokens adds to peak memory, with the
chunked loss and with all logits, with checkpointing (where the loss is most of it) and without.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.provenance import hardware, versions
from finetune.memory import LARGE_PAGES

RESULTS = Path(__file__).parent / "results" / "train_cpu.json"

BARS = {
    "real tokens/s, ours / classic": 5.0,
    "fall of held-out loss, ours / classic": 2.5,
    "peak memory, chunked / eager, checkpointing": 0.6,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a file of Dolly rows")
    parser.add_argument("--seconds", type=float, default=180, help="training time of each side")
    parser.add_argument("--side", choices=list(SIDES), help="run one side in this process")
    args = parser.parse_args()
    if args.side:
        print("RESULT " + json.dumps(SIDES[args.side](args.data, args.seconds)))
        return
    found = {side: _child(side, args) for side in SIDES}
    ratios = {
        "real tokens/s, ours / classic": found["ours"]["tokens_per_second"] / found["classic"]["tokens_per_second"],
        # On a CPU that emulates bf16 the recipe as it is given may not get beyond its first step, whose rate is 0:
        # its loss has not fallen at all then, and there is no ratio.
        "fall of held-out loss, ours / classic": (
            found["ours"]["fall"] / found["classic"]["fall"] if found["classic"]["fall"] > 0 else None
        ),
        "real tokens/s, ours / helped": found["ours"]["tokens_per_second"] / found["helped"]["tokens_per_second"],
        "fall of held-out loss, ours / helped": found["ours"]["fall"] / found["helped"]["fall"],
        "peak memory, chunked / eager": found["chunked"]["peak_bytes"] / found["eager"]["peak_bytes"],
        "peak memory, chunked / eager, checkpointing": (
            found["chunked, checkpointing"]["peak_bytes"] / found["eager, checkpointing"]["peak_bytes"]
        ),
    }
    for side, values in found.items():
        print(side, {name: round(value, 3) for name, value in values.items()})
    for name, ratio in ratios.items():
        said = "none: the classic's did not fall" if ratio is None else f"{ratio:.2f}"
        print(f"{name}: {said}" + (f" (bar {BARS[name]})" if name in BARS else ""))
    record = {"hardware": hardware(), "versions": versions(), "seconds": args.seconds}
    RESULTS.write_text(json.dumps(record | {"sides": found, "ratios": ratios, "bars": BARS}, indent=2) + "\n")


def _child(side: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.train_cpu", "--side", side, "--data", args.data]
    env = os.environ | {LARGE_PAGES: "1"}  # as a run does; the recipe gets it too
    done = subprocess.run([*command, "--seconds", str(args.seconds)], capture_output=True, text=True, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def _config(data: str, **changed: Any) -> Any:
    from finetune.config import preset, with_settings

    return with_settings(
        preset("quick-demo"), {"data": data, "template": "dolly", "rows": 1000, "sample_every_steps": 0} | changed
    )


def held_out_loss(base: Any, model: Any, tokenizer: Any, data: str, template_id: Any = "dolly") -> float:
    """Response loss over 64 held-out rows, nats a token: the same rows and ids for both sides."""
    import torch

    from finetune import data as rows_of
    from finetune.base import context_limit
    from finetune.loss import headless, summed_loss, supervised_hidden
    from finetune.model import fetch
    from finetune.packing import collate_padded
    from finetune.prompt import template

    split = rows_of.split_rows(rows_of.load_rows(data).rows, _config(data).holdout)
    limit = min(1024, context_limit(fetch("smollm2-135m")))
    examples = rows_of.encode_rows(
        rows_of.take(split.test, 64), template(tokenizer, template_id), limit, limit
    ).examples
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), headless(base) as head:
        for example in examples:
            batch = {name: tensor.to(head.device) for name, tensor in collate_padded([[example]], 0).items()}
            hidden, targets = supervised_hidden(model, batch)
            total, count = total + summed_loss(hidden, head, targets).item(), count + len(targets)
    return total / count


def _timed(seconds: float, count: Callable[[], int]) -> Any:
    """A callback that ends training after `seconds`, and the holder of what it saw."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended = time.perf_counter()
            control.should_training_stop = self.ended - self.began > seconds

        def speed(self) -> float:
            return count() / (self.ended - self.began)

    return Clock()


def classic(data: str, seconds: float, helped: bool = False) -> dict[str, float]:
    """The tutorial recipe."""
    import tempfile

    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    from finetune.base import compute_dtype, load_base, load_tokenizer, target_names
    from finetune.config import Lora
    from finetune.model import fetch
    from finetune.train import prepare

    torch.manual_seed(0)
    source = fetch("smollm2-135m")
    tokenizer = load_tokenizer(source)
    examples = prepare(_config(data), tokenizer, 1024).train
    # Loading it as trainable keeps bitsandbytes' trap on AVX512-BF16 shut: the recipe would else learn nothing at all.
    dtype = compute_dtype() if helped else torch.bfloat16
    base = load_base(source, dtype=dtype, trainable=True, packed=False)
    yardstick = load_base(source)  # in our precision, for both sides' held-out loss
    before = held_out_loss(yardstick, yardstick, tokenizer, data)
    targets = target_names(base, Lora())
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=not helped)
    lora = LoraConfig(r=16, lora_alpha=64, lora_dropout=0.1, target_modules=targets, bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(prepared, lora)
    tokenizer.pad_token = tokenizer.eos_token
    seen = [0]

    class Counting(DataCollatorForLanguageModeling):
        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            batch = super().__call__(features, return_tensors)
            seen[0] += int(batch["attention_mask"].sum())
            return batch

    clock = _timed(seconds, lambda: seen[0])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=100_000,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            warmup_steps=2,
            learning_rate=2e-4,
            lr_scheduler_type="constant_with_warmup",  # the steps that fit are not known beforehand
            optim="paged_adamw_8bit",
            bf16=dtype == torch.bfloat16,
            activation_checkpointing=not helped,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"input_ids": e.ids, "attention_mask": [1] * len(e.ids)} for e in examples]
        Trainer(
            model, arguments, data_collator=Counting(tokenizer, mlm=False), train_dataset=rows, callbacks=[clock]
        ).train()
        model.save_pretrained(folder)
        after = held_out_loss(yardstick, PeftModel.from_pretrained(yardstick, folder), tokenizer, data)
    return {
        "tokens_per_second": clock.speed(),
        "before": before,
        "after": after,
        "fall": before - after,
        "tokens": seen[0],
    }


def ours(data: str, seconds: float) -> dict[str, float]:
    """quick-demo's settings through finetune.train's own parts."""
    import os
    import tempfile

    import torch

    from finetune import train
    from finetune.base import load_base, load_tokenizer
    from finetune.job import create_run
    from finetune.model import fetch
    from finetune.run import Reporter

    os.environ["TANDEM_RUNS"] = tempfile.mkdtemp()
    config = _config(
        data, steps=100_000, schedule="constant_with_warmup", validate_every_steps=100_000, keep_best=False
    )
    config = config.model_copy(update={"training": config.training.model_copy(update={"save_every_steps": 100_000})})
    run, _ = create_run(config, "benchmark")
    torch.manual_seed(0)
    source = fetch("smollm2-135m")
    tokenizer = load_tokenizer(source)
    prepared = train.prepare(config, tokenizer, 1024)
    yardstick = load_base(source)  # a base of padded attention, for the held-out loss
    before = held_out_loss(yardstick, yardstick, tokenizer, data)
    with train.loaded(config, source, tokenizer) as ready:
        trainer = train.make_trainer(run, config, ready, prepared, Reporter(run), time.time())
        clock = _timed(seconds, lambda: trainer.progress.tokens)
        trainer.add_callback(clock)
        trainer.train()
    base = ready.adapted.get_base_model()
    base.set_attn_implementation("sdpa")
    after = held_out_loss(base, ready.adapted, tokenizer, data)
    tokens = trainer.progress.tokens
    return {
        "tokens_per_second": clock.speed(),
        "before": before,
        "after": after,
        "fall": before - after,
        "tokens": tokens,
    }


def _peak(eager: bool, checkpointing: bool) -> dict[str, float]:
    """Peak memory above the loaded model, bytes, of forward and backward over one pack of 1,024 supervised tokens."""
    import torch

    from finetune.base import add_lora, load_base
    from finetune.config import Lora
    from finetune.data import Example, Row
    from finetune.loss import headless, model_inputs, summed_loss, supervised_hidden
    from finetune.model import fetch
    from finetune.packing import collate_packed

    torch.manual_seed(0)
    base = load_base(fetch("smollm2-135m"), trainable=True)
    adapted = add_lora(base, Lora()).train()
    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    example = Example(torch.randint(3, 40_000, (1024,)).tolist(), 1, Row("q", "", "a", "x"))
    batch = collate_packed([[example]])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if eager:
        logits = adapted(**model_inputs(batch), use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), batch["labels"][0, 1:]).backward()
    else:
        with headless(base) as head:
            hidden, targets = supervised_hidden(adapted, batch)
            (summed_loss(hidden, head, targets) / len(targets)).backward()
    return {"peak_bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded) * 1024.0}


SIDES: dict[str, Callable[[str, float], dict[str, float]]] = {
    "chunked": lambda data, seconds: _peak(eager=False, checkpointing=False),
    "eager": lambda data, seconds: _peak(eager=True, checkpointing=False),
    "chunked, checkpointing": lambda data, seconds: _peak(eager=False, checkpointing=True),
    "eager, checkpointing": lambda data, seconds: _peak(eager=True, checkpointing=True),
    "classic": classic,
    "helped": partial(classic, helped=True),
    "ours": ours,
}

if __name__ == "__main__":
    main()
