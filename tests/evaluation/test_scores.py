"""Scores against the libraries they come from, and what a report makes of them."""

import math
from pathlib import Path
from typing import Any

import evaluate
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer

from evaluation import similarity
from evaluation.batches import Batched, Item
from evaluation.columns import Side
from evaluation.likelihood import response_nll
from evaluation.measures import MEASURES, chosen_measures
from evaluation.metrics import Bleu, Chrf, RougeScores, Shape, ShortAnswer, answer_scores, corpus_scores
from evaluation.report import OVERALL, Sample
from evaluation.samples import make_samples
from evaluation.scoring import score
from evaluation.verdict import verdict
from finetune.data import Row, encode_rows, load_rows
from finetune.prompt import template
from inference.lora import Placed, load_adapter, placed

ANSWERS = ["The cat sat on the mat.", "", "Löwen und Bären", "one two three four", "a b c d a b c d"]
REFERENCES = ["A cat was sitting on the mat.", "Nothing", "Löwen", "four three two one", "a b c d"]
PAIRS = list(zip(ANSWERS, REFERENCES, strict=True))
STOPS = ["end", "length", "end", "end", "length"]


def test_scores_are_the_libraries_own() -> None:
    found = answer_scores(ANSWERS, REFERENCES, STOPS, with_similarity=False)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for key, name in [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]:
        assert found[key] == [scorer.score(r, a)[name].fmeasure for a, r in PAIRS]
    bleu = [sacrebleu.sentence_bleu(a, [r], use_effective_order=True).score for a, r in PAIRS]
    assert found["bleu"] == bleu and bleu[0] > 0
    assert found["chrf"] == [sacrebleu.sentence_chrf(a, [r]).score for a, r in PAIRS]
    corpus = corpus_scores(ANSWERS, REFERENCES)
    assert corpus["bleu"] == sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score
    assert corpus["chrf"] == sacrebleu.corpus_chrf(ANSWERS, [REFERENCES]).score


def test_every_score_is_a_float_an_example_of_a_metric_that_combines() -> None:
    together = evaluate.combine([RougeScores(), Bleu(), Chrf(), ShortAnswer(), Shape()])
    found = together.compute(predictions=ANSWERS, references=REFERENCES, stops=STOPS)
    answers = {key for key, measure in MEASURES.items() if measure.source == "answers"}
    assert set(found) == answers - {"similarity"}
    assert all(len(values) == len(ANSWERS) and all(type(v) is float for v in values) for values in found.values())
    bleu = Bleu()
    bleu.add_batch(predictions=ANSWERS[:2], references=REFERENCES[:2])
    bleu.add_batch(predictions=ANSWERS[2:], references=REFERENCES[2:])
    assert bleu.compute()["bleu"] == found["bleu"]


def test_token_f1_and_exact_match_by_hand() -> None:
    found = ShortAnswer().compute(
        predictions=["The Eiffel Tower!", "in Paris, France", "", "an"],
        references=["eiffel tower", "Paris", "x", "the"],
    )
    assert found["exact_match"] == [1.0, 0.0, 0.0, 1.0]
    # in/paris/france against paris: precision 1/3, recall 1
    assert found["token_f1"] == [1.0, pytest.approx(0.5), 0.0, 1.0]


def test_the_shape_of_an_answer_by_hand() -> None:
    found = Shape().compute(predictions=ANSWERS, references=REFERENCES, stops=STOPS)
    assert found["length_ratio"] == [6 / 7, 0.0, 3.0, 1.0, 2.0]
    assert found["stopped"] == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert found["repetition"] == [0.0, 0.0, 0.0, 0.0, pytest.approx(1 / 5)]  # a b c d comes back as the fifth


def test_a_metric_that_there_is_not() -> None:
    assert [m.key for m in chosen_measures("ROUGE-L, loss")] == ["loss", "rouge_l"]
    with pytest.raises(ValueError, match="There is no metric 'rouge_9'; there are: all, loss"):
        chosen_measures("loss,rouge_9")


def test_similarity_knows_meaning() -> None:
    if similarity.encoder_folder() is None:
        pytest.skip("the encoder of the extra `similarity` is not installed")
    answers = ["A feline rested on the rug.", "Shares fell on Monday.", ""]
    found = similarity.Similarity().compute(predictions=answers, references=["The cat sat on the mat."] * 3)
    near, far, nothing = found["similarity"]
    assert near > far + 0.3 and nothing == 0.0


