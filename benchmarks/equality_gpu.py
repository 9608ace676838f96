"""On a GPU, with SmolLM2-135M's real weights: is what is fast also what is right? python -m benchmarks.equality_gpu

Packed against single examples; the chunked loss against eager cross-entropy (and Liger's fused one, where it is
installed) in value, gradient, time and memory; compiled layers against uncompiled ones; the captured decode step
against the plain loop over 20 prompts; and quick-demo's 30 steps on Dolly rows, whose held-out loss a CPU run should
share: `--data ROWS --cpu-loss X`, where X is what `--held-out ADAPTER` printed for the CPU run's adapter.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.train_cpu import held_out_loss
from evaluation.provenance import hardware, versions
from finetune import compiling
from finetune import data as rows_of
from finetune.base import add_lora, load_base, load_tokenizer
from finetune.config import Lora
from finetune.data import Example
from finetune.loss import headless, model_inputs, summed_loss, supervised_hidden
from finetune.model import fetch
from finetune.packing import Fixed, collate_packed, pack
from finetune.prompt import Turn, template
from inference.captured import Captures
from inference.decode import decode
from inference.lora import Placed, load_adapter
from inference.sampling import Sampling

RESULTS = Path(__file__).parent / "results" / "equality_gpu.json"
TOKENS, WIDTH, VOCABULARY = 2048, 4096, 32000  # of the loss, as in a 7B model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of Dolly rows")
    parser.add_argument("--held-out", type=Path, help="only print the held-out loss of that adapter, and of the base")
    parser.add_argument("--cpu-loss", type=float, help="held-out loss of the CPU run's adapter")
    args = parser.parse_args()
    source = fetch("smollm2-135m")
    tokenizer = load_tokenizer(source)
    if args.held_out:
        print(json.dumps(held_out(source, tokenizer, args.data, args.held_out)))
        return
    rows = rows_of.take(rows_of.load_rows(args.data).rows, 200)
    examples = rows_of.encode_rows(rows, template(tokenizer), 1024, 1024).examples
    found: dict[str, Any] = {"hardware": hardware(), "versions": versions(("torch", "transformers", "bitsandbytes"))}
    parts: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("packed", lambda: packed(source, examples)),
        ("loss", losses),
        ("compiled", lambda: compiled(source, examples)),
        ("learning", lambda: learning(source, tokenizer, args.data, args.cpu_loss)),
        ("captured", lambda: captured(source, tokenizer, rows)),
    )
    for name, part in parts:
        try:
            found[name] = part()
        except Exception as error:  # one part that fails must not cost the others
            found[name] = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(name, json.dumps(found[name]), flush=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def packed(source: Any, examples: list[Example]) -> dict[str, Any]:
    """Logits of examples in a pack through the variable-length kernel, against each alone through torch's own."""
    pack_base, plain = load_base(source, trainable=True), load_base(source)
    batch = _on_gpu(collate_packed([examples[:12]]))
    worst, same, count, at = 0.0, 0, 0, 0
    with torch.no_grad():
        together = pack_base(**model_inputs(batch), use_cache=False).logits[0]
        for example in examples[:12]:
            alone = plain(torch.tensor([example.ids], device="cuda")).logits[0]
            mine = together[at : at + len(example.ids)]
            at += len(example.ids)
            worst = max(worst, (mine.log_softmax(-1) - alone.log_softmax(-1)).abs().mean().item())
            same += int((mine.argmax(-1) == alone.argmax(-1)).sum())
            count += len(example.ids)
    return {"worst_mean_abs_log_p_difference": worst, "same_likeliest_token": same / count}


