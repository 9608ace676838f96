"""python -m finetune {train,runs,stop}: fine-tune from the terminal. Bad input: one sentence, exit code 2."""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from finetune import config, job
from finetune.run import Run, find_run, list_runs


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        result: int = args.run(args)
        return result
    except ValueError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune", description="QLoRA fine-tuning of a 4-bit model.")
    commands = parser.add_subparsers(required=True, metavar="{train,runs,stop}")
    train = commands.add_parser("train", help="train an adapter", description="Train an adapter in runs/.")
    start = train.add_mutually_exclusive_group()
    start.add_argument("--preset", help=f"start from one of: {', '.join(config.preset_names())}")
    start.add_argument("--config", type=Path, help="start from a TOML file, or a run's config.json")
    for name, info in config.fields().items():
        flag = f"--{name.replace('_', '-')}"
        train.add_argument(flag, dest=name, metavar="X", default=argparse.SUPPRESS, help=info.description)
    train.set_defaults(run=_train, settings=list(config.fields()))
    runs = commands.add_parser("runs", help="list the runs, newest first")
    runs.set_defaults(run=_runs)
    stop = commands.add_parser("stop", help="ask a run to stop at its next step, its adapter saved")
    stop.add_argument("id", help="a run's id, or latest")
    stop.set_defaults(run=_stop)
    work = commands.add_parser("work")  # what the page starts: not for people
    work.add_argument("path", type=Path)
    work.add_argument("--lock", type=int, required=True)
    work.set_defaults(run=_work)
    return parser


def _train(args: argparse.Namespace) -> int:
    chosen = config.TrainConfig()
    if args.preset:
        chosen = config.preset(args.preset)
    elif args.config:
        chosen = config.read(args.config)
    given = {name: _value(name, getattr(args, name)) for name in args.settings if hasattr(args, name)}
    chosen = config.with_settings(chosen, given)
    run, lock = job.create_run(chosen, args.preset or chosen.model)
    print(f"run {run.id}", file=sys.stderr)
    _live(run, lock)
    status = run.status()
    print(json.dumps({"run": run.id, "state": status["state"], "adapter": str(run.adapter)}))
    return 0


def _work(args: argparse.Namespace) -> int:
    _live(Run(args.path), args.lock)
    return 0


def _live(run: Run, lock: int) -> None:
    with job.at_work(run, lock) as reporter:
        from finetune.train import train  # torch is loaded only when it is this run's turn

        train(run, reporter)


def _runs(args: argparse.Namespace) -> int:
    for run in list_runs():
        status = run.status()
        step = f"{status['step']}/{status['max_steps']}" if "step" in status else ""
        print(f"{run.id:48} {status['state']:10} {step:10} {status.get('error', '')}")
    return 0


def _stop(args: argparse.Namespace) -> int:
    run = find_run(args.id)
    run.request_stop()
    print(f"{run.id} will stop at its next step.")
    return 0


def _value(name: str, text: str) -> Any:
    """A flag's text as the setting's kind: "none" for empty where that is allowed, commas for a list of names."""
    annotation = config.fields()[name].annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if text.lower() == "none" and type(None) in options:
        return None
    if any(get_origin(option) is tuple for option in options) and text != "all-linear":
        return [part.strip() for part in text.split(",")]
    return text


if __name__ == "__main__":
    sys.exit(main())