def test_likelihood_is_that_of_a_plain_forward(tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path) -> None:
    rows = load_rows(None).rows[:12]
    examples = encode_rows(rows, template(tiny_tokenizer), 256, 512).examples
    adapter = load_adapter(tiny_adapter, tiny_base)
    sides = [Side(None, 0.0), Side(adapter, 1.0), Side(adapter, 0.5)]
    found = response_nll(tiny_base, examples, sides, tiny_tokenizer.pad_token_id)
    assert len(found.results) == 3 * len(examples) and found.from_cache == [0, 0, 0]
    for i, example in enumerate(examples):
        for column, side in enumerate(sides):
            with torch.no_grad(), placed(tiny_base, [Placed(adapter, [side.strength])]):
                log_p = tiny_base(torch.tensor([example.ids])).logits[0].float().log_softmax(-1)
            response = range(example.prompt_length, len(example.ids))
            plain = -sum(log_p[at - 1, example.ids[at]].item() for at in response)
            likelihood = found.results[Item(i, column)]
            assert likelihood["tokens"] == len(response)
            assert likelihood["nll"] / likelihood["tokens"] == pytest.approx(plain / len(response), abs=1e-4)


def sample(category: str, base: float, tuned: float, rouge: tuple[float, float], tokens: int = 10) -> Sample:
    loss = [base, tuned]
    return Sample(
        instruction="q",
        context="",
        reference="a",
        category=category,
        answers=["x", "y"],
        stops=["end", "end"],
        nll=[base * tokens, tuned * tokens],
        tokens=tokens,
        bytes=1,
        values={"loss": loss, "loss_by_example": loss, "rouge_l": list(rouge)},
    )


def test_the_verdict_in_words() -> None:
    better = [sample("open_qa", 2.0 + i / 50, 1.5 + i / 50, (0.2, 0.2 + (-1) ** i * 0.1)) for i in range(40)]
    text = verdict(score(better))
    assert text.startswith("Tuned is better on response loss (2.390 → 1.890")
    assert "no detectable difference on ROUGE-L" in text
    assert "By category: better on response loss in open qa." in text
    same = [sample("open_qa", 2.0, 2.0 + (-1) ** i * 0.1, (0.2, 0.2)) for i in range(40)]
    assert verdict(score(same)).startswith("No detectable difference on response loss")


def test_the_verdict_says_what_would_settle_it() -> None:
    """Differences of mean 0.02 and standard deviation 0.1: (1.96 · 0.1013 / 0.02)² = 98.5, so 99 in all, 59 more."""
    unsure = [sample("open_qa", 2.0, 1.98 + (-1) ** i * 0.1, (0.2, 0.2)) for i in range(40)]
    overall = score(unsure)[0]
    assert overall.verdict == "no detectable difference" and overall.further_examples == 59
    assert "About 59 more examples would settle response loss" in verdict(score(unsure))


def test_a_handful_of_examples_earns_no_verdict() -> None:
    few = [sample("open_qa", 2.0, 1.0, (0.1, 0.9))] * 3
    assert {s.verdict for s in score(few)} == {"too few to tell"}


def test_loss_by_token_and_by_example() -> None:
    scores = score([sample("a", 1.0, 1.0, (0, 0), tokens=30), sample("a", 2.0, 2.0, (0, 0), tokens=10)])
    overall = {s.metric: s.base for s in scores if s.category == OVERALL}
    assert overall["loss"] == pytest.approx(1.25) and overall["loss_by_example"] == pytest.approx(1.5)
    assert math.exp(overall["loss"]) == pytest.approx(3.490, abs=1e-3)


def test_loss_and_bits_per_byte_by_hand() -> None:
    """14 nats over 7 tokens and 5 bytes (two of them one letter): 2 nats a token, 14 / ln 2 / 5 bits a byte."""
    rows = [Row("q", "", "abcé", "open_qa")]
    likelihoods = Batched({Item(0, c): {"nll": 14.0 / (c + 1), "tokens": 7} for c in range(2)}, [0, 0], 1)
    (made,) = make_samples(rows, [""], likelihoods, None, 2, chosen_measures("loss,bits_per_byte")).samples
    assert made.values["loss"] == [2.0, 1.0] and made.bytes == 5
    assert made.values["bits_per_byte"] == pytest.approx([14 / math.log(2) / 5, 7 / math.log(2) / 5])
    overall = next(s for s in score([made]) if s.metric == "bits_per_byte")
    assert overall.tuned == pytest.approx(7 / math.log(2) / 5)


def test_short_answer_scores_are_for_categories_that_have_short_answers() -> None:
    assert MEASURES["exact_match"].applies("closed_qa") and MEASURES["token_f1"].applies("classification")
    assert not MEASURES["exact_match"].applies("brainstorming") and MEASURES["rouge_l"].applies("brainstorming")


def test_p_is_corrected_over_the_categories() -> None:
    """One category of eight at a raw p just below 5 % is no finding; overall p stands as it is."""
    rows = []
    for c in range(8):
        lift = 0.045 if c == 0 else 0.0
        rows += [sample(f"c{c}", 2.0, 2.0 - lift + (-1) ** i * 0.1, (0.2, 0.2)) for i in range(20)]
    scores = [s for s in score(rows) if s.metric == "loss"]
    first = next(s for s in scores if s.category == "c0")
    assert first.p is not None and first.p_holm is not None
    assert first.p_holm == pytest.approx(min(1.0, 8 * first.p))
    assert scores[0].p == scores[0].p_holm
