"""EvalReport: what was compared, on what, and how it came out. The file `report.json` of an evaluation."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.findings import Judgement, JudgeReport, ProbeReport
from evaluation.measures import MEASURES

SCHEMA_VERSION = 3  # 2: without judge and probe; read_report reads it too
OVERALL = "all"
MIN_EXAMPLES = 10  # below this a bootstrap interval means little, and no verdict is given
SIGNIFICANT = 0.05


class Sample(BaseModel):
    """One held-out example under every column, in the report's order of columns. A line of `samples.jsonl`."""

    model_config = ConfigDict(frozen=True)

    instruction: str
    context: str
    reference: str
    category: str
    leak: str = ""
    """"same" or "near" where this prompt was trained on, else empty."""
    answers: list[str]
    """Empty where no answers were asked for."""
    stops: list[str]
    nll: list[float]
    """Sum of -log p over the reference's tokens, in nats; empty where no likelihood was asked for."""
    tokens: int
    """Tokens of the reference with its end."""
    bytes: int
    """UTF-8 bytes of the reference."""
    values: dict[str, list[float]]
    """Each measure's score under every column; a measure that means nothing on this category is left out."""
    judgements: list[Judgement] = []
    """The judge's, of each column but the first; empty without a judge."""


class Score(BaseModel):
    """One metric on one category (or "all"), one column ("tuned") against the first ("base")."""

    model_config = ConfigDict(frozen=True)

    metric: str
    category: str
    column: str = "tuned"
    """The column that is compared with the first one."""
    examples: int
    base: float
    tuned: float
    difference: float
    """tuned - base"""
    low: float
    high: float
    """95 % interval of the difference, by paired bootstrap over the examples."""
    higher_is_better: bool | None
    """None where neither way is better."""
    p: float | None = None
    """p value of the paired sign-flip permutation test, two-sided."""
    p_holm: float | None = None
    """p after Holm's correction over the categories; overall it is p itself."""
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    """On how many examples tuned is better, equal, worse than base."""
    further_examples: int | None = None
    """About how many more examples would settle a difference of this size; None where there is none to settle."""
    corpus_base: float | None = None
    corpus_tuned: float | None = None
    """The score of all answers taken together, where that is another thing than their mean (BLEU, chrF)."""

    @property
    def verdict(self) -> str:
        """Clear is what the interval and the corrected permutation test both say."""
        if self.examples < MIN_EXAMPLES:
            return "too few to tell"
        if self.low <= 0 <= self.high or (self.p_holm is not None and self.p_holm >= SIGNIFICANT):
            return "no detectable difference"
        if self.higher_is_better is None:
            return "higher" if self.difference > 0 else "lower"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


class ColumnFacts(BaseModel):
    """What a column was, for the record."""

    model_config = ConfigDict(frozen=True)

    label: str
    strength: float
    adapter_sha256: str | None
    """Of adapter_model.safetensors; None for the base."""
    merged_sha256: list[str] | None = None
    """Of a merged model's weight files."""
    answers_from_cache: int = 0
    likelihoods_from_cache: int = 0


class EvalReport(BaseModel):
    """The whole of an evaluation; per-example values are in samples.jsonl beside it."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    run: str
    columns: list[str]
    column_facts: list[ColumnFacts] = []
    model: str
    model_sha256: str
    data: str
    data_sha256: str = ""
    examples_sha256: str = ""
    """Of the rows that were scored: reports with the same one can be set side by side."""
    split: str = ""
    """Which rows those are, in words."""
    template: str
    dtype: str
    rows: int
    dropped: int
    shortened: int = 0
    leaks: dict[str, int] = {}
    """Scored rows whose prompt was trained on, by kind."""
    max_new_tokens: int
    sampling: dict[str, Any] = {}
    seeds: dict[str, int] = {}
    batch: dict[str, int] = {}
    """Rows of a batch of answers and padded tokens of a batch of likelihoods, as they fitted into memory."""
    hardware: dict[str, Any] = {}
    versions: dict[str, str]
    seconds: float
    notes: list[str] = []
    """What a reader has to know: what was left out, what was flagged."""
    verdict: str
    scores: list[Score]
    judge: JudgeReport | None = None
    probe: ProbeReport | None = None


def read_report(file: Path) -> EvalReport:
    """A report.json of this version or an older one, parsed once for as long as it stays the same file.

    Raises:
        ValueError: it is no report, or one of a newer version.
    """
    stat = file.stat()
    return _parsed(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _parsed(file: Path, modified: int, size: int) -> EvalReport:
    try:
        report = EvalReport.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file.parent.name} holds no report that can be read here: evaluate again.") from error
    if report.schema_version > SCHEMA_VERSION:
        version = f"version {report.schema_version}, and this program reads up to {SCHEMA_VERSION}"
        raise ValueError(f"The report of {file.parent.name} is of {version}.")
    return report


def table(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Rows for people: perplexity beside the loss, the change with its interval, p, wins, the verdict."""
    rows = []
    for s in scores:
        measure = MEASURES[s.metric]
        rows.append(
            {
                "category": s.category,
                "metric": measure.name,
                "column": s.column,
                "examples": s.examples,
                "base": round(s.base, 4),
                "tuned": round(s.tuned, 4),
                "change": f"{s.difference:+.4f} [{s.low:+.4f}, {s.high:+.4f}]",
                "p": "" if s.p_holm is None else f"{s.p_holm:.4f}",
                "wins/ties/losses": "" if s.wins is None else f"{s.wins}/{s.ties}/{s.losses}",
                "verdict": s.verdict,
            }
        )
        if s.metric == "loss":
            base, tuned = math.exp(s.base), math.exp(s.tuned)
            low, high = math.exp(s.base + s.low), math.exp(s.base + s.high)
            rows.append(
                rows[-1]
                | {
                    "metric": "perplexity",
                    "base": round(base, 3),
                    "tuned": round(tuned, 3),
                    "change": f"{tuned - base:+.3f} [{low - base:+.3f}, {high - base:+.3f}]",
                }
            )
    return rows
