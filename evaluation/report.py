"""EvalReport: what was compared, on what, and how it came out. The file `report.json` of an evaluation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from evaluation.stats import Difference, Values, paired_difference, weighted_mean

SCHEMA_VERSION = 1
OVERALL = "all"
MIN_EXAMPLES = 10  # below this a bootstrap interval means little, and no verdict is given


class Sample(BaseModel):
    """One held-out example under every column, base first."""

    model_config = ConfigDict(frozen=True)

    instruction: str
    context: str
    reference: str
    category: str
    answers: list[str]
    stops: list[str]
    nll: list[float]
    """Sum of -log p over the reference's tokens, in nats."""
    tokens: int
    """Tokens of the reference with its end."""
    rouge_l: list[float]


class Score(BaseModel):
    """One metric on one category (or "all"), base against tuned."""

    model_config = ConfigDict(frozen=True)

    metric: str
    category: str
    examples: int
    base: float
    tuned: float
    difference: float
    """tuned - base"""
    low: float
    high: float
    """95 % interval of the difference, by paired bootstrap over the examples."""
    higher_is_better: bool

    @property
    def verdict(self) -> str:
        if self.examples < MIN_EXAMPLES:
            return "too few to tell"
        if not self.low <= 0 <= self.high:
            return "better" if (self.difference > 0) == self.higher_is_better else "worse"
        return "no detectable difference"


class EvalReport(BaseModel):
    """The whole of an evaluation; per-example values are in samples.jsonl beside it."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    run: str
    columns: list[str]
    model: str
    model_sha256: str
    data: str
    template: str
    dtype: str
    rows: int
    dropped: int
    max_new_tokens: int
    versions: dict[str, str]
    seconds: float
    verdict: str
    scores: list[Score]


def score(samples: Sequence[Sample]) -> list[Score]:
    """Loss and ROUGE-L, over all samples first, then by category."""
    categories = [OVERALL, *sorted({sample.category for sample in samples})]
    scores = []
    for category in categories:
        chosen = [s for s in samples if category in (OVERALL, s.category)]
        tokens = np.array([s.tokens for s in chosen], dtype=np.float64)
        losses = np.array([s.nll for s in chosen]) / tokens[:, None]  # [examples, columns]
        rouge = np.array([s.rouge_l for s in chosen])
        scores.append(_score("loss", category, losses, tokens, higher_is_better=False))
        scores.append(_score("rouge_l", category, rouge, np.ones(len(chosen)), higher_is_better=True))
    return scores


def _score(metric: str, category: str, values: Values, weights: Values, higher_is_better: bool) -> Score:
    base, tuned = values[:, 0], values[:, 1]
    difference: Difference = paired_difference(base, tuned, weights)
    return Score(
        metric=metric,
        category=category,
        examples=len(values),
        base=weighted_mean(base, weights),
        tuned=weighted_mean(tuned, weights),
        difference=difference.mean,
        low=difference.low,
        high=difference.high,
        higher_is_better=higher_is_better,
    )


def verdict(scores: Sequence[Score]) -> str:
    """One sentence on the overall scores, with "no detectable difference" as a result like any other."""
    names = {"loss": "response loss", "rouge_l": "ROUGE-L"}
    by_verdict: dict[str, list[str]] = {}
    for s in scores:
        if s.category == OVERALL:
            sign = f"{s.base:.3f} → {s.tuned:.3f}, 95 % interval of the change {s.low:+.3f} to {s.high:+.3f}"
            by_verdict.setdefault(s.verdict, []).append(f"{names[s.metric]} ({sign})")
    words = {
        "better": "better on",
        "worse": "worse on",
        "no detectable difference": "no detectable difference on",
        "too few to tell": "too few examples to tell on",
    }
    parts = [f"{words[v]} {' and '.join(by_verdict[v])}" for v in words if v in by_verdict]
    return (
        f"Tuned is {'; '.join(parts)}."
        if "better" in by_verdict or "worse" in by_verdict
        else f"{parts[0].capitalize()}."
    )


def table(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Rows for people: perplexity beside the loss, the change with its interval, the verdict."""
    rows = []
    for s in scores:
        is_loss = s.metric == "loss"
        rows.append(
            {
                "category": s.category,
                "metric": "response loss" if is_loss else "ROUGE-L",
                "examples": s.examples,
                "base": round(s.base, 4),
                "tuned": round(s.tuned, 4),
                "change": f"{s.difference:+.4f} [{s.low:+.4f}, {s.high:+.4f}]",
                "verdict": s.verdict,
            }
        )
        if is_loss:
            ppl = [math.exp(s.base), math.exp(s.tuned), math.exp(s.base + s.low), math.exp(s.base + s.high)]
            rows.append(
                rows[-1]
                | {
                    "metric": "perplexity",
                    "base": round(ppl[0], 3),
                    "tuned": round(ppl[1], 3),
                    "change": f"{ppl[1] - ppl[0]:+.3f} [{ppl[2] - ppl[0]:+.3f}, {ppl[3] - ppl[0]:+.3f}]",
                }
            )
    return rows
