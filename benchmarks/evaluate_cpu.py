"""python -m benchmarks.evaluate_cpu: an evaluation of base and tuned, ours against transformers row by row.

The peer is the usual way: one prompt at a time through `generate`, first all of them with the adapter off, then all
with it on, and the likelihood of each reference by a forward of its own. Both sides use the same 4-bit base, rows,
greedy decoding, longest answer and metrics; loading is in neither time, and nothing comes from a cache.

The peer takes about an hour for 200 rows on two cores. So it is measured on a few of them (`--peer-rows`, the
categories in proportion) in the same run, and its time is scaled by tokens: what it takes for a token that it reads and
for one that it writes, times the tokens of all the rows (those written as we wrote them; greedy, both write nearly the
same). The result says so, with an interval over the rows that were measured, and with the plain scaling by rows beside
it. Metrics and statistics are the same code on both sides, and count as we measured them on all rows.
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
from typing import Any, NamedTuple

import numpy as np

from benchmarks.row_by_row import Peer, Task, row_by_row
from evaluation.answers import greedy_answers
from evaluation.batches import Batched
from evaluation.columns import Side
from evaluation.likelihood import response_nll
from evaluation.measures import chosen_measures
from evaluation.provenance import hardware, versions
from evaluation.samples import make_samples
from evaluation.scoring import score
from finetune import data, model
from finetune.base import context_limit, load_base, load_tokenizer
from finetune.config import Holdout
from finetune.prompt import template
from finetune.run import find_run
from inference.lora import load_adapter

BAR = 0.4  # ours over the peer's time, at most
RESULT = Path(__file__).parent / "results" / "evaluate_cpu.json"
ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("--preset", "quick-demo", "--steps", "8", "--rows", "100", "--validation-rows", "4")


class Ours(NamedTuple):
    """Seconds of the models and of metrics and statistics; answers by item."""

    seconds: float
    scoring: float
    answers: Batched


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        task = _task(args, Path(folder))
        count = len(task.examples)
        _say(f"ours, on {count} rows")
        ours = _ours(task)()
        some = _some(task.examples, min(args.peer_rows or count, count))
        _say(f"{ours.seconds + ours.scoring:.0f} s; transformers row by row, on {len(some)} of them")
        peer = row_by_row(task._replace(examples=some), ours.answers, [task.examples.index(e) for e in some])()
    result = _result(args, task, ours, peer)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    args.to.write_text(json.dumps(result, indent=2) + "\n")
    scaled = f" (measured on {len(some)} rows and scaled)" if result["peer_is_scaled"] else ""
    print(
        f"ours {result['ours_seconds']:.1f} s, transformers row by row {result['peer_seconds']:.1f} s{scaled}: "
        f"{result['ratio']:.3f} times, 95 % interval {result['ratio_low']:.3f} to {result['ratio_high']:.3f}"
        f" (bar: {BAR})"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate_cpu")
    parser.add_argument("--rows", type=int, default=200, help="held-out rows to score")
    parser.add_argument("--peer-rows", type=int, default=10, help="rows that the peer is measured on; 0: all")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--model", default="smollm2-135m", help="base")
    parser.add_argument("--data", default=None, help="rows; Dolly or our sample if left out")
    parser.add_argument("--run", default=None, help="the run whose adapter is scored; a short one is made if left out")
    parser.add_argument("--to", type=Path, default=RESULT, help="the file to write")
    return parser.parse_args()


def _result(args: argparse.Namespace, task: Task, ours: Ours, peer: Peer) -> dict[str, Any]:
    count, measured = len(task.examples), len(peer.read_seconds)
    all_read = 2 * sum(len(example.ids) for example in task.examples)
    all_written = sum(answer["tokens"] for answer in ours.answers.results.values())
    columns = [np.array(column, dtype=float) for column in peer[:4]]

    def whole(rows: Any) -> float:
        """The peer's seconds for all rows, from the measured ones numbered in `rows`; metrics are ours."""
        read, read_tokens, written, written_tokens = (column[rows].sum() for column in columns)
        return float(read / read_tokens * all_read + written / max(written_tokens, 1) * all_written + ours.scoring)

    draws = np.random.default_rng(0).integers(0, measured, (2000, measured))
    low, high = np.quantile([whole(rows) for rows in draws], [0.025, 0.975])
    is_scaled = measured < count
    by_rows = (columns[0].sum() + columns[2].sum()) * count / measured + ours.scoring
    ours_seconds, peer_seconds = ours.seconds + ours.scoring, whole(np.arange(measured)) if is_scaled else by_rows
    return {
        "what": "evaluation of base and tuned: likelihood, greedy answers, all metrics and statistics",
        "rows": count,
        "max_new_tokens": args.max_new_tokens,
        "adapter": args.run or f"python -m finetune train {' '.join(TRAINING)}",
        "tokens_read": all_read,
        "tokens_written": all_written,
        "ours_seconds": round(ours_seconds, 1),
        "of_which_metrics_seconds": round(ours.scoring, 1),
        "peer_seconds": round(peer_seconds, 1),
        "peer": "transformers generate and forward, row by row, one model after the other",
        "peer_measured_on_rows": measured,
        "peer_measured_seconds": round(float(columns[0].sum() + columns[2].sum()), 1),
        "peer_is_scaled": is_scaled,
        "peer_scaled_by": "tokens read and tokens written" if is_scaled else "nothing",
        "peer_seconds_if_scaled_by_rows": round(float(by_rows), 1),
        "peer_answers_equal_to_ours": f"{peer.same} of {2 * measured}",
        "ratio": round(ours_seconds / peer_seconds, 3),
        "ratio_low": round(ours_seconds / high, 3) if is_scaled else round(ours_seconds / peer_seconds, 3),
        "ratio_high": round(ours_seconds / low, 3) if is_scaled else round(ours_seconds / peer_seconds, 3),
        "bar": BAR,
        "hardware": hardware(),
        "versions": versions(),
    }


