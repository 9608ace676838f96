"""A chat, a run and a merge of a 7B model on one card of 24 or 12 GB: python -m benchmarks.share_gpu

A model folder with random weights in Mistral-7B's shape; the rest of a larger card's memory is held by another process.
On each card: a prompt; a run is started as from the page; prompts go on while it trains, a checkpoint of it among the
columns as soon as there is one; a prompt after its end. What is asked: everybody is answered or told in a sentence why
not, the run finishes, and nobody runs out of memory. Then the first run is merged, and the merge's memory is watched.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.load_gpu import write_checkpoint
from benchmarks.memory_cpu import architecture_of
from benchmarks.tokenizer import byte_level_bpe
from evaluation.provenance import hardware, versions
from finetune import room
from finetune.config import TrainConfig, with_settings
from finetune.job import start_training
from finetune.prompt import Turn
from finetune.run import ENDED, Run
from inference.columns import BASE, resolve, subject
from inference.engine import Engine
from inference.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "share_gpu.json"
GIB = 2**30
QUESTION = "Name three birds that live near the sea, and say what each of them eats."
HOLD = "import sys, torch; kept = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device='cuda'); print(1, flush=True); sys.stdin.read()"  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a model of two layers, to try this out")
    parser.add_argument("--cards", type=float, nargs="*", default=[24, 12], help="their memory, GiB")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--no-merge", action="store_true", help="leave the merge out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        os.environ["TANDEM_RUNS"] = str(Path(work) / "runs")
        folder = Path(work) / "model"
        folder.mkdir()
        _write_model(folder, args.tiny)
        _say("the model is written")
        found, runs = {}, []
        for card in args.cards:
            with _card(card):
                run, seen = _share(folder, args.steps)
            runs.append(run)
            found[f"{card:g} GiB"] = seen
            _say(json.dumps({card: seen}))
            _write(found, args.tiny)
        if args.no_merge:
            return
        found["merge"] = _merge(runs[0], folder)
        _say(json.dumps(found["merge"]))
        _write(found, args.tiny)


def _write(found: dict[str, Any], tiny: bool) -> None:
    """What was found so far: a later part may not come to its end."""
    result = {"hardware": hardware(), "versions": versions(("torch", "transformers", "bitsandbytes"))} | found
    if not tiny:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def _write_model(folder: Path, tiny: bool) -> None:
    architecture = architecture_of("mistral-7b")
    architecture.max_position_embeddings = 4096
    if tiny:
        architecture.num_hidden_layers, architecture.hidden_size, architecture.intermediate_size = 2, 256, 512
        architecture.num_attention_heads, architecture.num_key_value_heads, architecture.head_dim = 4, 2, 64
    write_checkpoint(folder, architecture)
    inner = byte_level_bpe(8000, ["<unk>", "<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)


@contextmanager
def _card(gib: float) -> Iterator[None]:
    """As on a card of that size: the rest of this one is taken."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    driver = 600 * 2**20  # of the holder's own context
    taken = int(free - gib * GIB + (total - free)) - driver
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(taken)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline()
    try:
        yield
    finally:
        holder.kill()
        holder.wait()


def _share(folder: Path, steps: int) -> tuple[Run, dict[str, Any]]:
    engine = Engine()
    seen: dict[str, Any] = {"free_gib_at_first": _free(), "prompts": []}
    _ask(engine, folder, seen, "before")
    settings = {
        "model": str(folder),
        "rows": 200,
        "steps": steps,
        "tokens_per_batch": 2048,
        "validation_rows": 8,
        "save_every_steps": max(1, steps // 4),
        "template": "dolly",
    }
    run = start_training(with_settings(TrainConfig(), settings), "share")
    messages: list[str] = []
    left = asked_early = False
    while run.status()["state"] not in ENDED:
        status = run.status()
        if status.get("message") and status["message"] not in messages:
            messages.append(status["message"])
        left = left or (torch.cuda.is_available() and not room.chat_is_there())
        if status.get("message") == "loading the base in 4 bits" and not asked_early:
            asked_early = True
            _ask(engine, folder, seen, "while it loads")
        if status["state"] == "running":
            _ask(engine, folder, seen, f"at step {status.get('step', 0)}", run)
        time.sleep(0.3)
    _ask(engine, folder, seen, "after", run)
    status = run.status()
    memory = [event["gpu_memory_bytes"] / GIB for event in run.metrics()[0] if "gpu_memory_bytes" in event]
    facts = run.facts()
    seen |= {
        "run": status["state"],
        "error": status.get("error"),
        "messages": messages,
        "chat_left_for_the_run": left,
        "checkpointing": facts.get("chosen", {}).get("training", {}).get("checkpointing"),
        "tokens_per_second": status.get("tokens_per_second"),
        "steps": status.get("step"),
        "gpu_in_use_gib_at_most": max(memory, default=None),
    }
    engine.release().result()
    return run, seen


def _ask(engine: Engine, folder: Path, seen: dict[str, Any], when: str, run: Run | None = None) -> None:
    """A prompt to the base and, where there is one, to the run's newest weights; answers or the sentence are noted."""
    columns, asked = [BASE], None
    if run and (run.has_adapter() or run.checkpoints()):
        columns += resolve(run, "tuned" if run.has_adapter() else f"checkpoint-{run.checkpoints()[0][0]}")
        asked = subject(run)
    started = time.perf_counter()
    note: dict[str, Any] = {"when": when, "columns": len(columns)}
    try:
        histories = [[Turn(QUESTION)]] * len(columns)
        sha256 = asked.sha256 if asked else None
        stream = engine.compare(str(folder), None, "dolly", columns, histories, Sampling(), 32, sha256)
        messages = []
        for update in stream:
            message = update.message.replace(str(folder), "the model")
            if message and message not in messages:
                messages.append(message)
        note |= {
            "tokens": [answer.tokens for answer in update.answers],
            "messages": [message.replace(str(folder), "the model") for message in messages],
        }
    except ValueError as error:
        note["refused"] = str(error).replace(str(folder), "the model")
    seen["prompts"].append(note | {"seconds": round(time.perf_counter() - started, 2), "free_gib": _free()})


def _free() -> float | None:
    return round(torch.cuda.mem_get_info()[0] / GIB, 2) if torch.cuda.is_available() else None


def _merge(run: Run, folder: Path) -> dict[str, Any]:
    """Peak memory of the merge's process (what is its own, without mapped files) and of the GPU, and its time."""
    before, started = _free(), time.perf_counter()
    command = [sys.executable, "-m", "finetune", "merge", run.id, "--rows", "4"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    own, least = 0, before
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        own = max([own, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
        least = min(least, _free() or least) if least is not None else None
        time.sleep(0.1)
    said = process.stderr.read() if process.stderr else ""
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return {
        "exit": process.returncode,
        "said": said.strip().splitlines()[-1:],
        "seconds": round(time.perf_counter() - started, 1),
        "own_memory_gib": own / GIB,
        "gpu_gib": before - least if before is not None and least is not None else None,
        "base_gib": sum(sizes) / GIB,
        "largest_shard_gib": max(sizes) / GIB,
    }


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
