"""What programs may call, by gradio_client or as MCP tools: compare, start, stop, status, evaluate, report, runs."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from finetune.config import TrainConfig, parse
from finetune.prompt import Turn
from finetune.run import list_runs
from inference.columns import BASE, Column, Subject, resolve, subject
from inference.engine import Engine, Update
from studio.api_runs import evaluator, report, runs, starter, status, stop, tuned_run
from studio.conversation import MOST_COLUMNS, Settings
from studio.limits import Limits, person

MOST_CHARACTERS = 20_000  # of a prompt
MOST_AT_ONCE = 32  # answers that are given or wait in the engine's queue; later ones wait in Gradio's


def build(engine: Engine, limits: Limits) -> None:
    """Add the endpoints to the page that is being built."""
    shared: dict[str, Any] = {"concurrency_id": "api", "concurrency_limit": MOST_AT_ONCE}
    gr.api(comparer(engine, limits), api_name="compare", **shared)
    gr.api(starter(limits), api_name="start", **shared)
    gr.api(evaluator(limits), api_name="evaluate", **shared)
    for function in (stop, status, report, runs):
        gr.api(function, api_name=function.__name__, **shared)


def comparer(engine: Engine, limits: Limits) -> Callable[..., Any]:
    """The endpoint over that engine."""

    def compare(
        prompt: str,
        columns: str = "base,tuned",
        run: str = "latest",
        system: str = "",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_new_tokens: int = 192,
        request: gr.Request = None,
    ) -> Iterator[dict[str, Any]]:
        """Ask base and tuned model the same thing; a stream, each item with all that was said so far.

        Args:
            prompt: What is asked.
            columns: Who is asked, up to four: base, tuned, a strength such as 0.5, checkpoint-40, merged, a run's id.
            run: Id of the run whose adapter "tuned" is; "latest" is the newest one that has an adapter.
            system: What stands before the prompt; empty for the template's own.
            temperature: 0 always takes the likeliest token.
            top_p: Draw from the likeliest tokens that together reach this probability.
            seed: Of the sampling, the same for every column.
            max_new_tokens: Longest answer.

        Returns:
            message (what goes on), and answers: each with column, text, tokens, tokens_per_second and stop.
        """
        try:
            asked = parse(
                Settings,
                {
                    "system": system,
                    "sampling": {"temperature": temperature, "top_p": top_p, "seed": seed},
                    "max_new_tokens": max_new_tokens,
                },
            )
            over, chosen = _chosen(run, columns)
            histories = [[Turn(_text(prompt))]] * len(chosen)
            updates = engine.compare(
                over.model,
                over.revision,
                over.template,
                chosen,
                histories,
                asked.sampling,
                asked.max_new_tokens,
                over.sha256,
                asked.system,
            )
            for update in limits.stream(person(request).answers, updates):
                yield _shown(update, chosen)
        except ValueError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    return compare


def _chosen(run_id: str, columns: str) -> tuple[Subject, list[Column]]:
    """The base and the columns; the base alone needs no run."""
    if columns.strip() == "base" and not list_runs():
        default = TrainConfig()
        return Subject(default.model, default.revision), [BASE]
    run = tuned_run(run_id)
    chosen = resolve(run, columns)
    if len(chosen) > MOST_COLUMNS:
        raise ValueError(f"At most {MOST_COLUMNS} columns stand side by side (given: {len(chosen)}).")
    return subject(run), chosen


def _text(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("Write a prompt first.")
    if len(prompt) > MOST_CHARACTERS:
        raise ValueError(f"A prompt has at most {MOST_CHARACTERS} characters (given: {len(prompt)}).")
    return prompt


def _shown(update: Update, columns: list[Column]) -> dict[str, Any]:
    answers = [
        {
            "column": column.label,
            "text": answer.text,
            "tokens": answer.tokens,
            "tokens_per_second": round(answer.tokens_per_second, 1),
            "stop": answer.stop,
        }
        for column, answer in zip(columns, update.answers, strict=False)
    ]
    return {"message": update.message, "answers": answers}
