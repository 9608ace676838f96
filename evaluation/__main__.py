"""python -m evaluation RUN: score a run's columns on held-out rows. python -m evaluation leaderboard: all runs' scores.

Bad input: one sentence, exit code 2.
"""

import argparse
import json
import sys
from pathlib import Path

from evaluation.config import EvalConfig
from evaluation.jobs import create_evaluation
from evaluation.leaderboard import leaderboard_text, leaderboards
from evaluation.look import look
from evaluation.report import EvalReport, read_report, table
from finetune.config import parse
from finetune.job import at_work
from finetune.run import Job, Run, find_run

HEADINGS = {"examples": "n", "change": "change [95 % interval]", "p": "p (Holm)"}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["work"]:
            return _work(arguments[1:])
        if arguments[:1] == ["look"]:
            return _look(arguments[1:])
        return _leaderboard(arguments[1:]) if arguments[:1] == ["leaderboard"] else _evaluate(arguments)
    except ValueError as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 2


def _evaluate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description="Score base and tuned on held-out rows.")
    parser.add_argument("run", help="a run's id, or latest")
    for name, info in EvalConfig.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", metavar="X", default=argparse.SUPPRESS, help=info.description
        )
    args = vars(parser.parse_args(arguments))
    run = find_run(args.pop("run"))
    config = parse(EvalConfig, {name: None if value == "none" else value for name, value in args.items()})
    job, lock = create_evaluation(run, config)
    _live(job, lock)
    report = job.path / "report.json"
    if report.exists():
        print(_text(read_report(report)))
        print(f"Whole report: {report}, {report.with_suffix('.html').name} and samples.csv beside it")
    return 0


def _work(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation work")
    parser.add_argument("path", type=Path)
    parser.add_argument("--lock", type=int, required=True)
    args = parser.parse_args(arguments)
    _live(Job(args.path), args.lock)
    return 0


def _look(arguments: list[str]) -> int:
    """What a training run that waits for it starts: not for people."""
    parser = argparse.ArgumentParser(prog="python -m evaluation look")
    parser.add_argument("path", type=Path)
    parser.add_argument("step", type=int)
    args = parser.parse_args(arguments)
    print(json.dumps(look(Run(args.path), args.step)))
    return 0


def _live(job: Job, lock: int) -> None:
    with at_work(job, lock) as reporter:
        from evaluation.evaluate_run import evaluate_run  # torch is loaded only when it is this job's turn

        evaluate_run(Run(job.path.parents[1]), job, reporter)


def _leaderboard(arguments: list[str]) -> int:
    argparse.ArgumentParser(
        prog="python -m evaluation leaderboard", description="Every run's newest scores, best first."
    ).parse_args(arguments)
    print(leaderboard_text(leaderboards()))
    return 0


def _text(report: EvalReport) -> str:
    """The scores as a table, the notes, the verdict."""
    rows = [{name: str(value) for name, value in row.items()} for row in table(report.scores)]
    rows = [{name: HEADINGS.get(name, name) for name in rows[0]}, *rows] if rows else []
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]} if rows else {}
    lines = ["  ".join(row[name].ljust(widths[name]) for name in widths).rstrip() for row in rows]
    return "\n".join([*lines, "", *report.notes, report.verdict])


if __name__ == "__main__":
    sys.exit(main())
