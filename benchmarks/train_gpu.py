"""Training on a GPU in Mistral-7B's shape, against the classic recipe and the card's limit.

    python -m benchmarks.train_gpu

    python -m benchmarks.train_gpu

Random weights in NF4, r 16 on all linear layers, examples as long as Dolly's (log-normal, median 126, mean 203 tokens),
41 % of them supervised. One process, one base, one side after the other: the classic recipe through transformers'
Trainer, the same with padded batches of 8, and ours with and without checkpointing and compiling. The limit is the
card's measured bf16 matrix rate over 4 N operations a token, or 6 N where activations are computed again. Speed is real
tokens over wall time after the first two steps; kernel time is what one step's kernels add up to.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory_cpu import architecture_of, free_memory, random_base, remove_lora
from evaluation.provenance import hardware, versions

RESULTS = Path(__file__).parent / "results" / "train_gpu.json"
MEDIAN, MEAN, SUPERVISED = 126, 203, 0.41  # of Dolly's rows, in tokens
OURS: dict[str, dict[str, Any]] = {
    "packed 4096": {"tokens_per_batch": 4096},
    "packed 4096, checkpointing": {"tokens_per_batch": 4096, "checkpointing": "on"},
    "packed 4096, compiled": {"tokens_per_batch": 4096, "compile": "on"},
    "packed 8192, compiled": {"tokens_per_batch": 8192, "compile": "on"},
    "packed 4096, compiled, checkpointing": {"tokens_per_batch": 4096, "compile": "on", "checkpointing": "on"},
    "packed 8192, compiled, checkpointing": {"tokens_per_batch": 8192, "compile": "on", "checkpointing": "on"},
}
CAPS = (24, 12, 8)  # GB of a card
CONTEXT_GIB = 0.6  # what the driver's context takes of it
BUDGETS = [(tokens, "off") for tokens in (8192, 6144, 4096, 3072)] + [(t, "on") for t in (8192, 4096, 2048, 1024)]
BARS = {
    "times the classic recipe": 60,
    "share of the limit": 0.43,
    "share of the limit, checkpointing": 0.40,
    "first step seconds": 5,
    "first step seconds, compiled": 25,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mistral-7b")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--classic-steps", type=int, default=4)
    parser.add_argument("--only", help="sides whose name has this in it")
    args = parser.parse_args()
    import torch

    from finetune.pilot import matrix_rate

    started = time.perf_counter()
    base = random_base(architecture_of(args.model), torch.bfloat16, "cuda", True)
    loaded = torch.cuda.memory_allocated()
    print(f"base in {time.perf_counter() - started:.1f} s, {loaded / 2**30:.2f} GiB", flush=True)
    rate, weights = matrix_rate(torch.bfloat16), weights_of(base)
    limits = {"off": rate / (4 * weights), "on": rate / (6 * weights)}
    print(f"matrix rate {rate / 1e12:.0f} TFLOP/s; limits in tokens/s: {limits}", flush=True)
    sides: dict[str, dict[str, Any]] = {}
    chosen: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(ours, base, settings, args.steps) for name, settings in OURS.items()
    }
    for gib in CAPS:
        chosen[f"a card of {gib} GB"] = partial(capped, base, args.model, gib, args.steps)
    # The classic recipe comes last: its preparation turns parameters of the base into fp32 for good.
    chosen["Trainer, batch 8 padded"] = partial(classic, base, 8, 1, args.classic_steps, prepared=False)
    chosen["classic recipe"] = partial(classic, base, 1, 4, args.classic_steps, prepared=True)
    for name, side in chosen.items():
        if args.only and args.only not in name:
            continue
        free_memory()
        try:
            sides[name] = side()
        except Exception as error:  # one side that fails must not cost the others
            sides[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        if "checkpointing" in name:
            sides[name]["limit"] = limits["on"]
        elif name in OURS:
            sides[name]["limit"] = limits["off"]
        print(name, {k: round(v, 3) if isinstance(v, float) else v for k, v in sides[name].items()}, flush=True)
    record: dict[str, Any] = {
        "hardware": hardware(),
        "versions": versions(("torch", "transformers", "peft", "bitsandbytes")),
    }
    record |= {"model": args.model, "matrix_rate": rate, "limits": limits, "loaded_bytes": loaded}
    RESULTS.write_text(json.dumps(record | {"sides": sides, "bars": BARS} | verdict(sides), indent=2) + "\n")
    print(json.dumps(verdict(sides), indent=2))


def verdict(sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The bars' figures."""
    good = {name: side for name, side in sides.items() if name in OURS and "error" not in side}

    def share(checkpointing: bool) -> float:
        found = [
            s["tokens_per_second"] / s["limit"] for n, s in good.items() if ("checkpointing" in n) == checkpointing
        ]
        return max(found, default=math.nan)

    def latency(compiled: bool) -> float:
        return max(
            (s["first_step_seconds"] for n, s in good.items() if ("compiled" in n) == compiled), default=math.nan
        )

    slow = sides.get("classic recipe", {}).get("tokens_per_second", math.nan)
    return {
        "measured": {
            "times the classic recipe": max((s["tokens_per_second"] for s in good.values()), default=math.nan) / slow,
            "share of the limit": share(False),
            "share of the limit, checkpointing": share(True),
            "first step seconds": latency(False),
            "first step seconds, compiled": latency(True),
        }
    }


def weights_of(base: Any) -> int:
    """Elements in matrices that a token passes through: 4-bit ones and the head."""
    from finetune.base import parameter_report

    embeddings: int = base.get_input_embeddings().weight.numel()
    total: int = parameter_report(base)["total_parameters"]
    return total - embeddings


