"""`python -m inference` as a user types it, and its mistakes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tandem
from finished_run import make_run

from finetune.run import Run
from inference.__main__ import main


@pytest.fixture
def run(runs: Path, tiny_model: Path, tiny_source: Any, tiny_adapter: Path) -> Run:
    return make_run(runs, "20260101-000000-one", tiny_model, tiny_source.sha256, tiny_adapter)


def test_compare_prints_every_column_as_json(run: Run) -> None:
    done = tandem(
        "inference", "compare", "latest", "--prompt", "Name a bird.", "--columns", "base,tuned,0.5,0",
        "--max-new-tokens", "12", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    answers = result["answers"]
    assert result["run"] == run.id and [a["column"] for a in answers] == ["base", "tuned", "0.5", "0"]
    assert answers[0]["text"] == answers[3]["text"] != answers[1]["text"]
    assert all(a["stop"] and a["tokens"] and a["first_token_seconds"] > 0 for a in answers)


def test_chat_goes_on_with_every_columns_own_history(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Name a bird.\n\nWhy?\n"))
    assert main(["chat", "latest", "--max-new-tokens", "8", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["prompt"] == "Name a bird." and second["prompt"] == "Why?"
    assert [a["column"] for a in second["answers"]] == ["base", "tuned"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "nobody", "--prompt", "x"], "There is no run 'nobody'"),
        (["compare", "latest", "--prompt", " "], "Write a prompt first"),
        (["compare", "latest", "--prompt", "x", "--columns", "base,checkpoint-7"], "no whole checkpoint-7"),
        (["compare", "latest", "--prompt", "x", "--columns", ","], "at least one column"),
        (["compare", "latest", "--prompt", "x", "--temperature", "-1"], "--temperature"),
        (["chat", "latest", "--max-new-tokens", "0"], "--max-new-tokens must be 1 or more"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    run: Run, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and "Traceback" not in said
