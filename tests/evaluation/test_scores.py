"""Scores and statistics against the libraries and against simulated truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from evaluation.likelihood import response_nll
from evaluation.metrics import rouge_l
from evaluation.report import Sample, score, verdict
from evaluation.stats import paired_difference
from finetune.data import encode_rows, load_rows
from finetune.prompt import template
from inference.lora import Placed, load_adapter, placed


def test_rouge_l_is_rouge_score() -> None:
    answers = ["The cat sat on the mat.", "", "Löwen und Bären", "one two three four"]
    references = ["A cat was sitting on the mat.", "Nothing", "Löwen", "four three two one"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(r, a)["rougeL"].fmeasure for a, r in zip(answers, references, strict=True)]
    assert rouge_l(answers, references) == expected
    assert all(type(value) is float for value in rouge_l(answers, references))


def test_likelihood_is_that_of_a_plain_forward(tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path) -> None:
    rows = load_rows(None).rows[:12]
    examples = encode_rows(rows, template(tiny_tokenizer), 256, 512).examples
    adapter = load_adapter(tiny_adapter, tiny_base)
    found = response_nll(
        tiny_base, examples, 2, lambda n: [Placed(adapter, [0.0, 1.0] * n)], tiny_tokenizer.pad_token_id
    )
    assert len(found) == len(examples)
    for example, columns in zip(examples, found, strict=True):
        for strength, likelihood in zip((0.0, 1.0), columns, strict=True):
            with torch.no_grad(), placed(tiny_base, [Placed(adapter, [strength])]):
                log_p = tiny_base(torch.tensor([example.ids])).logits[0].float().log_softmax(-1)
            response = range(example.prompt_length, len(example.ids))
            plain = -sum(log_p[at - 1, example.ids[at]].item() for at in response)
            assert likelihood.tokens == len(response)
            assert likelihood.nll / likelihood.tokens == pytest.approx(plain / len(response), abs=1e-4)


def test_intervals_cover_a_known_difference() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for experiment in range(500):
        base = generator.normal(2.5, 1.0, 100)
        tuned = base - 0.1 + generator.normal(0, 0.5, 100)
        difference = paired_difference(base, tuned, np.ones(100), resamples=1000, seed=experiment)
        covered += difference.low <= -0.1 <= difference.high
    assert 0.92 <= covered / 500 <= 0.98


def test_pairing_sees_what_separate_error_bars_can_not() -> None:
    generator = np.random.default_rng(1)
    base = generator.normal(2.5, 1.0, 60)
    tuned = base - 0.05 + generator.normal(0, 0.02, 60)
    assert paired_difference(base, tuned, np.ones(60)).high < 0
    assert 1.96 * base.std() / np.sqrt(60) > 0.2  # the bars of either side alone are wider than the gap by far


def test_weights_make_it_a_mean_over_tokens() -> None:
    base, tuned = np.array([1.0, 2.0]), np.array([0.0, 2.0])
    assert paired_difference(base, tuned, np.array([3.0, 1.0])).mean == pytest.approx(-0.75)


def sample(category: str, base: float, tuned: float, rouge: tuple[float, float]) -> Sample:
    return Sample(
        instruction="q",
        context="",
        reference="a",
        category=category,
        answers=["x", "y"],
        stops=["end", "end"],
        nll=[base * 10, tuned * 10],
        tokens=10,
        rouge_l=list(rouge),
    )


def test_the_verdict_in_words() -> None:
    better = [sample("open_qa", 2.0 + i / 50, 1.5 + i / 50, (0.2, 0.2 + (-1) ** i * 0.1)) for i in range(40)]
    text = verdict(score(better))
    assert text.startswith("Tuned is better on response loss (2.390 → 1.890")
    assert "no detectable difference on ROUGE-L" in text
    same = [sample("open_qa", 2.0, 2.0 + (-1) ** i * 0.1, (0.2, 0.2)) for i in range(40)]
    assert verdict(score(same)).startswith("No detectable difference on response loss")


def test_a_handful_of_examples_earns_no_verdict() -> None:
    few = [sample("open_qa", 2.0, 1.0, (0.1, 0.9))] * 3
    assert {s.verdict for s in score(few)} == {"too few to tell"}
