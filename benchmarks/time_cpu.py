"""Predicted against measured time of training runs: `python -m benchmarks.time_cpu --data ROWS`.

Each configuration is planned with a pilot (`python -m finetune plan --pilot`: two micro-batches after one to warm up)
and then trained whole as a process of its own. What is compared is the time from the run's start, once its libraries
are imported, to its end: preparing, loading, every look at the validation loss, sample answers and saving included.
Bar: the prediction within 25 % of the time that the run took. Writes benchmarks/results/time_cpu.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from evaluation.provenance import hardware, versions
from finetune.run import list_runs

RESULTS = Path(__file__).parent / "results" / "time_cpu.json"
ROOT = Path(__file__).resolve().parents[1]
BAR = 0.25
CONFIGS: list[dict[str, Any]] = [  # beside quick-demo's settings
    {"steps": 10},
    {"steps": 16, "tokens_per_batch": 512},
    {"steps": 10, "tokens_per_batch": 512, "checkpointing": "on", "r": 64, "optimizer": "adamw_8bit"},
    {"steps": 16, "tokens_per_batch": 512, "batching": "padded", "validation_rows": 24},
    {"steps": 8, "tokens_per_batch": 256, "accumulation": 4, "sample_every_steps": 0, "dropout": 0.1},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of Dolly rows")
    data = parser.parse_args().data
    rows = []
    with tempfile.TemporaryDirectory() as runs:
        os.environ["TANDEM_RUNS"] = runs
        for config in CONFIGS:
            flags = ["--preset", "quick-demo", "--data", str(Path(data).resolve())]
            for name, value in config.items():
                flags += [f"--{name.replace('_', '-')}", str(value)]
            predicted = json.loads(_finetune("plan", "--pilot", "--json", *flags))["time"]
            _finetune("train", *flags)
            status = list_runs()[0].status()
            took = status["updated_at"] - status["started_at"]
            ratio = predicted["seconds"] / took
            rows.append({"config": config, "predicted": predicted, "seconds": took, "ratio": ratio})
            print(f"{config}: predicted {predicted['seconds']:.0f} s, took {took:.0f} s: {ratio:.2f}", flush=True)
    holds = all(abs(row["ratio"] - 1) <= BAR for row in rows)
    print("holds" if holds else "does not hold")
    record = {"hardware": hardware(), "versions": versions(), "bar": BAR, "holds": holds, "rows": rows}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


def _finetune(*arguments: str) -> str:
    """Run a command of ours; what it printed."""
    command = [sys.executable, "-m", "finetune", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
