import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune import data
from finetune.config import Holdout, from_mapping
from finetune.data import Example, Row, encode_rows, load_rows, place, split_rows, take
from finetune.prompt import Encoded, Turn, template


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def rows(count: int) -> list[Row]:
    kinds = ["open_qa", "closed_qa", "summarization"]
    return [Row(f"Question {i}?", "", f"Answer {i}.", kinds[i % 3]) for i in range(count)]


def test_our_sample_has_thirty_rows_a_category_and_says_it_is_not_dolly() -> None:
    found = load_rows(None)
    counts = Counter(row.category for row in found.rows)
    assert len(counts) == 8 and min(counts.values()) >= 30
    assert "not Dolly" in found.source
    assert len({(row.instruction, row.context) for row in found.rows}) == len(found.rows)
    assert all(row.context for row in found.rows if row.category in ("closed_qa", "information_extraction"))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("missing.jsonl", None, "can't be read: no such file"),
        ("empty.jsonl", "\n", "There are no rows"),
        ("broken.jsonl", '{"instruction": "a", "response": "b"}\n{"instr', "Line 2 of"),
        ("list.json", "{}", "must hold a list"),
        ("response.jsonl", '{"instruction": "a", "context": "", "response": " "}', "Row 1 of"),
        ("number.jsonl", '{"instruction": 1, "response": "b"}', "its instruction must be text"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_rows(str(path))
    assert sentence in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "binary.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        load_rows(str(path))


def test_a_row_keeps_its_side_whatever_else_is_there() -> None:
    many, few = rows(600), rows(600)[100:250]
    whole, part = split_rows(many, Holdout()), split_rows(few, Holdout())
    assert set(part.test) == set(whole.test) & set(few)
    assert set(part.validation) == set(whole.validation) & set(few)
    assert 0.1 < len(whole.test) / 600 < 0.2


def test_the_same_question_never_straddles_the_split() -> None:
    twins = [Row("What is  HONEY?", "", "Food.", "open_qa"), Row("what is honey", "", "Bees make it.", "general_qa")]
    assert place(twins[0]) == place(twins[1])


def test_taking_rows_keeps_the_proportions_and_grows_by_adding() -> None:
    many = rows(600)
    taken = take(many, 90)
    assert set(Counter(row.category for row in taken).values()) == {30}
    assert set(take(many, 30)) < set(taken)
    assert take(list(reversed(many)), 90) == taken


def test_a_long_context_is_cut_and_an_answer_never(tiny_tokenizer: Any) -> None:
    long_context = Row("Summarize.", "word " * 400, "A short answer.", "summarization")
    long_answer = Row("Write.", "", "word " * 400, "creative_writing")
    kept = encode_rows([long_context, long_answer], template(tiny_tokenizer, "chat"), 128, 512)
    assert (kept.shortened, kept.dropped, len(kept.examples)) == (1, 1, 1)
    (example,) = kept.examples
    assert 64 < len(example.ids) <= 128
    assert tiny_tokenizer.decode(example.ids[example.prompt_length :]) == "A short answer.<|im_end|>"


def test_loss_on_the_prompt_too_leaves_out_the_first_token_alone(tiny_tokenizer: Any) -> None:
    row, chosen = Row("What is honey?", "", "Food.", "open_qa"), template(tiny_tokenizer, "chat")
    (response,) = encode_rows([row], chosen, None, 512).examples
    (everything,) = encode_rows([row], chosen, None, 512, loss_on="all").examples
    assert everything.ids == response.ids and everything.prompt_length == response.prompt_length > 1
    assert everything.labels == [-100, *everything.ids[1:]]
    assert response.labels == [-100] * response.prompt_length + response.ids[response.prompt_length :]
    for example in (everything, response):
        assert example.supervised == sum(label != -100 for label in example.labels)


def test_a_cut_row_keeps_where_its_loss_is(tiny_tokenizer: Any) -> None:
    row = Row("Summarize.", "word " * 400, "A short answer.", "summarization")
    (example,) = encode_rows([row], template(tiny_tokenizer, "chat"), 128, 512, loss_on="all").examples
    assert example.supervised == len(example.ids) - 1


def test_a_first_token_is_never_a_target() -> None:
    row = Row("q", "", "a", "x")
    assert Example([5, 6], 0, row).labels == [-100, 6] and Example([5, 6], 0, row).supervised == 1
    assert Example([5], 0, row, "all").labels == [-100] and Example([5], 0, row, "all").supervised == 0


def test_a_row_without_a_token_to_learn_from_is_an_error() -> None:
    class Silent:
        def encode(self, turn: Turn) -> Encoded:
            return Encoded([1, 2, 3], [])

    silent: Any = Silent()
    with pytest.raises(ValueError, match=r"The row 'Write.' leaves no token to learn from: take it out"):
        encode_rows([Row("Write.", "", "?", "x")], silent, None, 512)


def test_lengths_and_where_the_longest_is_from(tiny_tokenizer: Any) -> None:
    chosen = template(tiny_tokenizer, "chat")
    found = encode_rows(rows(200), chosen, None, 512)
    # No row has 64 tokens, and no 99th percentile is taken that is smaller.
    assert (found.max_length, found.max_length_from) == (64, "rows")
    assert found.lengths == [len(example.ids) for example in found.examples] and max(found.lengths) < 64
    assert encode_rows(rows(9), chosen, None, 40)[1:5] == (40, 0, 0, "limit")
    assert encode_rows(rows(9), chosen, 50, 512)[1:5] == (50, 0, 0, "setting")
    assert encode_rows(rows(9), chosen, 50, 45)[1:5] == (45, 0, 0, "limit")


def test_the_validation_loss_is_the_responses(tiny_tokenizer: Any) -> None:
    config = from_mapping({"rows": 30, "encoding": {"loss_on": "all"}, "training": {"validation_rows": 6}})
    split = data.select(config, data.Rows(rows(600), "here", ""))
    assert (len(split.train), len(split.validation)) == (30, 6) and len(split.test) > 60
    train, validation = data.encode_split(config, split, template(tiny_tokenizer, "chat"), 512)
    assert {example.loss_on for example in train.examples} == {"all"}
    assert {example.loss_on for example in validation} == {"response"}


def test_a_split_without_training_rows_is_an_error() -> None:
    config = from_mapping({"holdout": {"test_fraction": 0.99, "validation_fraction": 0.0}})
    with pytest.raises(ValueError, match="The split leaves none of the 1 rows to train on"):
        data.select(config, data.Rows(rows(1), "here", ""))


def test_nothing_that_fits_is_an_error(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="None of the 1 rows fits into 16 tokens"):
        encode_rows([Row("Write.", "", "word " * 100, "x")], template(tiny_tokenizer), 16, 512)


def test_real_dolly_rows_load(dolly_rows: Path) -> None:
    found = load_rows(str(dolly_rows))
    split = data.split_rows(found.rows, Holdout())
    assert len(found.rows) == 14011 and len({row.category for row in found.rows}) == 8
    keys = [{place(row) for row in part} for part in split]
    assert not keys[0] & keys[2] and not keys[0] & keys[1] and not keys[1] & keys[2]
    assert json.loads(dolly_rows.open().readline())["instruction"].strip() == found.rows[0].instruction
