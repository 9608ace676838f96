"""Loading a 7B base in 4 bits: peak over loaded GPU memory, and seconds. python -m benchmarks.load_gpu

Random weights in Mistral-7B's shape are written to disk in bf16 shards as a hub model's are, and loaded as a run does.
Bars: the peak at most 1.2 times what is loaded; loaded at most 4.4 GiB.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from benchmarks.memory_cpu import architecture_of
from evaluation.provenance import hardware, versions
from finetune.base import device, load_base
from finetune.model import Source

RESULTS = Path(__file__).parent / "results" / "load_gpu.json"
SHARD_BYTES = 2 * 2**30
BARS = {"peak over loaded": 1.2, "loaded GiB": 4.4}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here.")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_checkpoint(folder, architecture_of("mistral-7b"))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        base = load_base(Source(folder, None, "random weights", "0"), trainable=True)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    loaded, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    result = {
        "hardware": hardware(),
        "versions": versions(("torch", "transformers", "bitsandbytes")),
        "seconds": seconds,
        "loaded_gib": loaded / 2**30,
        "peak_gib": peak / 2**30,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "measured": {"peak over loaded": peak / loaded, "loaded GiB": loaded / 2**30},
        "bars": BARS,
        "parameters": sum(p.numel() for p in base.parameters()),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def write_checkpoint(folder: Path, architecture: Any) -> None:
    """A model folder with random weights in that shape, sharded as hub models are."""
    architecture.architectures = ["MistralForCausalLM"]
    architecture.dtype = torch.bfloat16
    architecture.save_pretrained(folder)
    index: dict[str, str] = {}
    for number, shard in enumerate(_shards(architecture)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        index |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _shards(architecture: Any) -> Iterator[dict[str, torch.Tensor]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, parameter in model.named_parameters():
        shard[name] = (torch.randn(parameter.shape, device=device(), dtype=torch.bfloat16) * 0.02).cpu()
        size += shard[name].nbytes
        if size > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


if __name__ == "__main__":
    main()
