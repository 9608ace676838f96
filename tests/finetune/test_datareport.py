import json
from pathlib import Path
from typing import Any

import pytest

from finetune import data, datareport
from finetune.config import TrainConfig, from_mapping
from finetune.data import Example, Row, encode_rows
from finetune.datareport import Bin, DataReport, histogram, report, text, token_by_token
from finetune.prompt import template


def config(path: Path, content: list[dict[str, str]], **settings: Any) -> TrainConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return from_mapping({"data": str(path), **settings})


def numbered(count: int) -> list[dict[str, str]]:
    kinds = ["open_qa", "closed_qa", "open_qa"]
    return [
        {"instruction": f"Question {i}?", "response": f"Answer {i}.", "category": kinds[i % 3]} for i in range(count)
    ]


def test_a_histogram_by_hand() -> None:
    assert histogram([1, 5, 10, 11, 20], 100) == [
        Bin(low=low, high=low + 1, rows=rows)
        for low, rows in zip(range(1, 20, 2), [1, 0, 1, 0, 1, 1, 0, 0, 0, 1], strict=True)
    ]
    assert histogram([3, 25, 31, 90], 25)[-2:] == [Bin(low=25, high=25, rows=1), Bin(low=26, high=90, rows=2)]
    assert histogram([4, 4], 4)[-1] == Bin(low=4, high=4, rows=2)


def test_counts_are_those_of_the_run(tiny_tokenizer: Any, tmp_path: Path) -> None:
    asked = config(tmp_path / "rows.jsonl", [*numbered(300), *numbered(7)], rows=60, training={"validation_rows": 5})
    found = report(asked, tiny_tokenizer, 512)
    split = data.select(asked, data.load_rows(asked.data))
    train, _ = data.encode_split(asked, split, template(tiny_tokenizer), 512)
    assert found.source == "file rows.jsonl" and found.template == "chat"
    assert (found.rows.all, found.rows.train, found.rows.validation) == (307, 60, 5)
    assert found.rows.test == len(split.test)
    assert list(found.categories) == ["open_qa", "closed_qa"]
    assert (found.categories["open_qa"].all, found.categories["open_qa"].train) == (205, 40)
    for side in ("all", "train", "validation", "test"):
        assert sum(getattr(n, side) for n in found.categories.values()) == getattr(found.rows, side)
    assert found.tokens == sum(len(example.ids) for example in train.examples)
    assert found.supervised_tokens == sum(label != -100 for e in train.examples for label in e.labels)
    assert 0 < found.supervised_share < 0.6 and found.repeated_prompts == 7
    assert sum(b.rows for b in found.lengths) == 60
    assert (found.max_length, found.max_length_from) == (64, "the 99th percentile of the training rows")
    assert DataReport.model_validate_json(found.model_dump_json()) == found


def test_what_is_too_long_is_told(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        *numbered(300),
        *({"instruction": f"Sum up {i}.", "context": "word " * 300, "response": "Words."} for i in range(20)),
        *({"instruction": f"Write {i}.", "response": "word " * 300} for i in range(20)),
    ]
    found = report(config(tmp_path / "rows.jsonl", rows, rows=None, encoding={"max_length": 100}), tiny_tokenizer, 512)
    assert found.max_length_from == "as set in max_length"
    assert found.shortened == found.categories["uncategorized"].train - found.dropped > 0 and found.dropped > 0
    assert found.lengths[-1].low == 101 and found.lengths[-1].rows == found.shortened + found.dropped
    assert f"{found.shortened} contexts cut, {found.dropped} rows dropped" in text(found) and "too long" in text(found)


@pytest.mark.parametrize(
    ("limit", "words"), [(40, "the most that the model takes"), (512, "the budget tokens_per_batch")]
)
def test_who_set_the_limit(tiny_tokenizer: Any, tmp_path: Path, limit: int, words: str) -> None:
    asked = config(tmp_path / "rows.jsonl", numbered(40), training={"tokens_per_batch": 45})
    assert report(asked, tiny_tokenizer, limit).max_length_from == words


