"""evaluate_run(job): held-out rows → likelihoods and answers of every column → scores → report."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluation.answers import BATCH_ROWS, GREEDY, greedy_answers
from evaluation.batches import Batched
from evaluation.cache import Cache, digest
from evaluation.columns import identity, parse_columns
from evaluation.config import EvalConfig
from evaluation.export import write_exports
from evaluation.jobs import Slice, leaks, scored_rows
from evaluation.likelihood import BATCH_TOKENS, response_nll
from evaluation.measures import chosen_measures
from evaluation.passes import Pass, in_passes, passes
from evaluation.progress import Progress
from evaluation.provenance import DECIDING, hardware, versions
from evaluation.report import ColumnFacts, EvalReport
from evaluation.samples import Outcome, make_samples
from evaluation.scoring import score
from evaluation.verdict import verdict
from finetune import data, model
from finetune.base import context_limit, load_base, load_tokenizer
from finetune.config import from_mapping, parse
from finetune.prompt import Template, template
from finetune.run import Job, Reporter, Run
from inference.columns import Column

CACHE_FORMAT = 1  # raise it when answers of the same key may come out otherwise
SAYING: dict[str, str] = {
    "likelihood": "how likely are the references to each?",
    "answers": "all answer the held-out prompts",
}


class Prepared(NamedTuple):
    """Everything that scoring needs, loaded."""

    source: model.Source
    base: Any
    template: Template
    columns: list[Column]
    passes: list[Pass]
    rows: Slice
    encoded: data.Examples


def evaluate_run(run: Run, job: Job, reporter: Reporter) -> EvalReport | None:
    """Score `run`'s columns on held-out rows; writes report.json, samples.jsonl and their exports into `job`'s folder.

    Returns None when it was asked to stop. Raises ValueError with a sentence where there is nothing to score.
    """
    started = time.time()
    asked = parse(EvalConfig, job.config()["config"])
    prepared = _prepare(run, asked, reporter)
    likelihoods, answers = _work(prepared, asked, job, reporter)
    if job.stop_requested():
        reporter.status(state="stopped")
        return None
    reporter.status(message="scoring")
    rows = [example.row for example in prepared.encoded.examples]
    leaked = _leaked(rows, prepared.rows)
    outcome = make_samples(rows, leaked, likelihoods, answers, len(prepared.columns), chosen_measures(asked.metrics))
    scores = score(outcome.samples, [column.label for column in prepared.columns], asked.seed)
    report = EvalReport(
        run=run.id,
        **_compared(prepared, likelihoods, answers),
        **_how(asked, outcome, likelihoods, answers),
        seconds=time.time() - started,
        verdict=verdict(scores),
        scores=scores,
    )
    write_exports(job.path, report, outcome.samples)
    return report


def _prepare(run: Run, asked: EvalConfig, reporter: Reporter) -> Prepared:
    facts = run.facts()
    config = from_mapping(run.config()["config"])
    source = model.fetch(config.model, config.revision, lambda text: reporter.status(message=text))
    if source.sha256 != facts["model_sha256"]:
        raise ValueError(f"{run.id} was trained on {facts['model']}, and {source.origin} is not the same: fetch that.")
    columns = parse_columns(asked.columns, run)
    rows = scored_rows(run, asked)
    chosen = template(load_tokenizer(source), facts["template"])
    limit = context_limit(source)
    encoded = data.encode_rows(rows.rows.rows, chosen, limit, limit)
    reporter.status(state="running", message="loading the base in 4 bits", step=0, max_steps=2 * len(encoded.examples))
    base = load_base(source)
    return Prepared(source, base, chosen, columns, passes(base, columns), rows, encoded)


def _leaked(scored: Sequence[data.Row], rows: Slice) -> list[str]:
    """Which of the scored rows leaked from training; asked of the whole rows, since a scored one may be shortened."""
    whole = rows.rows.rows
    found = dict(zip(((r.instruction, r.response) for r in whole), leaks(whole, rows.trained_on), strict=True))
    return [found[row.instruction, row.response] for row in scored]


def _work(prepared: Prepared, asked: EvalConfig, job: Job, reporter: Reporter) -> tuple[Batched | None, Batched | None]:
    """Likelihoods and answers of every example under every column, those that the metrics need."""
    chosen, examples = prepared.template, prepared.encoded.examples
    sources = {str(measure.source) for measure in chosen_measures(asked.metrics)}
    halves = {half: text for half, text in SAYING.items() if half in sources}
    reporter.status(max_steps=len(halves) * len(examples))
    likelihoods = answers = None
    with Progress(job, reporter, len(examples), halves) as progress:
        if "likelihood" in halves:
            caches = _caches("likelihoods", {"batch_tokens": BATCH_TOKENS}, prepared) if asked.cache else None
            pad_id = chosen.tokenizer.pad_token_id or 0

            def look(base: Any, sides: Any, caches: Any, hooks: Any) -> Batched:
                return response_nll(base, examples, sides, pad_id, caches, hooks)

            hooks = progress.hooks("likelihood")
            likelihoods = in_passes(prepared.passes, len(examples), caches, hooks, look)
        if "answers" in halves and not job.stop_requested():
            context = {
                "sampling": GREEDY.model_dump(),
                "max_new_tokens": asked.max_new_tokens,
                "batch_rows": BATCH_ROWS,
                "stop": [sorted(chosen.stop_ids), list(chosen.stop_strings)],
            }
            caches = _caches("answers", context, prepared) if asked.cache else None
            rows = [example.row for example in examples]
            hooks = progress.hooks("answers")

            def ask(base: Any, sides: Any, caches: Any, hooks: Any) -> Batched:
                return greedy_answers(base, chosen, rows, sides, asked.max_new_tokens, caches, hooks)

            answers = in_passes(prepared.passes, len(examples), caches, hooks, ask)
    return likelihoods, answers


def _caches(kind: str, context: dict[str, Any], prepared: Prepared) -> list[Cache]:
    """A cache a column, keyed by everything that decides its results."""
    machine = hardware()
    context = context | {
        "format": CACHE_FORMAT,
        "model_sha256": prepared.source.sha256,
        "template": prepared.template.id,
        "dtype": _dtype(prepared.base),
        "columns": len(prepared.columns),
        "device": [gpu["name"] for gpu in machine["gpus"]] or machine["cpu"],
        "versions": versions(DECIDING),
    }
    return [Cache(kind, context | identity(column)) for column in prepared.columns]


def _dtype(base: Any) -> str:
    return str(base.dtype).removeprefix("torch.")


def _compared(prepared: Prepared, likelihoods: Batched | None, answers: Batched | None) -> dict[str, Any]:
    """The report's fields on what was compared on what."""
    source, base, chosen, columns, _, rows, encoded = prepared

    def cached(found: Batched | None, column: int) -> int:
        return found.from_cache[column] if found else 0

    return {
        "columns": [column.label for column in columns],
        "column_facts": [
            ColumnFacts(
                label=column.label,
                strength=column.strength,
                adapter_sha256=identity(column)["adapter"],
                merged_sha256=identity(column).get("merged"),
                answers_from_cache=cached(answers, at),
                likelihoods_from_cache=cached(likelihoods, at),
            )
            for at, column in enumerate(columns)
        ],
        "model": source.origin,
        "model_sha256": source.sha256,
        "data": rows.rows.source,
        "data_sha256": rows.rows.sha256,
        "examples_sha256": digest([list(example.row) for example in encoded.examples]),
        "split": rows.split,
        "template": chosen.id,
        "dtype": _dtype(base),
        "rows": len(encoded.examples),
        "dropped": encoded.dropped,
        "shortened": encoded.shortened,
    }


def _how(asked: EvalConfig, outcome: Outcome, likelihoods: Batched | None, answers: Batched | None) -> dict[str, Any]:
    """The report's fields on how it was done."""
    fitted = {"answer_rows": answers, "likelihood_tokens": likelihoods}
    kinds: Sequence[str] = [sample.leak for sample in outcome.samples if sample.leak]
    notes = list(outcome.notes)
    if kinds:
        notes.append(f"{len(kinds)} of the scored prompts were trained on; they are flagged, not left out.")
    return {
        "leaks": {"same": kinds.count("same"), "near": kinds.count("near")},
        "max_new_tokens": asked.max_new_tokens,
        "sampling": GREEDY.model_dump(),
        "seeds": {"statistics": asked.seed},
        "batch": {name: found.budget for name, found in fitted.items() if found},
        "hardware": hardware(),
        "versions": versions(),
        "notes": notes,
    }
