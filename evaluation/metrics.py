"""Scores of answers: `evaluate.Metric`s of ours over the well-known libraries, so that they work without a hub.

Each gives one float an example; `evaluate.combine([RougeScores(), Bleu(), …])` gives them all at once.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from evaluation.similarity import Similarity

Scores = dict[str, list[float]]


class TextMetric(evaluate.Metric):
    """An answer and a reference each, as text; kept in memory, so nothing is left in a cache folder."""

    about = ""
    source = ""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.about,
            citation=self.source,
            inputs_description="predictions: answers; references: one reference each.",
            features=datasets.Features({"predictions": text, "references": text}),
        )


class RougeScores(TextMetric):
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures, 0 to 1, by Google's rouge_score with stemming."""

    about = "Unigrams, bigrams and longest common subsequence of answer and reference."
    source = "Lin, C.-Y. (2004). ROUGE: A Package for Automatic Evaluation of Summaries. W04-1013."
    names = ("rouge1", "rouge2", "rougeL")
    keys = ("rouge_1", "rouge_2", "rouge_l")

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **_: Any) -> Scores:
        scorer = RougeScorer(list(self.names), use_stemmer=True)
        found = [scorer.score(target, answer) for target, answer in zip(references, predictions, strict=True)]
        return {key: [float(f[name].fmeasure) for f in found] for key, name in zip(self.keys, self.names, strict=True)}


class Bleu(TextMetric):
    """Sentence BLEU, 0 to 100, by sacrebleu (13a tokens, exponential smoothing, only orders that the answer has)."""

    about = "Precision of 1- to 4-grams with a brevity penalty."
    source = "Papineni et al. (2002). BLEU. P02-1040. Post, M. (2018). A Call for Clarity in Reporting BLEU Scores."

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **_: Any) -> Scores:
        scorer = sacrebleu.BLEU(effective_order=True)
        pairs = zip(predictions, references, strict=True)
        return {"bleu": [float(scorer.sentence_score(answer, [target]).score) for answer, target in pairs]}


class Chrf(TextMetric):
    """Sentence chrF2, 0 to 100, by sacrebleu."""

    about = "F-score of character 1- to 6-grams, recall counted twice."
    source = "Popović, M. (2015). chrF: character n-gram F-score for automatic MT evaluation. W15-3049."

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **_: Any) -> Scores:
        scorer = sacrebleu.CHRF()
        pairs = zip(predictions, references, strict=True)
        return {"chrf": [float(scorer.sentence_score(answer, [target]).score) for answer, target in pairs]}


class ShortAnswer(TextMetric):
    """Token F1 and exact match, 0 to 1, after SQuAD's normalisation."""

    about = "Overlap of the words of answer and reference, and whether they are the same."
    source = "Rajpurkar et al. (2016). SQuAD. D16-1264; its evaluation script, version 2.0."

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **_: Any) -> Scores:
        pairs = [(squad_words(a), squad_words(r)) for a, r in zip(predictions, references, strict=True)]
        return {
            "token_f1": [token_f1(answer, target) for answer, target in pairs],
            "exact_match": [float(answer == target) for answer, target in pairs],
        }


class Shape(TextMetric):
    """What an answer is like apart from what it says: its length against the reference, its end, its repetition."""

    about = "Words of the answer over words of the reference; ended by itself; share of 4-grams seen before."
    source = "Repetition: the share of duplicate n-grams, Welleck et al. (2020), arXiv:1908.04319, section 6."

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], stops: Sequence[str] | None = None, **_: Any
    ) -> Scores:
        lengths = zip(predictions, references, strict=True)
        scores = {
            "length_ratio": [len(answer.split()) / max(1, len(target.split())) for answer, target in lengths],
            "repetition": [repetition(answer) for answer in predictions],
        }
        return scores if stops is None else scores | {"stopped": [float(stop == "end") for stop in stops]}


def squad_words(text: str) -> list[str]:
    """Lower case, no punctuation, no articles: the normalisation of SQuAD's evaluation script."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def token_f1(answer: Sequence[str], target: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words; 1 or 0 where one side has none."""
    if not answer or not target:
        return float(answer == target)
    same = sum((Counter(answer) & Counter(target)).values())
    return 2 * same / (len(answer) + len(target))


def repetition(text: str) -> float:
    """Share of a text's 4-grams of words that stood in it before; 0 for a text without any."""
    words = text.split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answer_scores(answers: list[str], references: list[str], stops: list[str], with_similarity: bool) -> Scores:
    """Every score of every answer, by the measures' keys, each [examples]."""
    metrics: list[TextMetric] = [RougeScores(), Bleu(), Chrf(), ShortAnswer(), Shape()]
    together = evaluate.combine([*metrics, Similarity()] if with_similarity else metrics)
    scores: Scores = together.compute(predictions=answers, references=references, stops=stops)
    return scores


def corpus_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """sacrebleu's BLEU and chrF2 of all answers taken together, 0 to 100: what papers report."""
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(answers), [list(references)]).score),
        "chrf": float(sacrebleu.corpus_chrf(list(answers), [list(references)]).score),
    }