def losses() -> dict[str, Any]:
    """Value and gradient of the summed loss over random hidden states, in bf16, against fp32."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16, generator=generator)
    head = torch.randn(VOCABULARY, WIDTH, device="cuda", dtype=torch.bfloat16, generator=generator) * 0.02
    targets = torch.randint(0, VOCABULARY, (TOKENS,), device="cuda", generator=generator)

    def eager(hidden: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy((hidden @ head.T).float(), targets, reduction="sum")

    exact = hidden.float().requires_grad_()
    truth = torch.nn.functional.cross_entropy(exact @ head.float().T, targets, reduction="sum")
    truth.backward()
    ways: dict[str, Any] = {"eager": eager, "chunked": lambda hidden: summed_loss(hidden, head, targets)}
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        ways["liger"] = lambda hidden: fused(head, hidden, targets)
    except ImportError:
        pass
    found = {}
    for name, way in ways.items():
        for _ in range(3):  # the last one counts
            own = hidden.clone().requires_grad_()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before, started = torch.cuda.memory_allocated(), time.perf_counter()
            loss = way(own)
            loss.backward()
            torch.cuda.synchronize()
        assert own.grad is not None and exact.grad is not None
        found[name] = {
            "value_error": abs(loss.item() / truth.item() - 1),
            "gradient_error": ((own.grad.float() - exact.grad).norm() / exact.grad.norm()).item(),
            "milliseconds": 1000 * (time.perf_counter() - started),
            "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20,
        }
    return found


def compiled(source: Any, examples: list[Example]) -> dict[str, Any]:
    """Loss and gradients of a pack with compiled layers, against the same uncompiled."""
    batches = pack(examples, 1024)[:4]
    fixed = Fixed.of(batches, 1024)
    torch.manual_seed(0)
    base = load_base(source, trainable=True)
    adapted = add_lora(base, Lora()).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)

    def gradients() -> tuple[float, Tensor]:
        adapted.zero_grad()
        total = 0.0
        with headless(base) as head:
            for batch in batches:
                with torch.autocast("cuda", torch.bfloat16):
                    hidden, targets = supervised_hidden(adapted, _on_gpu(collate_packed([batch], fixed)))
                    loss = summed_loss(hidden, head, targets)
                loss.backward()
                total += loss.item()
        return total, torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])

    plain, compared = gradients(), []
    compiling.compile_layers(adapted)
    compared.append(gradients())
    compiling.uncompile_layers(adapted)
    (loss, gradient), (their_loss, theirs) = plain, compared[0]
    return {
        "loss_error": abs(their_loss / loss - 1),
        "gradient_error": ((theirs - gradient).norm() / gradient.norm()).item(),
    }


def captured(source: Any, tokenizer: Any, rows: list[Any]) -> dict[str, Any]:
    """Greedy answers of base and tuned by the captured step and by the plain loop, over 20 prompts."""
    base, chosen = load_base(source), template(tokenizer)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "adapter"
        torch.manual_seed(1)
        adapted = add_lora(base, Lora())
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        adapted.save_pretrained(folder)
        base = adapted.unload()
        vars(base).pop("peft_config", None)
        pair = [Placed(load_adapter(folder, base), [0.0, 1.0])]
    captures, same, tokens = Captures(), 0, 0
    for row in rows[:20]:
        prompts = [chosen.encode_prompt([Turn(row.instruction, row.context)])] * 2
        *_, graph = decode(base, chosen, prompts, pair, Sampling(), 64, captures=captures)
        *_, plain = decode(base, chosen, prompts, pair, Sampling(), 64)
        same += sum(a.text == b.text for a, b in zip(graph, plain, strict=True))
        tokens += sum(a.tokens for a in graph)
    return {"same_answers": same, "of": 40, "tokens": tokens, "captures": captures.count}


def learning(source: Any, tokenizer: Any, data: str, cpu_loss: float | None) -> dict[str, Any]:
    """quick-demo through the command line, and its held-out loss."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "finetune", "train", "--preset", "quick-demo", "--data", data]
        started = time.perf_counter()
        done = subprocess.run(command, env=os.environ | {"TANDEM_RUNS": runs}, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        assert done.returncode == 0, done.stderr[-400:]
        adapter = Path(json.loads(done.stdout.splitlines()[-1])["adapter"])
        status = json.loads((adapter.parent / "status.json").read_text())
        found = held_out(source, tokenizer, data, adapter) | {"seconds": seconds, "mfu": status.get("mfu")}
    return found | ({"over_cpu": found["tuned"] / cpu_loss} if cpu_loss else {})


def held_out(source: Any, tokenizer: Any, data: str, adapter: Path) -> dict[str, Any]:
    """Held-out response loss of the base and of the adapter on it, as benchmarks/train_cpu.py takes it."""
    from peft import PeftModel

    base = load_base(source)
    before = held_out_loss(base, base, tokenizer, data, "auto")
    return {
        "base": before,
        "tuned": held_out_loss(base, PeftModel.from_pretrained(base, adapter), tokenizer, data, "auto"),
    }


def _on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to("cuda") if isinstance(value, Tensor) else value for name, value in batch.items()}


if __name__ == "__main__":
    main()
