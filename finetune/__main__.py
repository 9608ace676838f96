"""python -m finetune {train,plan,resume,merge,export,runs,stop}. Bad input: one sentence, exit code 2."""

import argparse
import json
import sys
from pathlib import Path

from finetune import job, launch, memory
from finetune.flags import add_settings, chosen
from finetune.run import Run, find_run, list_runs

PLAN = "What a run with these settings would train on, whether it fits into memory, and how long it would take."


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    memory.use_large_pages()
    try:
        result: int = args.run(args)
        return result
    except ValueError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune", description="QLoRA fine-tuning of a 4-bit model.")
    commands = parser.add_subparsers(required=True, metavar="{train,plan,resume,merge,export,runs,stop}")
    train = commands.add_parser("train", help="train an adapter", description="Train an adapter in runs/.")
    add_settings(train)
    train.set_defaults(run=_train)
    plan = commands.add_parser("plan", help="a run's data, memory and time, before it starts", description=PLAN)
    add_settings(plan)
    plan.add_argument("--pilot", action="store_true", help="load the model and measure a few steps for the time")
    plan.add_argument("--json", action="store_true", help="print it as JSON")
    plan.set_defaults(run=_plan)
    runs = commands.add_parser("runs", help="list the runs, newest first")
    runs.set_defaults(run=_runs)
    resume = commands.add_parser("resume", help="go on with an ended run from its last whole checkpoint")
    resume.add_argument("id", help="a run's id, or latest")
    resume.set_defaults(run=_resume)
    merge = commands.add_parser("merge", help="adapter and base into one standalone model, with a certificate")
    merge.add_argument("id", help="a run's id, or latest")
    merge.add_argument("--onto", choices=["auto", "bf16", "nf4"], default="auto", help="the weights to add it to")
    merge.add_argument("--to", type=Path, help="the folder to make (default: merged/ in the run's)")
    merge.add_argument("--rows", type=int, default=48, help="held-out rows that the certificate is measured on")
    merge.set_defaults(run=_merge)
    export = commands.add_parser("export", help="the merged model, or the adapter alone, for other software")
    export.add_argument("id", help="a run's id, or latest")
    export.add_argument("--as", dest="kind", choices=["gguf", "ollama", "adapter", "hub"], required=True)
    export.add_argument("--precision", choices=["bf16", "f16", "q8_0"], default="q8_0", help="of the GGUF file")
    export.add_argument("--to", type=Path, help="the file or folder to make (default: beside the run's merged model)")
    export.add_argument("--repo", help="hub repository, owner/name")
    export.add_argument("--private", action="store_true", help="make the hub repository a private one")
    export.add_argument("--dry-run", action="store_true", help="say what would be pushed to the hub")
    export.set_defaults(run=_export)
    stop = commands.add_parser("stop", help="ask a run to stop at its next step, its adapter saved")
    stop.add_argument("id", help="a run's id, or latest")
    stop.set_defaults(run=_stop)
    work = commands.add_parser("work")  # what the page starts: not for people
    work.add_argument("path", type=Path)
    work.add_argument("--lock", type=int, required=True)
    work.set_defaults(run=_work)
    return parser


def _train(args: argparse.Namespace) -> int:
    settings = chosen(args)
    run, lock = launch.share(lambda: job.create_run(settings, args.preset or settings.model))
    if lock is None:  # another process owns the run
        from finetune.train import train

        train(run, launch.Silent(run))
        return 0
    print(f"run {run.id}", file=sys.stderr)
    _live(run, lock)
    return _tell(run)


def _plan(args: argparse.Namespace) -> int:
    from finetune import plan

    made = plan.make(chosen(args), args.pilot, lambda text: print(text, file=sys.stderr))
    print(json.dumps(made.as_dict(), indent=2, ensure_ascii=False) if args.json else plan.text(made))
    return 0


def _tell(run: Run) -> int:
    print(json.dumps({"run": run.id, "state": run.status()["state"], "adapter": str(run.adapter)}))
    return 0


def _resume(args: argparse.Namespace) -> int:
    run = find_run(args.id)
    _live(run, job.reopen(run))
    return _tell(run)


def _merge(args: argparse.Namespace) -> int:
    run = find_run(args.id)
    if args.rows < 1:
        raise ValueError(f"--rows must be at least 1 (given: {args.rows}).")
    from finetune.merged import merge

    folder, certificate = merge(run, args.onto, args.to, args.rows, lambda text: print(text, file=sys.stderr))
    print(certificate.sentence(), file=sys.stderr)
    print(json.dumps({"run": run.id, "merged": str(folder), "onto": certificate.chosen}))
    return 0


def _export(args: argparse.Namespace) -> int:
    from finetune import export

    run = find_run(args.id)
    if args.kind == "hub":
        if not args.repo:
            raise ValueError("Name the hub repository: --repo owner/name.")
        print(export.to_hub(run, args.repo, args.private, args.dry_run, print))
        return 0
    if args.kind == "adapter":
        made = export.adapter(run, (args.to or run.path / "adapter-export").resolve())
    elif args.kind == "ollama":
        made = export.to_ollama(run, (args.to or run.path / "ollama").resolve(), args.precision)
    else:
        name = export.GGUF_NAME.format(precision=args.precision)
        made = export.to_gguf(run, (args.to or run.path / name).resolve(), args.precision)
    print(json.dumps({"run": run.id, "exported": str(made)}))
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


if __name__ == "__main__":
    sys.exit(main())
