"""Predicted against measured peak memory of training: `python -m benchmarks.memory_cpu [--device cuda]`.

Every configuration takes two optimizer steps on packs of exactly the token budget, through the trainer that a run uses.
On the CPU, with SmolLM2-135M's weights, each has a process of its own, and the peak is its largest resident size. On a
GPU with random weights in Mistral-7B's and Llama-2-7B's shapes, which need no network and no files, they run one after
the other on one base, and the peak is what torch reserved since the one before was cleared away. Writes
benchmarks/results/memory_<device>.json, with the machine and the versions.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import memory

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = 128  # tokens of an example; Dolly's median is 136
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
LLAMA_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": ("llama", {}),  # real weights, from finetune.model.fetch
    "mistral-7b": ("mistral", LLAMA_7B | {"num_key_value_heads": 8, "intermediate_size": 14336}),
    "llama-2-7b": ("llama", LLAMA_7B | {"num_key_value_heads": 32, "intermediate_size": 11008}),
}
CPU = [
    ("smollm2-135m", tokens, checkpointing, r, optimizer, batching)
    for tokens, checkpointing, r, optimizer, batching in [
        (256, "off", 16, "adamw_torch_fused", "packed"),
        (512, "off", 16, "adamw_torch_fused", "packed"),
        (1024, "off", 16, "adamw_torch_fused", "packed"),
        (2048, "off", 16, "adamw_torch_fused", "packed"),
        (256, "on", 16, "adamw_torch_fused", "packed"),
        (512, "on", 16, "adamw_8bit", "packed"),
        (1024, "on", 16, "adamw_torch_fused", "packed"),
        (2048, "on", 16, "adamw_torch_fused", "packed"),
        (512, "off", 4, "adamw_torch_fused", "packed"),
        (512, "off", 64, "adamw_torch_fused", "packed"),
        (512, "on", 64, "adamw_torch_fused", "packed"),
        (512, "off", 64, "adamw_8bit", "packed"),
        (512, "off", 16, "adamw_torch_fused", "padded"),
        (1024, "on", 4, "adamw_8bit", "padded"),
    ]
]
CPU_HELD_OUT = [  # measured after the constants were fitted to those above
    ("smollm2-135m", 768, "off", 32, "adamw_8bit", "packed"),
    ("smollm2-135m", 1536, "on", 32, "adamw_torch_fused", "packed"),
    ("smollm2-135m", 384, "on", 8, "adamw_torch_fused", "padded"),
]
CUDA = [
    (model, tokens, checkpointing, r, optimizer, batching)
    for model in ("mistral-7b", "llama-2-7b")
    for tokens, checkpointing, r, optimizer, batching in [
        (1024, "off", 16, "adamw_torch_fused", "packed"),
        (4096, "off", 16, "adamw_torch_fused", "packed"),
        (4096, "on", 16, "adamw_torch_fused", "packed"),
        (8192, "on", 16, "adamw_torch_fused", "packed"),
        (2048, "on", 64, "adamw_8bit", "packed"),
        (2048, "on", 64, "paged_adamw_8bit", "packed"),
        (2048, "off", 16, "adamw_torch_fused", "padded"),
    ]
]
FIELDS = ("model", "tokens_per_batch", "checkpointing", "r", "optimizer", "batching")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--only", help="numbers of the configurations to measure, such as 0,3; others keep their result"
    )
    parser.add_argument("--predict", action="store_true", help="predict anew for the peaks that were measured before")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure_on_cpu(json.loads(args.child))))
        return
    import torch

    if args.device == "cuda" and not args.predict and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here: run it with --device cpu, or on a machine with a GPU.")
    listed = CPU + CPU_HELD_OUT if args.device == "cpu" else CUDA
    configs: list[dict[str, Any]] = [dict(zip(FIELDS, values, strict=True)) for values in listed]
    chosen = range(len(configs)) if args.only is None else [int(number) for number in args.only.split(",")]
    file = RESULTS / f"memory_{args.device}.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() and (args.predict or args.only) else []
    rows = {json.dumps({name: row[name] for name in FIELDS}): row for row in kept}
    todo = [] if args.predict else [configs[number] for number in chosen]
    if args.device == "cpu":
        rows |= {json.dumps(config): config | _in_a_process(config) for config in todo}
    else:
        rows |= {json.dumps(config): config | peaks for config, peaks in zip(todo, measure_on_gpu(todo), strict=True)}
    write(file, args.device, list(rows.values()))


def write(file: Path, device: str, rows: list[dict[str, Any]]) -> None:
    """The table on the screen and in `file`, every prediction made by the formulas as they are now."""
    print(f"{'':60} {'predicted':>10} {'measured':>10} {'ratio':>6}   (MiB; * not used to fit the constants)")
    fitted = [dict(zip(FIELDS, values, strict=True)) for values in CPU]
    for row in rows:
        config = {name: row[name] for name in FIELDS}
        label = " ".join(str(value) for value in config.values())
        if "error" in row:
            print(f"{label:60} {row['error']}")
            continue
        row |= prediction(config, device, row["dtype"]) | {"fitted": config in fitted}
        row["ratio"] = round(row["predicted_bytes"] / row["measured_bytes"], 3)
        predicted, measured = row["predicted_bytes"] / 2**20, row["measured_bytes"] / 2**20
        print(f"{label:60} {predicted:10.0f} {measured:10.0f} {row['ratio']:6.3f} {'' if row['fitted'] else '*'}")
    ratios = [row["ratio"] for row in rows if "ratio" in row] or sys.exit("None of them ran.")
    print(f"{len(ratios)} of {len(rows)} ran; predicted over measured: {min(ratios):.3f} to {max(ratios):.3f}")
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": machine(device), "ratio": [min(ratios), max(ratios)], "rows": rows}
    file.write_text(json.dumps(result, indent=2) + "\n")


def prediction(values: dict[str, Any], device: str, dtype: str) -> dict[str, Any]:
    """What footprint.predict says, in bytes, and its parts."""
    import torch

    from finetune import model
    from finetune.config import TrainConfig, with_settings
    from finetune.footprint import predict
    from finetune.shapes import read_shapes, shapes_of

    config = with_settings(TrainConfig(), values)
    real = device == "cpu"
    shapes = read_shapes(model.fetch(config.model)) if real else shapes_of(architecture_of(config.model))
    need = predict(config, shapes, getattr(torch, dtype.removeprefix("torch.")), device)
    return {"predicted_bytes": need.total, "parts": asdict(need)}


def measure_on_cpu(values: dict[str, Any]) -> dict[str, Any]:
    """Train two steps in this process; its peak in bytes."""
    memory.use_large_pages()  # as a run does

    from finetune import model
    from finetune.base import add_lora, compute_dtype, load_base
    from finetune.config import TrainConfig, with_settings

    config = with_settings(TrainConfig(), values | {"steps": 2})
    base = load_base(model.fetch(config.model), trainable=True, packed=config.training.batching == "packed")
    train_two_steps(config, base, add_lora(base, config.lora))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"measured_bytes": peak, "dtype": str(compute_dtype())}


def measure_on_gpu(configs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train two steps of each; its peak in bytes."""
    import torch

    from finetune import attention
    from finetune.base import add_lora, compute_dtype
    from finetune.config import TrainConfig, with_settings

    dtype, loaded = compute_dtype(), ""
    base: Any = None
    for values in configs:
        config = with_settings(TrainConfig(), values | {"steps": 2, "compile": "off"})
        if loaded != config.model:
            del base
            free_memory()
            base, loaded = random_base(architecture_of(config.model), dtype, "cuda", True), config.model
        base.set_attn_implementation(attention.register() if config.training.batching == "packed" else "sdpa")
        free_memory()
        try:
            adapted = add_lora(base, config.lora)
            train_two_steps(config, base, adapted)
            reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
            yield {"measured_bytes": reserved, "allocated_bytes": allocated, "dtype": str(dtype)}
        except Exception as error:  # a configuration that fails must not cost the others
            yield {"error": f"{type(error).__name__}: {error}"[:300]}
        base = remove_lora(adapted)


