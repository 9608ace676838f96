"""Scores of answers: `evaluate.Metric`s of ours over the well-known libraries, so that they work without a hub."""

from typing import Any

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer


class RougeL(evaluate.Metric):
    """ROUGE-L F-measure, 0 to 1, by Google's rouge_score with stemming: one score an example."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Longest common subsequence of answer and reference (Lin 2004).",
            citation="Lin, C.-Y. (2004). ROUGE: A Package for Automatic Evaluation of Summaries.",
            inputs_description="predictions: answers; references: one reference each.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, list[float]]:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        pairs = zip(references, predictions, strict=True)
        return {"rouge_l": [float(scorer.score(target, answer)["rougeL"].fmeasure) for target, answer in pairs]}


def rouge_l(answers: list[str], references: list[str]) -> list[float]:
    """ROUGE-L F-measure of each answer."""
    scores: list[float] = RougeL().compute(predictions=answers, references=references)["rouge_l"]
    return scores
