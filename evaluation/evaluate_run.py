"""evaluate_run(job): held-out rows → likelihoods and answers of base and tuned → scores → report."""

import time
from importlib.metadata import version
from typing import Any, NamedTuple

from evaluation.answers import greedy_answers
from evaluation.config import EvalConfig
from evaluation.jobs import held_out
from evaluation.likelihood import response_nll
from evaluation.metrics import rouge_l
from evaluation.report import EvalReport, Sample, score, verdict
from finetune import data, model
from finetune.base import context_limit, load_base, load_tokenizer
from finetune.config import from_mapping, parse
from finetune.prompt import Template, template
from finetune.run import Job, Reporter, Run, write_atomically
from inference.lora import Adapter, Placed, load_adapter

COLUMNS = ["base", "tuned"]


class Prepared(NamedTuple):
    """Everything that scoring needs, loaded."""

    source: model.Source
    base: Any
    template: Template
    adapter: Adapter
    rows: data.Rows
    encoded: data.Examples


def evaluate_run(run: Run, job: Job, reporter: Reporter) -> EvalReport | None:
    """Score `run`'s base and tuned model on held-out rows; writes samples.jsonl and report.json into `job`'s folder.

    Returns None when it was asked to stop. Raises ValueError with a sentence where there is nothing to score.
    """
    started = time.time()
    asked = parse(EvalConfig, job.config()["config"])
    prepared = _prepare(run, asked, reporter)
    samples = _samples(prepared, asked, job, reporter)
    if not samples:
        reporter.status(state="stopped")
        return None
    scores = score(samples)
    report = EvalReport(
        run=run.id,
        columns=COLUMNS,
        model=prepared.source.origin,
        model_sha256=prepared.source.sha256,
        data=prepared.rows.source,
        template=prepared.template.id,
        dtype=str(prepared.base.dtype).removeprefix("torch."),
        rows=len(samples),
        dropped=prepared.encoded.dropped,
        max_new_tokens=asked.max_new_tokens,
        versions={name: version(name) for name in ("torch", "transformers", "bitsandbytes", "rouge-score")},
        seconds=time.time() - started,
        verdict=verdict(scores),
        scores=scores,
    )
    write_atomically(job.path / "samples.jsonl", "".join(s.model_dump_json() + "\n" for s in samples))
    write_atomically(job.path / "report.json", report.model_dump_json(indent=2))
    return report


def _prepare(run: Run, asked: EvalConfig, reporter: Reporter) -> Prepared:
    facts = run.facts()
    config = from_mapping(run.config()["config"])
    source = model.fetch(config.model, config.revision, lambda text: reporter.status(message=text))
    if source.sha256 != facts["model_sha256"]:
        raise ValueError(f"{run.id} was trained on {facts['model']}, and {source.origin} is not the same: fetch that.")
    rows = held_out(run, asked.rows)
    chosen = template(load_tokenizer(source), facts["template"])
    limit = context_limit(source)
    encoded = data.encode_rows(rows.rows, chosen, limit, limit)
    reporter.status(state="running", message="loading the base in 4 bits", step=0, max_steps=2 * len(encoded.examples))
    base = load_base(source)
    return Prepared(source, base, chosen, load_adapter(run.adapter, base), rows, encoded)


def _samples(prepared: Prepared, asked: EvalConfig, job: Job, reporter: Reporter) -> list[Sample]:
    """Every example under both columns, or [] when the job was asked to stop."""
    _, base, chosen, adapter, _, (examples, *_) = prepared

    def place(count: int) -> list[Placed]:
        return [Placed(adapter, [0.0, 1.0] * count)]

    def scored(done: int) -> None:
        reporter.status(step=done)

    def answered(done: int) -> None:
        reporter.status(step=len(examples) + done)

    reporter.status(message="how likely are the references to each?")
    pad_id = chosen.tokenizer.pad_token_id or 0
    likelihoods = response_nll(base, examples, len(COLUMNS), place, pad_id, scored, job.stop_requested)
    reporter.status(message="both answer the held-out prompts")
    rows = [e.row for e in examples]
    answers = greedy_answers(
        base, chosen, rows, len(COLUMNS), place, asked.max_new_tokens, answered, job.stop_requested
    )
    if job.stop_requested():
        return []
    rouges = [rouge_l([a[i].text for a in answers], [row.response for row in rows]) for i in range(len(COLUMNS))]
    return [
        Sample(
            instruction=row.instruction,
            context=row.context,
            reference=row.response,
            category=row.category,
            answers=[a.text for a in answer],
            stops=[str(a.stop) for a in answer],
            nll=[column.nll for column in likelihood],
            tokens=likelihood[0].tokens,
            rouge_l=list(scores),
        )
        for row, likelihood, answer, scores in zip(rows, likelihoods, answers, zip(*rouges, strict=True), strict=True)
    ]
