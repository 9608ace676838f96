"""evaluate_run(job): held-out rows → likelihoods and answers of every column → judge → scores → report."""

import time
from collections.abc import Sequence
from typing import Any

from evaluation.answers import GREEDY
from evaluation.batches import Batched
from evaluation.cache import digest
from evaluation.columns import identity, parse_columns
from evaluation.config import EvalConfig
from evaluation.export import write_exports
from evaluation.jobs import Slice, leaks, scored_rows
from evaluation.judge import reach
from evaluation.measures import chosen_measures
from evaluation.passes import passes
from evaluation.progress import Progress
from evaluation.provenance import hardware, versions
from evaluation.report import ColumnFacts, EvalReport
from evaluation.samples import Outcome, make_samples
from evaluation.scoring import score
from evaluation.verdict import verdict
from evaluation.work import Found, Prepared, judged, make_room, parts, text_to_probe, work
from finetune import data, model, room
from finetune.base import context_limit, load_base, load_tokenizer
from finetune.config import from_mapping, parse
from finetune.prompt import template
from finetune.run import Job, Reporter, Run


def evaluate_run(run: Run, job: Job, reporter: Reporter) -> EvalReport | None:
    """Score `run`'s columns on held-out rows; writes report.json, samples.jsonl and their exports into `job`'s folder.

    Returns None when it was asked to stop. Raises ValueError with a sentence where there is nothing to score.
    """
    started = time.time()
    asked = parse(EvalConfig, job.config()["config"])
    prepared = _prepare(run, job, asked, reporter)
    with Progress(job, reporter, parts(prepared, asked)) as progress:
        found = work(prepared, asked, progress)
        if progress.is_stopped():
            reporter.status(state="stopped")
            return None
        labels = [column.label for column in prepared.columns]
        rows = [example.row for example in prepared.encoded.examples]
        leaked = _leaked(rows, prepared.rows)
        measures = chosen_measures(asked.metrics)
        outcome = make_samples(rows, leaked, found.likelihoods, found.answers, len(labels), measures)
        compared = _compared(prepared, found)
        opinion = None
        if prepared.judge:
            prepared = make_room(prepared)
            opinion = judged(prepared, outcome.samples, asked, progress.hooks("judge"))
            if opinion is None:
                reporter.status(state="stopped")
                return None
            outcome = Outcome(opinion.samples, [*outcome.notes, *opinion.notes])
    reporter.status(message="scoring")
    scores = score(outcome.samples, labels, asked.seed)
    judge = opinion.report if opinion else None
    report = EvalReport(
        run=run.id,
        **compared,
        **_how(asked, outcome, found),
        seconds=time.time() - started,
        verdict=verdict(scores, judge, found.probe, labels[0]),
        scores=scores,
        judge=judge,
        probe=found.probe,
    )
    write_exports(job.path, report, outcome.samples)
    return report


def _prepare(run: Run, job: Job, asked: EvalConfig, reporter: Reporter) -> Prepared:
    def say(text: str) -> None:
        reporter.status(message=text)

    facts = run.facts()
    config = from_mapping(run.config()["config"])
    source = model.fetch(config.model, config.revision, say)
    if source.sha256 != facts["model_sha256"]:
        raise ValueError(f"{run.id} was trained on {facts['model']}, and {source.origin} is not the same: fetch that.")
    columns = parse_columns(asked.columns, run)
    rows = scored_rows(run, asked)
    tokenizer = load_tokenizer(source)
    chosen = template(tokenizer, facts["template"])
    limit = context_limit(source)
    encoded = data.encode_rows(rows.rows.rows, chosen, limit, limit)
    text, pieces = text_to_probe(asked, tokenizer)
    judge = reach(asked, say)
    with room.claimed(lambda: room.base_fits(source), job.stop_requested, say):
        reporter.status(state="running", message="loading the base in 4 bits")
        base = load_base(source)
    return Prepared(source, base, chosen, columns, passes(base, columns), rows, encoded, text, pieces, judge)


def _leaked(scored: Sequence[data.Row], rows: Slice) -> list[str]:
    """Which of the scored rows leaked from training; asked of the whole rows, since a scored one may be shortened."""
    whole = rows.rows.rows
    found = dict(zip(((r.instruction, r.response) for r in whole), leaks(whole, rows.trained_on), strict=True))
    return [found[row.instruction, row.response] for row in scored]


def _compared(prepared: Prepared, found: Found) -> dict[str, Any]:
    """The report's fields on what was compared on what."""
    source, chosen, columns, rows = prepared.source, prepared.template, prepared.columns, prepared.rows
    encoded = prepared.encoded

    def cached(batched: Batched | None, column: int) -> int:
        return batched.from_cache[column] if batched else 0

    return {
        "columns": [column.label for column in columns],
        "column_facts": [
            ColumnFacts(
                label=column.label,
                strength=column.strength,
                adapter_sha256=identity(column)["adapter"],
                merged_sha256=identity(column).get("merged"),
                answers_from_cache=cached(found.answers, at),
                likelihoods_from_cache=cached(found.likelihoods, at),
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
        "dtype": prepared.dtype,
        "rows": len(encoded.examples),
        "dropped": encoded.dropped,
        "shortened": encoded.shortened,
    }


def _how(asked: EvalConfig, outcome: Outcome, found: Found) -> dict[str, Any]:
    """The report's fields on how it was done."""
    fitted = {"answer_rows": found.answers, "likelihood_tokens": found.likelihoods}
    kinds: Sequence[str] = [sample.leak for sample in outcome.samples if sample.leak]
    notes = list(outcome.notes)
    if kinds:
        notes.append(f"{len(kinds)} of the scored prompts were trained on; they are flagged, not left out.")
    return {
        "leaks": {"same": kinds.count("same"), "near": kinds.count("near")},
        "max_new_tokens": asked.max_new_tokens,
        "sampling": GREEDY.model_dump(),
        "seeds": {"statistics": asked.seed},
        "batch": {name: batched.budget for name, batched in fitted.items() if batched},
        "hardware": hardware(),
        "versions": versions(),
        "notes": notes,
    }