def _task(args: argparse.Namespace, folder: Path) -> Task:
    """Rows from the test part where it is large enough, else from all: here they are timed, not judged."""
    source = model.fetch(args.model)
    rows = data.load_rows(args.data).rows
    test = data.split_rows(rows, Holdout()).test
    chosen = template(load_tokenizer(source))
    limit = context_limit(source)
    kept = data.take(test if len(test) >= args.rows else rows, args.rows)
    examples = data.encode_rows(kept, chosen, limit, limit).examples
    adapter = find_run(args.run).adapter if args.run else _trained(args, folder)
    return Task(source, chosen, examples, adapter, args.max_new_tokens)


def _trained(args: argparse.Namespace, folder: Path) -> Path:
    """The adapter of a short run, made in a process of its own, whose memory is gone before the clock starts."""
    _say("a short run, for its adapter")
    command = [sys.executable, "-m", "finetune", "train", *TRAINING, "--model", args.model]
    command += ["--data", args.data] if args.data else []
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TANDEM_RUNS": str(folder)}, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit("The run failed: give one with --run.")
    return Path(json.loads(done.stdout)["adapter"])


def _some(examples: list[data.Example], count: int) -> list[data.Example]:
    chosen = set(data.take([example.row for example in examples], count))
    return [example for example in examples if example.row in chosen][:count]


def _ours(task: Task) -> Callable[[], Ours]:
    base = load_base(task.source)
    sides = [Side(None, 0.0), Side(load_adapter(task.adapter, base), 1.0)]
    rows = [example.row for example in task.examples]
    pad_id = task.template.tokenizer.pad_token_id or 0
    greedy_answers(base, task.template, rows[:1], sides, 2)  # bitsandbytes packs the weights at its first forward

    def work() -> Ours:
        started = time.perf_counter()
        likelihoods = response_nll(base, task.examples, sides, pad_id)
        answers = greedy_answers(base, task.template, rows, sides, task.max_new_tokens)
        answered = time.perf_counter()
        measures = chosen_measures("all")
        score(make_samples(rows, [""] * len(rows), likelihoods, answers, 2, measures).samples)
        return Ours(answered - started, time.perf_counter() - answered, answers)

    return work


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
