"""An evaluation's files: report.json, samples.jsonl, report.html, samples.csv, and LLM Comparator's JSON."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.findings import Judgement
from evaluation.html_report import html_report
from evaluation.measures import MEASURES
from evaluation.report import EvalReport, Sample
from finetune.whole import write_atomically

SCORE_LIMIT = 1.5  # LLM Comparator's range


def write_exports(folder: Path, report: EvalReport, samples: Sequence[Sample]) -> None:
    """Write all of an evaluation's files into its folder; report.json comes last, so that where it is, all are."""
    write_atomically(folder / "samples.jsonl", "".join(s.model_dump_json() + "\n" for s in samples))
    write_atomically(folder / "samples.csv", samples_csv(report, samples))
    write_atomically(folder / "report.html", html_report(report, samples))
    if samples and samples[0].answers:
        for column in range(1, len(report.columns)):
            name = "llm_comparator.json" if column == 1 else f"llm_comparator-{column}.json"
            comparison = llm_comparator(report, samples, column)
            write_atomically(folder / name, json.dumps(comparison, ensure_ascii=False, indent=1))
    write_atomically(folder / "report.json", report.model_dump_json(indent=2))


def samples_csv(report: EvalReport, samples: Sequence[Sample]) -> str:
    """A line an example: what was asked, every column's answer, every score under every column."""
    keys = [key for key in MEASURES if any(key in sample.values for sample in samples)]
    header = ["category", "leak", "instruction", "context", "reference"]
    header += [f"{name}_{column}" for name in ("answer", "stop", *keys) for column in report.columns]
    header += [f"judged_{column}" for column in report.columns[1:] if report.judge]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    nothing = [""] * len(report.columns)
    for s in samples:
        scores = [value for key in keys for value in s.values.get(key, nothing)]
        said = [*(s.answers or nothing), *(s.stops or nothing)]
        judged = [judgement.outcome for judgement in s.judgements]
        writer.writerow([s.category, s.leak, s.instruction, s.context, s.reference, *said, *scores, *judged])
    return text.getvalue()


def llm_comparator(report: EvalReport, samples: Sequence[Sample], column: int = 1) -> dict[str, Any]:
    """The first column (A) and another (B) in the format of PAIR's LLM Comparator, as its README describes it.

    A positive score says that A is better, in the tool's range of -1.5 to 1.5. It is the judge's: both orders agree, or
    it is 0, and each order is a rater with its reasons. Where nobody judged it is A's ROUGE-L less B's, stretched to
    that range, and the metadata say so.

    Args:
        report: of the evaluation.
        samples: with answers.
        column: which one is B.
    """
    keys = [key for key in MEASURES if any(key in sample.values for sample in samples)]
    fields = [{"name": MEASURES[key].name, "type": "per_model_number"} for key in keys]
    return {
        "metadata": {
            "source_path": f"{report.run}: {report.split}; score: {_score_in_words(report)}",
            "custom_fields_schema": [*fields, {"name": "reference", "type": "text"}],
        },
        "models": [{"name": report.columns[0]}, {"name": report.columns[column]}],
        "examples": [_comparison(s, column, keys) for s in samples],
    }


def _comparison(s: Sample, column: int, keys: Sequence[str]) -> dict[str, Any]:
    rouge = s.values.get("rouge_l", [0.0] * (column + 1))
    fields = {MEASURES[key].name: [s.values[key][0], s.values[key][column]] for key in keys if key in s.values}
    return {
        "input_text": f"{s.instruction}\n\n{s.context}".strip(),
        "tags": [s.category],
        "output_text_a": s.answers[0],
        "output_text_b": s.answers[column],
        "score": _judge_score(s, column) if s.judgements else SCORE_LIMIT * (rouge[0] - rouge[column]),
        "individual_rater_scores": _raters(s.judgements[column - 1]) if s.judgements else [],
        "custom_fields": fields | {"reference": s.reference},
    }


def _score_in_words(report: EvalReport) -> str:
    if report.judge:
        return f"the judge {report.judge.judge}, both orders"
    return f"ROUGE-L of A less that of B, times {SCORE_LIMIT}"


def _judge_score(s: Sample, column: int) -> float:
    return {"win": -1.0, "loss": 1.0}.get(s.judgements[column - 1].outcome, 0.0)


def _raters(judgement: Judgement) -> list[dict[str, Any]]:
    """Each order as a rater; the second one read B first, so its choice is turned back."""
    raters = []
    for flipped, (choice, reason) in enumerate(zip(judgement.choices, judgement.reasons, strict=True)):
        if choice:
            score = {"first": 1.0, "second": -1.0}.get(choice, 0.0) * (-1 if flipped else 1)
            label = "A is better" if score > 0 else "B is better" if score < 0 else "same"
            rater = {"score": score, "rating_label": label, "is_flipped": bool(flipped), "rationale": reason}
            raters.append(rater)
    return raters