def test_near_duplicates_across_the_split_are_shown(tiny_tokenizer: Any, tmp_path: Path) -> None:
    story = "Once upon a time a bear found honey in a hollow tree and ate all of it before the bees came home"
    rows = [*numbered(30), *({"instruction": f"{story} {i}", "response": "Nice."} for i in range(60))]
    found = report(config(tmp_path / "rows.jsonl", rows), tiny_tokenizer, 512)
    # Every held-out story has twins in training: 20 of 21 shingles of each are the same, so 20/22 agree.
    held_out = found.categories["uncategorized"].validation + found.categories["uncategorized"].test
    assert found.near_duplicates == held_out > 0
    assert found.near_pairs[0].similarity == pytest.approx(20 / 22) and len(found.near_pairs) == 3
    assert f"{found.near_duplicates} of {found.rows.test + found.rows.validation} held-out prompts" in text(found)
    assert f"91%  held out: {story}" in text(found)


def test_one_example_token_by_token(tiny_tokenizer: Any, tmp_path: Path) -> None:
    found = report(config(tmp_path / "rows.jsonl", numbered(60)), tiny_tokenizer, 512)
    whole = "".join(share for share, _ in found.example)
    learned = "".join(share for share, supervised in found.example if supervised)
    number = whole.partition("Question ")[2].partition("?")[0]
    assert whole == f"<|im_start|>user\nQuestion {number}?<|im_end|>\n<|im_start|>assistant\nAnswer {number}.<|im_end|>"
    assert learned == f"Answer {number}.<|im_end|>"
    assert text(found).endswith("[<|im_end|>]") and "<|im_start|>assistant\n[" in text(found)


def test_a_character_of_several_tokens_is_shown_once(tiny_tokenizer: Any) -> None:
    row = Row("Say 🐝.", "", "Bee 🐝, bee.", "x")
    (example,) = encode_rows([row], template(tiny_tokenizer, "chat"), None, 512).examples
    shares = token_by_token(example, tiny_tokenizer)
    assert len(shares) == len(example.ids) and sum(supervised for _, supervised in shares) == example.supervised
    assert "".join(share for share, _ in shares) == tiny_tokenizer.decode(example.ids)
    assert "".join(share for share, supervised in shares if supervised) == "Bee 🐝, bee.<|im_end|>"
    half = Example(example.ids[: [share for share, _ in shares].index("🐝")], 0, row)
    assert token_by_token(half, tiny_tokenizer)[-1][0] == "\ufffd"


def test_rows_can_not_steer_a_terminal(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = [row | {"category": "\x1b[31mred\nand more", "response": "\x1b[2J\x07"} for row in numbered(30)]
    said = text(report(config(tmp_path / "rows.jsonl", rows), tiny_tokenizer, 512))
    assert "\x1b" not in said and "\x07" not in said and "\\x1b[31mred and more" in said


def test_real_dolly(tiny_tokenizer: Any, dolly_rows: Path) -> None:
    found = report(from_mapping({"data": str(dolly_rows), "rows": 200}), tiny_tokenizer, 1024)
    assert found.rows.all == 14011 and found.rows.train == 200 and len(found.categories) == 8
    assert next(iter(found.categories)) == "open_qa" and found.repeated_prompts == 196
    assert sum(b.rows for b in found.lengths) == 200
    assert max(len(line) for line in text(found).splitlines()[9:30]) < 100


def test_a_run_can_describe_what_it_has(tiny_tokenizer: Any, tmp_path: Path) -> None:
    asked = config(tmp_path / "rows.jsonl", numbered(40))
    rows = data.load_rows(asked.data)
    split, chosen = data.select(asked, rows), template(tiny_tokenizer)
    train, _ = data.encode_split(asked, split, chosen, 512)
    assert datareport.describe(asked, rows, split, chosen, train, 512) == report(asked, tiny_tokenizer, 512)
