"""python -m benchmarks.evaluate_cpu: an evaluation of base and tuned, ours against transformers row by row.

The peer is the usual way: one prompt at a time through `generate`, first all of them with the adapter off, then all
with it on, and the likelihood of each reference by a forward of its own. Both sides use the same 4-bit base, rows,
greedy decoding, longest answer and metrics; loading is in neither time, and nothing comes from a cache. The peer may be
measured on fewer rows (`--peer-rows`, the categories in proportion); its time is then scaled, and the result says so.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import StoppingCriteria, StoppingCriteriaList

from evaluation.answers import Said, greedy_answers, prompts_of
from evaluation.batches import Batched, Item
from evaluation.columns import Side
from evaluation.likelihood import Likelihood, response_nll
from evaluation.measures import chosen_measures
from evaluation.provenance import hardware, versions
from evaluation.samples import make_samples
from evaluation.scoring import score
from finetune import data, model
from finetune.base import add_lora, context_limit, load_base, load_tokenizer
from finetune.config import Holdout, Lora
from finetune.prompt import Template, template
from finetune.run import find_run
from inference.lora import load_adapter

BAR = 0.4  # ours over the peer's time, at most
RESULT = Path(__file__).parent / "results" / "evaluate_cpu.json"


class Task(NamedTuple):
    """What both sides do."""

    source: model.Source
    template: Template
    examples: list[data.Example]
    adapter: Path
    max_new_tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate_cpu")
    parser.add_argument("--rows", type=int, default=200, help="held-out rows to score")
    parser.add_argument(
        "--peer-rows", type=int, default=None, help="rows that the peer is measured on; all if left out"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--model", default="smollm2-135m", help="base")
    parser.add_argument("--data", default=None, help="rows; Dolly or our sample if left out")
    parser.add_argument("--run", default=None, help="the run whose adapter is scored; a random one if left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = _task(args, Path(folder))
        peer_rows = min(args.peer_rows or len(task.examples), len(task.examples))
        ours = _timed(lambda: _ours(task))
        scale = len(task.examples) / peer_rows
        peer = _timed(lambda: _peer(task._replace(examples=_some(task.examples, peer_rows)))) * scale
    result = {
        "what": "evaluation of base and tuned: likelihood, greedy answers, all metrics and statistics",
        "rows": len(task.examples),
        "max_new_tokens": args.max_new_tokens,
        "adapter": args.run or "random",
        "ours_seconds": round(ours, 1),
        "peer_seconds": round(peer, 1),
        "peer": "transformers generate and forward, row by row, one model after the other",
        "peer_measured_on_rows": peer_rows,
        "peer_is_scaled": peer_rows < len(task.examples),
        "ratio": round(ours / peer, 3),
        "bar": BAR,
        "hardware": hardware(),
        "versions": versions(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    scaled = f" (measured on {peer_rows} rows and scaled)" if result["peer_is_scaled"] else ""
    print(f"ours {ours:.1f} s, transformers row by row {peer:.1f} s{scaled}: {ours / peer:.3f} times (bar: {BAR})")


def _task(args: argparse.Namespace, folder: Path) -> Task:
    """Rows from the test part where it is large enough, else from all: here they are timed, not judged."""
    source = model.fetch(args.model)
    rows = data.load_rows(args.data).rows
    test = data.split_rows(rows, Holdout()).test
    chosen = template(load_tokenizer(source))
    limit = context_limit(source)
    kept = data.take(test if len(test) >= args.rows else rows, args.rows)
    examples = data.encode_rows(kept, chosen, limit, limit).examples
    adapter = find_run(args.run).adapter if args.run else _random_adapter(source, folder)
    return Task(source, chosen, examples, adapter, args.max_new_tokens)


def _random_adapter(source: model.Source, folder: Path) -> Path:
    torch.manual_seed(0)
    adapted = add_lora(load_base(source), Lora())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(folder)
    return folder


def _some(examples: list[data.Example], count: int) -> list[data.Example]:
    chosen = set(data.take([example.row for example in examples], count))
    return [example for example in examples if example.row in chosen][:count]


def _timed(prepare: Callable[[], Callable[[], None]]) -> float:
    """Seconds of what `prepare` returns; loading is in `prepare`."""
    work = prepare()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ours(task: Task) -> Callable[[], None]:
    base = load_base(task.source)
    sides = [Side(None, 0.0), Side(load_adapter(task.adapter, base), 1.0)]
    rows = [example.row for example in task.examples]
    pad_id = task.template.tokenizer.pad_token_id or 0
    greedy_answers(base, task.template, rows[:1], sides, 2)  # bitsandbytes packs the weights at its first forward

    def work() -> None:
        likelihoods = response_nll(base, task.examples, sides, pad_id)
        answers = greedy_answers(base, task.template, rows, sides, task.max_new_tokens)
        _judge(rows, likelihoods, answers)

    return work


def _peer(task: Task) -> Callable[[], None]:
    peer = PeftModel.from_pretrained(load_base(task.source), str(task.adapter)).eval()
    prompts = prompts_of(task.template, [example.row for example in task.examples])

    def one_model(column: int) -> tuple[dict[Item, Any], dict[Item, Any]]:
        nll, said = {}, {}
        for i, example in enumerate(task.examples):
            nll[Item(i, column)] = _plain_likelihood(peer, example)
            said[Item(i, column)] = _plain_answer(peer, task, prompts[i])
        return nll, said

    def work() -> None:
        with peer.disable_adapter():
            base_nll, base_said = one_model(0)
        tuned_nll, tuned_said = one_model(1)
        rows = [example.row for example in task.examples]
        _judge(rows, Batched(base_nll | tuned_nll, [0, 0], 1), Batched(base_said | tuned_said, [0, 0], 1))

    with torch.inference_mode():
        peer(torch.tensor([prompts[0]]))
    return work


@torch.inference_mode()
def _plain_likelihood(peer: Any, example: data.Example) -> dict[str, Any]:
    out = peer(input_ids=torch.tensor([example.ids]), labels=torch.tensor([example.labels]))
    tokens = sum(label != data.IGNORED for label in example.labels)
    return Likelihood(out.loss.item() * tokens, tokens)._asdict()


class _Stop(StoppingCriteria):
    """The template's stop strings; its stop ids are generate's own business."""

    def __init__(self, of: Template, prompt_length: int) -> None:
        self.of, self.prompt_length = of, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        text = self.of.tokenizer.decode(input_ids[0, self.prompt_length :]) if self.of.stop_strings else ""
        return torch.tensor([any(stop in text for stop in self.of.stop_strings)])


@torch.inference_mode()
def _plain_answer(peer: Any, task: Task, prompt: list[int]) -> dict[str, Any]:
    stops = sorted(task.template.stop_ids)
    ids = torch.tensor([prompt])
    out = peer.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=task.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=task.template.tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([_Stop(task.template, len(prompt))]),
    )[0, len(prompt) :].tolist()
    ended = len(out) < task.max_new_tokens or out[-1] in stops
    text = task.template.tokenizer.decode(out, skip_special_tokens=True)
    cut = min((at for stop in task.template.stop_strings if (at := text.find(stop)) >= 0), default=len(text))
    return Said(text[:cut].strip(), len(out), "end" if ended else "length")._asdict()


def _judge(rows: list[data.Row], likelihoods: Batched, answers: Batched) -> None:
    score(make_samples(rows, [""] * len(rows), likelihoods, answers, 2, chosen_measures("all")).samples)


if __name__ == "__main__":
    main()
