"""Base and tuned in one pass, against two generations one after the other with transformers' `generate`.

    python -m benchmarks.compare_cpu [--tokens 48] [--repeats 5]

Both sides answer the same prompt greedily with smollm2-135m in NF4 for the same number of tokens. The peer is PEFT:
`generate` within `disable_adapter()`, then `generate` with the adapter. Times are interleaved, and the ratio is taken
within a repeat. Memory is the resident set less what it was before the base was loaded, each side in a process of its
own that uses large pages as the page and the commands do: "peak" is the highest that the kernel saw while they answered
(VmHWM), the prompt's pass included; "held" the highest between two tokens once the allocator has returned what is free.
From process to process the same answers' peak differs by tens of MiB, as large pages come by chance: so each side's is
the median of several, and all are kept in the result.
Bars: pair time at most 0.7 times (aim 0.5); peak memory at most 1.05 times plus the adapter. What is held is shown
beside it, and is no bar.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel

from finetune import memory
from finetune.base import add_lora, load_base, load_tokenizer
from finetune.config import Lora
from finetune.model import fetch
from finetune.prompt import Template, Turn, template
from inference.decode import decode
from inference.lora import Placed, load_adapter
from inference.sampling import Sampling

RESULTS = Path(__file__).parent / "results" / "compare_cpu.json"
PROMPT = "Write a long story about a bird that learns to sing, and tell where it lives and whom it meets."
MEMORY_REPEATS = 5
TIME_BAR, MEMORY_BAR = 0.7, 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=["one", "pair"], help=argparse.SUPPRESS)
    parser.add_argument("--adapter", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(_memory(args.memory_of, args.adapter, args.tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        _make_adapter(adapter)
        result = _times(adapter, args.tokens, args.repeats) | _memories(adapter, args.tokens)
    result["bars"] = {"time_ratio": TIME_BAR, "memory_ratio_peak_less_adapter": MEMORY_BAR}
    result["holds"] = result["time_ratio"] <= TIME_BAR and result["memory_ratio_peak_less_adapter"] <= MEMORY_BAR
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _make_adapter(folder: Path) -> None:
    """A rank 16 adapter on every linear layer, with weights that change what is said."""
    torch.manual_seed(0)
    adapted = add_lora(load_base(fetch("smollm2-135m")), Lora(r=16))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)


def _endless(tokenizer: Any) -> Template:
    """The chat template without an end: both sides then write exactly as many tokens as they may."""
    chosen = template(tokenizer, "chat")
    return Template(chosen.id, tokenizer, chosen.closing, (), frozenset())


def _times(adapter: Path, tokens: int, repeats: int) -> dict[str, Any]:
    source = fetch("smollm2-135m")
    base, peer_base, tokenizer = load_base(source), load_base(source), load_tokenizer(source)
    peer = PeftModel.from_pretrained(peer_base, adapter).eval()
    chosen = _endless(tokenizer)
    prompt = chosen.encode_prompt([Turn(PROMPT)])
    pair = [Placed(load_adapter(adapter, base), [0.0, 1.0])]
    ids = torch.tensor([prompt])

    def ours() -> list[str]:
        *_, last = decode(base, chosen, [prompt, prompt], pair, Sampling(), tokens)
        return [answer.text for answer in last]

    def theirs() -> list[str]:
        said = []
        for context in (peer.disable_adapter(), contextlib.nullcontext()):
            with context, torch.inference_mode():
                out = peer.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=tokens,
                    max_new_tokens=tokens,
                    eos_token_id=[],
                    pad_token_id=tokenizer.pad_token_id,
                )
            said.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip())
        return said

    same = ours() == theirs()  # also the warm-up
    seconds = [(_seconds(ours), _seconds(theirs)) for _ in range(repeats)]
    ratios = [a / b for a, b in seconds]
    return {
        "hardware": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        "dtype": str(base.dtype),
        "prompt_tokens": len(prompt),
        "new_tokens": tokens,
        "same_text_as_generate": same,
        "pair_seconds": statistics.median(a for a, _ in seconds),
        "two_generations_seconds": statistics.median(b for _, b in seconds),
        "time_ratio": statistics.median(ratios),
        "time_ratios": ratios,
    }


def _seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _memories(adapter: Path, tokens: int) -> dict[str, Any]:
    sizes: dict[str, list[dict[str, float]]] = {"one": [], "pair": []}
    for kind in list(sizes) * MEMORY_REPEATS:
        command = [sys.executable, "-m", "benchmarks.compare_cpu", "--memory-of", kind, "--adapter", str(adapter)]
        env = os.environ | {memory.LARGE_PAGES: "1"}
        done = subprocess.run([*command, "--tokens", str(tokens)], capture_output=True, text=True, check=True, env=env)
        sizes[kind].append(json.loads(done.stdout.splitlines()[-1]))
    adapter_mib = (adapter / "adapter_model.safetensors").stat().st_size / 2**20
    found: dict[str, Any] = {"adapter_mib": adapter_mib}
    for what in ("held", "peak"):
        every = {kind: sorted(size[what] for size in found_sizes) for kind, found_sizes in sizes.items()}
        one, pair = (statistics.median(every[kind]) for kind in ("one", "pair"))
        found |= {f"one_{what}_mib": one, f"pair_{what}_mib": pair, f"every_{what}_mib": every}
        found[f"memory_ratio_{what}_less_adapter"] = (pair - adapter_mib) / one
    return found


def _memory(kind: str, adapter: Path, tokens: int) -> dict[str, float]:
    """MiB that the base and its answers take: the base alone in one row, or base and tuned in two."""
    process = psutil.Process()
    source = fetch("smollm2-135m")
    tokenizer = load_tokenizer(source)
    chosen = _endless(tokenizer)
    prompt = chosen.encode_prompt([Turn(PROMPT)])
    _return_free_memory()
    before = process.memory_info().rss
    base = load_base(source)
    rows = 1 if kind == "one" else 2
    on = [] if kind == "one" else [Placed(load_adapter(adapter, base), [0.0, 1.0])]
    _return_free_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark counts from here
    for _ in decode(base, chosen, [prompt] * rows, on, Sampling(), tokens):
        pass
    peak, held = _highest_resident(), 0
    for _ in decode(base, chosen, [prompt] * rows, on, Sampling(), tokens):
        _return_free_memory()
        held = max(held, process.memory_info().rss)
    return {"held": (held - before) / 2**20, "peak": (peak - before) / 2**20}


def _highest_resident() -> int:
    """Bytes: VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _return_free_memory() -> None:
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


if __name__ == "__main__":
    main()
