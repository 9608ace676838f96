"""The parts of an evaluation's work, each asked of every column: likelihoods, answers, the probe, the judge."""

import gc
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from evaluation.answers import BATCH_ROWS, GREEDY, greedy_answers
from evaluation.batches import Batched, Hooks
from evaluation.cache import Cache
from evaluation.columns import identity
from evaluation.config import EvalConfig
from evaluation.findings import ProbeReport
from evaluation.jobs import Slice
from evaluation.judge import Judged, LocalModel, judge_samples
from evaluation.judge_endpoint import Endpoint
from evaluation.judge_local import LocalJudge
from evaluation.likelihood import BATCH_TOKENS, response_nll
from evaluation.measures import chosen_measures
from evaluation.passes import Pass, in_passes
from evaluation.probe import Piece, pieces, probe, report_on
from evaluation.probe_text import Text, read_text
from evaluation.progress import Part, Progress
from evaluation.provenance import DECIDING, hardware, versions
from evaluation.report import Sample
from finetune import data, model, room
from finetune.prompt import Template
from inference.columns import Column

CACHE_FORMAT = 2  # raise it when answers of the same key may come out otherwise


class Prepared(NamedTuple):
    """Everything that scoring needs, loaded; the judge, if there is one, is reached and its model not yet loaded."""

    source: model.Source
    base: Any
    template: Template
    columns: list[Column]
    passes: list[Pass]
    rows: Slice
    encoded: data.Examples
    text: Text | None
    pieces: list[Piece]
    judge: Endpoint | LocalModel | None

    @property
    def dtype(self) -> str:
        return str(self.base.dtype).removeprefix("torch.")


class Found(NamedTuple):
    """What came of the work; None where a part was not asked for, or was stopped."""

    likelihoods: Batched | None
    answers: Batched | None
    probe: ProbeReport | None


def text_to_probe(asked: EvalConfig, tokenizer: Any) -> tuple[Text | None, list[Piece]]:
    """The text of the probe and its tokens. Raises ValueError where it can't be read, or is too short."""
    if asked.probe is None:
        return None, []
    text = read_text(asked.probe)
    found = pieces(text.passages, tokenizer)
    if not found:
        raise ValueError(f"{text.about} is too short to probe with: give some paragraphs.")
    return text, found


def parts(prepared: Prepared, asked: EvalConfig) -> dict[str, Part]:
    """What is to be done, in order."""
    examples = len(prepared.encoded.examples)
    sources = {measure.source for measure in chosen_measures(asked.metrics)}
    found: dict[str, Part] = {}
    if "likelihood" in sources:
        found["likelihood"] = Part("how likely are the references to each?", examples)
    if "answers" in sources or prepared.judge:
        found["answers"] = Part("all answer the held-out prompts", examples)
    if prepared.text:
        found["probe"] = Part("all read text that is no instruction", len(prepared.pieces))
    if prepared.judge:
        found["judge"] = Part("the judge reads the answers", examples)
    return found


def work(prepared: Prepared, asked: EvalConfig, progress: Progress) -> Found:
    """Likelihoods, answers and the probe of every column, those that are asked for."""
    likelihoods = answers = found = None
    if "likelihood" in progress.parts:
        likelihoods = _likelihoods(prepared, asked, progress)
    if "answers" in progress.parts and not progress.is_stopped():
        answers = _answers(prepared, asked, progress)
    if prepared.text and not progress.is_stopped():
        readings = probe(prepared.passes, prepared.pieces, progress.hooks("probe"))
        labels = [column.label for column in prepared.columns]
        found = report_on(prepared.text, prepared.pieces, readings, labels) if readings else None
    return Found(likelihoods, answers, found)


def _likelihoods(prepared: Prepared, asked: EvalConfig, progress: Progress) -> Batched:
    examples = prepared.encoded.examples
    caches = _caches("likelihoods", {"batch_tokens": BATCH_TOKENS}, prepared) if asked.cache else None
    pad_id = prepared.template.tokenizer.pad_token_id or 0

    def look(base: Any, sides: Any, caches: Any, hooks: Any) -> Batched:
        return response_nll(base, examples, sides, pad_id, caches, hooks)

    return in_passes(prepared.passes, len(examples), caches, progress.hooks("likelihood"), look)


def _answers(prepared: Prepared, asked: EvalConfig, progress: Progress) -> Batched:
    chosen = prepared.template
    context = {
        "sampling": GREEDY.model_dump(),
        "max_new_tokens": asked.max_new_tokens,
        "batch_rows": BATCH_ROWS,
        "stop": [sorted(chosen.stop_ids), list(chosen.stop_strings)],
    }
    caches = _caches("answers", context, prepared) if asked.cache else None
    rows = [example.row for example in prepared.encoded.examples]

    def ask(base: Any, sides: Any, caches: Any, hooks: Any) -> Batched:
        return greedy_answers(base, chosen, rows, sides, asked.max_new_tokens, caches, hooks)

    return in_passes(prepared.passes, len(rows), caches, progress.hooks("answers"), ask)


def _caches(kind: str, context: dict[str, Any], prepared: Prepared) -> list[Cache]:
    """A cache a column, keyed by everything that decides its results."""
    machine = hardware()
    context = context | {
        "format": CACHE_FORMAT,
        "model_sha256": prepared.source.sha256,
        "template": prepared.template.id,
        "dtype": prepared.dtype,
        "columns": len(prepared.columns),
        "device": [gpu["name"] for gpu in machine["gpus"]] or machine["cpu"],
        "versions": versions(DECIDING),
    }
    return [Cache(kind, context | identity(column)) for column in prepared.columns]


def make_room(prepared: Prepared) -> Prepared:
    """The same without its base where another model judges on this machine: it takes the base's place in memory."""
    judge = prepared.judge
    if not isinstance(judge, LocalModel) or judge.source.sha256 == prepared.source.sha256:
        return prepared
    return prepared._replace(base=None, passes=[])


def judged(prepared: Prepared, samples: Sequence[Sample], asked: EvalConfig, hooks: Hooks) -> Judged | None:
    """The samples as the judge sees them; None where it was stopped. Ask for room first (see `make_room`)."""
    judge: Endpoint | LocalJudge
    if isinstance(prepared.judge, LocalModel):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        source = prepared.judge.source
        with room.claimed(lambda: room.base_fits(source), lambda: False, lambda _: None):
            judge = LocalJudge(prepared.judge.name, source, prepared.base)
    else:
        assert prepared.judge is not None
        judge = prepared.judge
    try:
        return judge_samples(samples, [column.label for column in prepared.columns], judge, asked, hooks)
    finally:
        judge.close()