def examples(count: int, longest: int = 2048) -> list[Any]:
    """As long as Dolly's, random ids, always the same."""
    from finetune.data import Example, Row

    draw, row = random.Random(0), Row("", "", "", "")
    sigma = math.sqrt(2 * math.log(MEAN / MEDIAN))
    lengths = [min(longest, max(16, round(draw.lognormvariate(math.log(MEDIAN), sigma)))) for _ in range(count)]
    return [
        Example([draw.randrange(3, 30_000) for _ in range(n)], max(1, round(n * (1 - SUPERVISED))), row)
        for n in lengths
    ]


class Marks:
    """Wall time at the end of every step, kernels finished."""

    def __init__(self) -> None:
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def on_train_begin(_, *__: Any, **___: Any) -> None:
                self.times = [_now()]

            def on_step_end(_, *__: Any, **___: Any) -> None:
                self.times.append(_now())

        self.times: list[float] = []
        self.callback = Callback()

    def result(self, tokens_a_step: float, skip: int = 2) -> dict[str, float]:
        import torch

        seconds = (self.times[-1] - self.times[skip]) / (len(self.times) - 1 - skip)
        return {
            "tokens_per_second": tokens_a_step / seconds,
            "seconds_per_step": seconds,
            "first_step_seconds": self.times[1] - self.times[0],
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        }


def _now() -> float:
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def ours(base: Any, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Our trainer over packs."""
    from finetune import compiling
    from finetune.base import add_lora
    from finetune.config import TrainConfig, with_settings
    from finetune.loss import headless
    from finetune.packing import pack
    from finetune.progress import Progress
    from finetune.run import Job, Reporter
    from finetune.trainer import Data, PackTrainer, arguments

    config = with_settings(TrainConfig(), {"compile": "off", "checkpointing": "off"} | settings | {"steps": steps})
    training = config.training
    packs = pack(examples(1000), training.tokens_per_batch)[: steps + 1]
    adapted = add_lora(base, config.lora)
    marks = Marks()
    try:
        if training.compile == "on":
            compiling.compile_layers(adapted)
        with tempfile.TemporaryDirectory() as work, headless(base) as head:
            folder = Path(work)
            progress = Progress(Reporter(Job(folder)), steps)
            args = arguments(training, steps, folder, 0)
            trainer = PackTrainer(adapted, head, Data(packs, []), args, training, 0, progress, folder)
            trainer.add_callback(marks.callback)
            trainer.train()
            found = marks.result(sum(len(e.ids) for p in packs for e in p) / len(packs))
            kernels = kernel_seconds(lambda: _one_step(trainer, packs[0]))
        return found | {"kernel_seconds_per_micro_batch": kernels}
    finally:
        remove_lora(adapted)


def capped(base: Any, model: str, gib: int, steps: int) -> dict[str, Any]:
    """Compiled, in the first of BUDGETS that the plan says fits a card of that size; torch may take no more."""
    import torch

    from finetune.config import TrainConfig, with_settings
    from finetune.memory import Device, plan
    from finetune.shapes import shapes_of

    total, usable = torch.cuda.get_device_properties(0).total_memory, (gib - CONTEXT_GIB) * 2**30
    shapes, card = shapes_of(architecture_of(model)), Device("cuda", gib * 2**30, int(usable))
    for tokens, checkpointing in BUDGETS:
        settings = {"tokens_per_batch": tokens, "checkpointing": checkpointing, "compile": "on"}
        planned = plan(with_settings(TrainConfig(), settings), shapes, torch.bfloat16, card)
        if planned.fits:
            break
    torch.cuda.set_per_process_memory_fraction(usable / total)
    try:
        found = ours(base, settings, steps)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return found | settings | {"planned_gib": planned.need.total / 2**30}


def _one_step(trainer: Any, batch: Any) -> None:
    inputs = trainer.data_collator([batch])
    trainer.training_step(trainer.model, inputs, num_items_in_batch=1000)
    trainer.model.zero_grad()


def kernel_seconds(call: Callable[[], None]) -> float:
    """What the GPU's kernels add up to in one call, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        _now()
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6


def classic(base: Any, batch: int, accumulation: int, steps: int, prepared: bool) -> dict[str, Any]:
    """transformers' Trainer: the recipe as tutorials give it, or the same with padded batches and no preparation."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import Trainer, TrainingArguments

    from finetune.base import target_names
    from finetune.config import Lora

    base.set_attn_implementation("sdpa")
    targets = target_names(base, Lora())
    if prepared:
        base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": True})
    lora = LoraConfig(r=16, lora_alpha=64, lora_dropout=0.1, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    rows = [e.ids for e in examples(batch * accumulation * steps)]

    def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids = [f["input_ids"] for f in features]
        longest = max(map(len, ids))
        return {
            "input_ids": torch.tensor([i + [0] * (longest - len(i)) for i in ids]),
            "attention_mask": torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids]),
            "labels": torch.tensor([i + [-100] * (longest - len(i)) for i in ids]),
        }

    marks = Marks()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=2e-4,
            optim="paged_adamw_8bit",
            bf16=True,
            activation_checkpointing=prepared,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        data: Any = [{"input_ids": ids} for ids in rows]
        Trainer(model, args, data_collator=collate, train_dataset=data, callbacks=[marks.callback]).train()
    remove_lora(model)
    return marks.result(sum(map(len, rows)) / steps, skip=1)


if __name__ == "__main__":
    main()