def remove_lora(adapted: Any) -> Any:
    """The bare base again, its layers uncompiled and without checkpointing."""
    from finetune.compiling import uncompile_layers

    base = adapted.unload()
    vars(base).pop("peft_config", None)
    base.gradient_checkpointing_disable()
    uncompile_layers(base)
    return base.requires_grad_(False)


def free_memory() -> None:
    """Back to what is alive, and the peaks count anew."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def train_two_steps(config: Any, base: Any, adapted: Any) -> None:
    """Through PackTrainer, as a run does."""
    from finetune.data import Example, Row
    from finetune.loss import headless
    from finetune.progress import Progress
    from finetune.run import Job, Reporter
    from finetune.trainer import Data, PackTrainer, arguments

    row = Row("", "", "", "")
    ids = [3 + number % 97 for number in range(EXAMPLE)]
    example = Example(ids, EXAMPLE // 2, row)
    batches = [[example] * (config.training.tokens_per_batch // EXAMPLE)] * 2
    with tempfile.TemporaryDirectory() as work, headless(base) as head:
        folder = Path(work)
        args = arguments(config.training, 2, folder, 0)
        progress = Progress(Reporter(Job(folder)), 2)
        PackTrainer(adapted, head, Data(batches, []), args, config.training, 0, progress, folder).train()


def architecture_of(name: str) -> Any:
    """transformers' config of that model, from the sizes above."""
    from transformers import AutoConfig

    kind, sizes = CONFIGS[name]
    return AutoConfig.for_model(kind, **sizes, tie_word_embeddings=False)


def random_base(architecture: Any, dtype: Any, device: str, packed: bool) -> Any:
    """A frozen base of that architecture with random weights in NF4, quantized layer by layer: never whole in bf16."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoModelForCausalLM

    from finetune import attention

    implementation = attention.register() if packed else "sdpa"
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation=implementation)
    head = base.get_output_embeddings()
    for name, module in list(base.named_modules()):
        if isinstance(module, torch.nn.Linear) and module is not head:
            sizes = (module.in_features, module.out_features)
            layer = Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
            weight = torch.randn(sizes[1], sizes[0], dtype=dtype, device=device) * 0.02
            layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4").to(device)
            layer.support_avx512bf16_for_cpu = False
            base.set_submodule(name, layer)
    for module in base.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                values = torch.full_like(parameter, 0.02, device=device)
                setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.rand_like(buffer, device=device), persistent=False)
    base.is_loaded_in_4bit = True
    return base.requires_grad_(False).eval()


def machine(device: str) -> dict[str, Any]:
    """What it was measured on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "capability": torch.backends.cpu.get_cpu_capability()}
    found |= {"libc": " ".join(platform.libc_ver()), "python": platform.python_version()}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found | {name: version(name) for name in VERSIONS}


def _in_a_process(config: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory_cpu", "--child", json.dumps(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
