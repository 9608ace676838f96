"""Base and tuned in one pass on a GPU, in Mistral-7B's shape, against transformers' ways and the card's bandwidth.

    python -m benchmarks.compare_gpu

Random weights in NF4, a random rank 16 adapter on every linear layer. Peers: `generate` for the base alone, `generate`
with PEFT's `adapter_names` for both in one batch, and two generations in turn. Ours: the captured step, and the same
loop uncaptured, whose tokens must be the same. Speed is that of decoding, after the first token.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel

from benchmarks.memory_cpu import architecture_of, free_memory, random_base
from evaluation.provenance import hardware, versions
from finetune.base import add_lora
from finetune.config import Lora
from finetune.prompt import Template
from finetune.trainer import save_adapter
from inference.captured import Captures
from inference.decode import decode
from inference.lora import Placed, load_adapter
from inference.sampling import Sampling

RESULTS = Path(__file__).parent / "results" / "compare_gpu.json"
BARS = {
    "pair, times adapter_names": 15,
    "pair, times two generations": 15,
    "base, times generate": 14,
    "first token of both over a plain forward": 1.5,
    "memory of the second column": 0.03,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64, help="answer length of ours")
    parser.add_argument("--peer-tokens", type=int, default=12, help="answer length of the peers")
    args = parser.parse_args()
    base = random_base(architecture_of("mistral-7b"), torch.bfloat16, "cuda", False)
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        _make_adapter(base, adapter)
        found = _ours(base, adapter, args.prompt_tokens, args.tokens)
        found |= _peers(base, adapter, args.prompt_tokens, args.peer_tokens)
    found["ratios"] = {
        "pair, times adapter_names": found["adapter_names_ms"] / found["pair_ms"],
        "pair, times two generations": found["two_generations_ms"] / found["pair_ms"],
        "base, times generate": found["generate_ms"] / found["base_ms"],
        "first token of both over a plain forward": found["first_token_ms"] / found["plain_forward_ms"],
        "memory of the second column": found["pair_gib"] / found["base_gib"] - 1,
    }
    record = {"hardware": hardware(), "versions": versions(("torch", "transformers", "peft", "bitsandbytes"))}
    result = record | vars(args) | found | {"bars": BARS}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def _make_adapter(base: Any, folder: Path) -> None:
    torch.manual_seed(1)
    adapted = add_lora(base, Lora())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    save_adapter(adapted, folder)
    adapted.unload()
    vars(base).pop("peft_config", None)


def _template() -> Template:
    """One that nothing ends, for random tokens."""
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **_: " ".join(map(str, ids)))
    return Template("chat", tokenizer, "", (), frozenset())


def _ours(base: Any, folder: Path, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    adapter = load_adapter(folder, base)
    pair = [Placed(adapter, [0.0, 1.0])]
    prompt = torch.randint(3, 30_000, (prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    found: dict[str, Any] = {}
    said = {}
    for name, rows, placed in (("base", 1, []), ("pair", 2, pair)):
        captures = Captures()
        free_memory()
        runs = [_answer(base, rows, prompt, placed, tokens, captures) for _ in range(3)]
        found[f"{name}_ms"] = statistics.median(answer.step_ms for answer in runs[1:])
        found[f"{name}_first_call_seconds"] = runs[0].seconds
        found[f"{name}_gib"] = torch.cuda.max_memory_reserved() / 2**30
        found[f"{name}_kernel_ms"] = _kernels(lambda c=captures: c._kept.graph.replay())  # type: ignore[misc]
        said[name] = runs[0].texts
        found["first_token_ms"] = min(answer.first_ms for answer in runs[1:])
    plain = [_answer(base, 2, prompt, pair, 16, None) for _ in range(2)][-1]
    found["pair_uncaptured_ms"] = plain.step_ms
    found["same_tokens_as_uncaptured"] = [t[: len(p)] == p for t, p in zip(said["pair"], plain.texts, strict=True)]
    ids = torch.tensor([prompt, prompt], device="cuda")
    with torch.inference_mode():
        forwards = [_ms(lambda: base(ids, use_cache=True, logits_to_keep=1)) for _ in range(3)]
    return found | {"plain_forward_ms": min(forwards)}


def _answer(base: Any, rows: int, prompt: list[int], placed: Any, tokens: int, captures: Captures | None) -> Any:
    torch.cuda.synchronize()
    started = time.perf_counter()
    marks = []
    for answers in decode(base, _template(), [prompt] * rows, placed, Sampling(), tokens, captures=captures):
        marks.append(time.perf_counter())
        last = answers
    steps = [1000 * (b - a) for a, b in pairwise(marks[1:])]  # the first one may capture
    return SimpleNamespace(
        step_ms=statistics.median(steps),
        first_ms=1000 * (marks[0] - started),
        seconds=marks[-1] - started,
        texts=[answer.text for answer in last],
    )


def _peers(base: Any, folder: Path, prompt_tokens: int, tokens: int) -> dict[str, float]:
    peer = PeftModel.from_pretrained(base, folder).eval()
    one = torch.randint(3, 30_000, (1, prompt_tokens), generator=torch.Generator().manual_seed(0)).cuda()

    def step_ms(ids: torch.Tensor, **named: Any) -> float:
        def run(new: int) -> float:
            mask = torch.ones_like(ids)
            length = {"min_new_tokens": new, "max_new_tokens": new}
            ends = {"eos_token_id": [], "pad_token_id": 0}
            return _ms(lambda: peer.generate(ids, attention_mask=mask, do_sample=False, **length, **ends, **named))

        run(2)
        return (run(tokens + 1) - run(1)) / tokens

    with peer.disable_adapter():
        alone = step_ms(one)
    both = step_ms(one.repeat(2, 1), adapter_names=["__base__", "default"])
    with contextlib.nullcontext():
        tuned = step_ms(one)
    return {"generate_ms": alone, "adapter_names_ms": both, "two_generations_ms": alone + tuned}


def _ms(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


def _kernels(replay: Callable[[], None]) -> float:
    """Milliseconds of one replay, launched back to back so that no host is waited for."""

    def eight() -> None:
        for _ in range(8):
            replay()

    eight()
    return min(_ms(eight) / 8 for _ in range(2))


if __name__ == "__main__":
    main()
