import json
from pathlib import Path
from typing import Any

import pytest

from finetune import readers
from finetune.data import Row, load_rows
from finetune.schema import find_columns

ROW = {"instruction": "What is a tilde?", "context": "", "response": "A sign, ~.", "category": "open_qa"}


def sentence(path: Path | str, columns: str | None = None) -> str:
    """What load_rows says about a bad file; it must be one line, and name the file."""
    with pytest.raises(ValueError) as error:
        load_rows(str(path), columns)
    said = str(error.value)
    assert "\n" not in said and said.endswith(".") and Path(path).name.partition("@")[0] in said
    return said


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"instruction": 'Say "a, b"\nand ü.', "context": "x;y"}]
    header = "instruction,context,response,category"
    table = f'{header}\nWhat is a tilde?,,"A sign, ~.",open_qa\n"Say ""a, b""\nand ü.",x;y,"A sign, ~.",open_qa\n'
    files = [
        write(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        write(tmp_path, "a.json", json.dumps(rows)),
        write(tmp_path, "a.csv", table),
        write(tmp_path, "excel.CSV", b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode()),
        write_parquet(tmp_path / "a.parquet", rows),
    ]
    found = [load_rows(str(file)) for file in files]
    assert found[0].rows == [Row(**row) for row in rows]
    assert len({one.sha256 for one in found}) == 1
    assert [one.source for one in found] == [f"file {file.name}" for file in files]


def test_semicolons_tabs_and_a_huge_field(tmp_path: Path) -> None:
    long = "word, " * 50_000  # far above the csv module's own limit of 131,072 characters
    for name, sign in (("semicolons.csv", ";"), ("tabs.csv", "\t")):
        path = write(tmp_path, name, f"question{sign}answer{sign}context\nWhy?{sign}Because.{sign}{long}\n")
        assert load_rows(str(path)).rows == [Row("Why?", long.strip(), "Because.", "uncategorized")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("short.csv", "question,answer\nWhy?,Because.\nHow?\n", "line 3 of"),
        ("twice.csv", "question,question\na,b\n", "names a column twice"),
        ("open.csv", 'question,answer\nWhy?,"Because.\n', "is not CSV"),
        ("header.csv", "question,answer\n", "There are no rows"),
        ("latin.csv", "question,answer\nä,b\n".encode("latin-1"), "it is not UTF-8 text"),
        ("deep.json", "[" * 100_000, "is not JSON"),
        ("deep.jsonl", "[" * 100_000, "Line 1 of"),
        ("lines.json", '{"a": 1}\n{"a": 2}\n', "call it .jsonl"),
        ("strings.json", '["a"]', "Row 1 of"),
        ("surrogate.jsonl", '{"instruction": "a\\ud800", "response": "b"}', "half a character"),
        ("text.parquet", "PAR1 no parquet", "is not Parquet"),
        ("empty.parquet", "", "is not Parquet"),
        ("rows.txt", "{}", "is none of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, text: str | bytes, said: str) -> None:
    assert said in sentence(write(tmp_path, name, text))


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.jsonl", "no/such/folder"])
def test_a_missing_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    assert "can't be read: no such file" in sentence(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "i", "input": "c", "output": "r"}, Row("i", "c", "r", "uncategorized")),
        ({"prompt": "i", "completion": "r", "category": "k"}, Row("i", "", "r", "k")),
        ({"id": "1", "question": "i", "answer": "r"}, Row("i", "", "r", "uncategorized")),
        ({"question": "no", "instruction": "i", "output": "no", "response": "r"}, Row("i", "", "r", "uncategorized")),
    ],
)
def test_columns_by_their_usual_names(tmp_path: Path, row: dict[str, str], expected: Row) -> None:
    assert load_rows(str(write(tmp_path, "a.json", json.dumps([row])))).rows == [expected]


def test_columns_by_what_is_said() -> None:
    there = ["title", "question", "answers", "context", "label"]
    assert find_columns(there, "instruction = title, response=answers", "x") == {
        "instruction": "title",
        "response": "answers",
        "context": "context",
    }
    assert find_columns(there, "response=answers,context=,category=label", "x") == {
        "instruction": "question",
        "response": "answers",
        "category": "label",
    }
    # A named column plays one part: its usual one falls to nobody.
    assert "context" not in find_columns(there, "response=context", "x")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("instruction=titel, response=b", "there is no column 'titel' in"),
        ("question=a", "'question=a' must be one of instruction, context, response, category, messages"),
        ("instruction", "'instruction' must be one of"),
        ("instruction=a, instruction=b", "once"),
        (None, 'Set columns, such as "instruction=question, response=answer"'),
    ],
)
def test_an_unclear_mapping_lists_the_columns(tmp_path: Path, columns: str | None, said: str) -> None:
    path = write(tmp_path, "rows.json", json.dumps([{"a": "x", "b\nc": "y"}, {"d": "z"}]))
    found = sentence(path, columns)
    assert said in found and found.endswith(": a, b c, d.")


def test_what_is_no_text_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", json.dumps([{"question": "q", "answer": "a", "context": ["list"]}]))
    assert "Row 1 of" in sentence(path) and 'columns="context="' in sentence(path)
    assert load_rows(str(path), "context=").rows == [Row("q", "", "a", "uncategorized")]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Not answered"},
]


