"""python -m inference {chat,compare}: base and tuned in the terminal. Bad input: one sentence, exit code 2."""

import argparse
import json
import sys
from typing import Any

from pydantic import ValidationError

from finetune.memory import use_large_pages
from finetune.prompt import Turn
from finetune.run import Run, find_run
from inference.columns import Column, resolve, subject
from inference.sampling import Sampling


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    use_large_pages()
    try:
        run = find_run(args.id)
        columns = resolve(run, args.columns)
        sampling = Sampling(**{name: getattr(args, name) for name in Sampling.model_fields})
        if args.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be 1 or more (given: {args.max_new_tokens}).")
        if args.command == "chat":
            return _chat(run, columns, sampling, args)
        return _compare(run, columns, sampling, args)
    except ValidationError as error:
        (first, *_) = error.errors()
        name = str(first["loc"][-1]).replace("_", "-")
        print(f"inference: --{name}: {first['msg'].lower()} (given: {first['input']!r}).", file=sys.stderr)
    except ValueError as error:
        print(f"inference: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inference", description="Ask base and tuned the same thing.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("chat", "talk with every column, a prompt a line"), ("compare", "one prompt to every column")):
        command = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
        command.add_argument("id", metavar="RUN", help="a run's id, or latest")
        command.add_argument(
            "--columns", default="base,tuned", help="such as base,tuned,0.5,checkpoint-40 (%(default)s)"
        )
        command.add_argument(
            "--max-new-tokens", type=int, default=192, metavar="N", help="longest answer (%(default)s)"
        )
        command.add_argument("--json", action="store_true", help="one JSON object a prompt")
        for field, info in Sampling.model_fields.items():
            flag = f"--{field.replace('_', '-')}"
            command.add_argument(
                flag, default=info.default, type=type(info.default), metavar="X", help=info.description
            )
        if name == "compare":
            command.add_argument("--prompt", required=True, help="what is asked")
            command.add_argument("--context", default="", help="a text that the prompt is about")
    return parser


def _compare(run: Run, columns: list[Column], sampling: Sampling, args: argparse.Namespace) -> int:
    if not args.prompt.strip():
        raise ValueError("Write a prompt first.")
    _ask(_engine(), run, columns, [[Turn(args.prompt, args.context)] for _ in columns], sampling, args)
    return 0


def _chat(run: Run, columns: list[Column], sampling: Sampling, args: argparse.Namespace) -> int:
    """A conversation a column, until the input ends."""
    engine = _engine()
    histories: list[list[Turn]] = [[] for _ in columns]
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        if not line.strip():
            continue
        histories = [[*history, Turn(line.strip())] for history in histories]
        answers = _ask(engine, run, columns, histories, sampling, args)
        histories = [[*h[:-1], h[-1]._replace(response=text)] for h, text in zip(histories, answers, strict=True)]


def _engine() -> Any:
    from inference.engine import Engine  # torch is loaded only once the input is known to be good

    return Engine()


def _ask(
    engine: Any,
    run: Run,
    columns: list[Column],
    histories: list[list[Turn]],
    sampling: Sampling,
    args: argparse.Namespace,
) -> list[str]:
    """Print every column's answer to the last turn; returns the texts."""
    model, revision, template, sha256 = subject(run)
    said = ""
    for update in engine.compare(model, revision, template, columns, histories, sampling, args.max_new_tokens, sha256):
        if update.message not in ("", said):
            said = update.message
            print(said, file=sys.stderr)
    if args.json:
        found = [
            {"column": column.label, "strength": column.strength, "tokens_per_second": answer.tokens_per_second}
            | answer._asdict()
            for column, answer in zip(columns, update.answers, strict=True)
        ]
        print(json.dumps({"run": run.id, "prompt": histories[0][-1].instruction, "answers": found}), flush=True)
    else:
        for column, answer in zip(columns, update.answers, strict=True):
            figures = f"{answer.tokens} tokens, {answer.tokens_per_second:.1f}/s, {answer.stop}"
            print(f"── {column.label} ({figures})\n{answer.text}\n", flush=True)
    return [answer.text for answer in update.answers]


if __name__ == "__main__":
    sys.exit(main())
