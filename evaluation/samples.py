"""Likelihoods and answers to samples: every example with its scores under every column."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from evaluation.batches import Batched, Item
from evaluation.measures import Measure
from evaluation.report import Sample
from evaluation.similarity import PACKAGE, encoder_folder
from finetune.data import Row

PerColumn = list[list[float]]  # [columns][examples]


class Outcome(NamedTuple):
    """Samples, and what a reader has to know about them."""

    samples: list[Sample]
    notes: list[str]


def make_samples(
    rows: Sequence[Row],
    leaked: Sequence[str],
    likelihoods: Batched | None,
    answers: Batched | None,
    columns: int,
    measures: Sequence[Measure],
) -> Outcome:
    """A sample a row.

    Args:
        rows: as they were asked, [examples].
        leaked: "same", "near" or "" of each, [examples].
        likelihoods, answers: by (example, column); None where not asked for.
        columns: how many.
        measures: the scores that are wanted.
    """
    notes = []
    keys = {measure.key for measure in measures}
    if "similarity" in keys and encoder_folder() is None:
        keys -= {"similarity"}
        notes.append(f"Semantic similarity was left out: its encoder ({PACKAGE.replace('_', '-')}) is not installed.")
    values = _likelihood_values(rows, likelihoods, columns) if likelihoods else {}
    values |= _answer_values(rows, answers, columns, "similarity" in keys) if answers else {}
    wanted = [measure for measure in measures if measure.key in keys and measure.key in values]
    samples = []
    for i, row in enumerate(rows):
        nll = [likelihoods.results[Item(i, c)] for c in range(columns)] if likelihoods else []
        said = [answers.results[Item(i, c)] for c in range(columns)] if answers else []
        samples.append(
            Sample(
                instruction=row.instruction,
                context=row.context,
                reference=row.response,
                category=row.category,
                leak=leaked[i],
                answers=[answer["text"] for answer in said],
                stops=[answer["stop"] for answer in said],
                nll=[one["nll"] for one in nll],
                tokens=nll[0]["tokens"] if nll else 0,
                bytes=_bytes(row),
                values={
                    m.key: [values[m.key][c][i] for c in range(columns)] for m in wanted if m.applies(row.category)
                },
            )
        )
    return Outcome(samples, notes)


def _likelihood_values(rows: Sequence[Row], likelihoods: Batched, columns: int) -> dict[str, PerColumn]:
    """Nats a token and bits a byte. The end of the response counts among its tokens and bits, but has no bytes."""
    by_column = [[likelihoods.results[Item(i, c)] for i in range(len(rows))] for c in range(columns)]
    loss = [[one["nll"] / one["tokens"] for one in column] for column in by_column]
    bits = [
        [one["nll"] / math.log(2) / _bytes(row) for one, row in zip(column, rows, strict=True)] for column in by_column
    ]
    return {"loss": loss, "loss_by_example": loss, "bits_per_byte": bits}


def _answer_values(rows: Sequence[Row], answers: Batched, columns: int, with_similarity: bool) -> dict[str, PerColumn]:
    from evaluation.metrics import answer_scores

    references = [row.response for row in rows]
    found = []
    for column in range(columns):
        said = [answers.results[Item(i, column)] for i in range(len(rows))]
        texts, stops = [one["text"] for one in said], [one["stop"] for one in said]
        found.append(answer_scores(texts, references, stops, with_similarity))
    return {key: [scores[key] for scores in found] for key in found[0]}


def _bytes(row: Row) -> int:
    return len(row.response.encode())