def test_a_conversation_is_its_last_answer(tmp_path: Path) -> None:
    expected = Row("Be brief.\n\nWhy?", "User: Hello\nAssistant: Hi.", "Because.", "uncategorized")
    words = {"user": "human", "assistant": "gpt", "system": "system"}
    sharegpt = [{"from": words[m["role"]], "value": m["content"]} for m in CHAT]
    files = [
        write(tmp_path, "openai.json", json.dumps([{"messages": CHAT, "prompt": "Hello"}])),
        write(tmp_path, "sharegpt.json", json.dumps([{"conversations": sharegpt}])),
        write_parquet(tmp_path / "openai.parquet", [{"messages": CHAT}]),
    ]
    assert [load_rows(str(file)).rows for file in files] == [[expected]] * 3
    named = write(tmp_path, "named.json", json.dumps([{"chat": CHAT, "kind": "small talk"}]))
    assert load_rows(str(named), "messages=chat, category=kind").rows == [expected._replace(category="small talk")]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "must be a list of objects"),
        ([{"role": "user", "content": 5}], "needs a role and a content"),
        ([{"content": "no role"}], "needs a role and a content"),
        (CHAT[:2], "no answer of an assistant"),
        ([CHAT[2], CHAT[1]], "no user before the last answer"),
    ],
)
def test_a_bad_conversation_names_its_row(tmp_path: Path, messages: Any, said: str) -> None:
    path = write(tmp_path, "rows.json", json.dumps([{"messages": CHAT}, {"messages": messages}]))
    assert said in sentence(path) and "Row 2 of" in sentence(path)


def test_a_hub_data_set_without_a_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "is_cached", lambda name: False)
    monkeypatch.setattr(readers, "hub_reachable", lambda: False)
    assert "owner/name is not on this machine and the hub can't be reached" in sentence("owner/name")


def test_what_is_cached_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    assert not readers.is_cached("owner/name")
    folder = tmp_path / "owner___name" / "default" / "0.0.0" / "hash"
    folder.mkdir(parents=True)
    assert not readers.is_cached("owner/name")  # begun, and not whole
    write(folder, "dataset_info.json", '{"download_checksums": {"hf://datasets/owner/name@c0ffee/rows.csv": {}}}')
    assert readers.is_cached("owner/name") and readers.is_cached("owner/name", "c0ffee")
    assert not readers.is_cached("owner/name", "deadbeef")


class Hub:
    """Stands in for `datasets.load_dataset`: real Dataset objects, or an error."""

    def __init__(self, splits: Any) -> None:
        self.splits = splits
        self.asked: tuple[str, dict[str, Any]] | None = None

    def __call__(self, name: str, **options: Any) -> Any:
        self.asked = (name, options)
        if isinstance(self.splits, Exception):
            raise self.splits
        return self.splits


def on_hub(monkeypatch: pytest.MonkeyPatch, splits: Any) -> Hub:
    hub = Hub(splits)
    monkeypatch.setattr("datasets.load_dataset", hub)
    monkeypatch.setattr(readers, "hub_reachable", lambda: True)
    return hub


def dataset(commit: str | None = None) -> Any:
    from datasets import Dataset

    made = Dataset.from_list([{"question": "q", "answer": "a"}])
    if commit:
        made.info.download_checksums = {f"hf://datasets/owner/name@{commit}/rows.csv": {}}
    return made


def test_a_hub_data_set_is_read_at_a_revision_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = on_hub(monkeypatch, {"test": dataset(), "train": dataset("c0ffee00" * 5)})
    found = load_rows("owner/name@main")
    assert found.rows == [Row("q", "", "a", "uncategorized")] and found.source == "owner/name @ c0ffee00"
    assert hub.asked == ("owner/name", {"revision": "main"})
    assert "is on this machine at c0ffee00, not deadbeef" in sentence(f"owner/name@{'deadbeef' * 5}")
    on_hub(monkeypatch, {"test": dataset()})
    assert load_rows("owner/name").source == "owner/name"
    on_hub(monkeypatch, {"test": dataset(), "dev": dataset()})
    assert "has no split train, only test, dev" in sentence("owner/name")


def test_what_the_hub_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    on_hub(monkeypatch, DatasetNotFoundError("no\nsuch"))
    assert "There is no data set owner/name on the hub" in sentence("owner/name")
    on_hub(monkeypatch, DatasetGenerationError("first line.\nsecond line"))
    assert sentence("owner/name") == "The data set owner/name can't be loaded: first line."


def test_a_file_comes_before_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path, "owner/name", "x")
    assert "is none of" in sentence("owner/name")
    assert "no such file" in sentence("owner/name.csv")


def test_real_dolly_is_the_same_as_parquet(dolly_rows: Path, tmp_path: Path) -> None:
    raw = readers.read_file(dolly_rows)
    again = load_rows(str(write_parquet(tmp_path / "dolly.parquet", raw)))
    assert again.sha256 == load_rows(str(dolly_rows)).sha256 and len(again.rows) == 14011
