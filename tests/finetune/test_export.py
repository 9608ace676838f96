"""Exports, opened by the software that they are for: llama.cpp, PEFT; the hub's client in a dry run."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import tandem, tiny_run_settings, wait_for
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune import export
from finetune.config import TrainConfig, with_settings
from finetune.job import create_run
from finetune.merged import merge
from finetune.ollama import modelfile, pieces
from finetune.prompt import Turn, template
from finetune.run import Reporter, Run, runs_folder
from finetune.train import train

SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx = sys.argv[1], int(sys.argv[2]), 512
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
time.sleep(600)
"""
QUESTION = "Name 3 birds of 2023, it's café time!"


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A merged run of the tiny model."""
    before = os.environ.get("TANDEM_RUNS")
    os.environ["TANDEM_RUNS"] = str(tmp_path_factory.mktemp("merged") / "runs")
    run, lock = create_run(with_settings(TrainConfig(), tiny_run_settings(tiny_model)), "test")
    reporter = Reporter(run)
    train(run, reporter)
    reporter.end()
    os.close(lock)
    merge(run, "auto", None, 4, print)
    yield run
    os.environ.pop("TANDEM_RUNS")
    if before:
        os.environ["TANDEM_RUNS"] = before


@contextmanager
def llama_cpp(file: Path) -> Iterator[str]:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(file), str(port)])
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, "llama.cpp ended"
        try:
            return httpx.get(f"{address}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for(answers, 60)
        yield address
    finally:
        server.kill()


@pytest.mark.parametrize("precision", ["f16", "bf16", "q8_0"])
def test_llama_cpp_answers_as_the_merged_model_does(merged: Run, tmp_path: Path, precision: str) -> None:
    """The same prompt ids from its own template, and the same likeliest tokens as transformers finds."""
    file = export.to_gguf(merged, tmp_path / "model.gguf", precision)
    folder = merged.path / "merged"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = template(tokenizer, "chat").encode_prompt([Turn(QUESTION)])
    with torch.no_grad():
        likeliest = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    with llama_cpp(file) as address:
        prompt = httpx.post(
            f"{address}/apply-template", json={"messages": [{"role": "user", "content": QUESTION}]}
        ).json()["prompt"]
        theirs = httpx.post(
            f"{address}/tokenize", json={"content": prompt, "add_special": True, "parse_special": True}
        ).json()["tokens"]
        assert theirs == ids
        asked = {"prompt": ids, "n_predict": 1, "n_probs": 5, "temperature": 0}
        said = httpx.post(f"{address}/completion", json=asked, timeout=60).json()
    top = said["completion_probabilities"][0]["top_logprobs"]
    tolerance = 0.05 if precision != "q8_0" else 0.3
    for candidate in top:
        assert candidate["logprob"] == pytest.approx(likeliest[candidate["id"]].item(), abs=tolerance)


def test_the_adapter_alone_loads_in_peft(merged: Run, tiny_model: Path, tmp_path: Path) -> None:
    folder = export.adapter(merged, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = base(ids).logits
        assert not torch.equal(PeftModel.from_pretrained(base, folder)(ids).logits, before)


def test_the_modelfile_writes_what_the_chat_template_writes(merged: Run) -> None:
    folder = merged.path / "merged"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = pieces(tokenizer)
    messages = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", QUESTION)]
    expected = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages], tokenize=False, add_generation_prompt=True
    )
    assert found.render([("Hi", "Hello"), (QUESTION, None)], "Be brief.") == expected
    text = modelfile(folder, "model.gguf")
    assert text.startswith("FROM ./model.gguf\n") and 'PARAMETER stop "<|im_end|>"' in text
    (go,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert as_ollama_would(go, messages) == expected


def as_ollama_would(go: str, messages: list[tuple[str, str]]) -> str:
    """The few words of Go's template language that the Modelfile uses."""
    system = next((content for role, content in messages if role == "system"), "")
    start, loop, end = re.fullmatch(r"(.*){{ range \.Messages }}(.*){{ end }}{{ end }}(.*)", go, re.DOTALL).groups()  # type: ignore[union-attr]
    given, otherwise = re.fullmatch(r"{{ if \.System }}(.*){{ else }}(.*){{ end }}", start, re.DOTALL).groups()  # type: ignore[union-attr]
    user, answer = re.fullmatch(
        r'{{ if eq \.Role "user" }}(.*){{ else if eq \.Role "assistant" }}(.*)', loop, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    said = [
        (user if role == "user" else answer).replace("{{ .Content }}", content)
        for role, content in messages
        if role != "system"
    ]
    return "".join([given.replace("{{ .System }}", system) if system else otherwise, *said, end])


def test_the_dolly_template_has_pieces_too(tiny_source: Any) -> None:
    from finetune.base import load_tokenizer

    tokenizer = load_tokenizer(tiny_source)
    chosen = template(tokenizer, "dolly")
    tokenizer.chat_template = chosen.as_jinja()
    turns = [Turn("Hi", "", "Hello"), Turn(QUESTION)]
    assert pieces(tokenizer).render([("Hi", "Hello"), (QUESTION, None)]) == chosen.render(turns)


def test_a_dry_run_says_what_the_hub_would_get(merged: Run, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    assert "nothing was sent" in export.to_hub(merged, "someone/a-model", True, True, said.append)
    names = {line.split()[-1] for line in said}
    assert {"model.safetensors", "config.json", "certificate.json", "README.md", "tokenizer.json"} <= names
    assert "manifest.json" not in names
    with pytest.raises(ValueError, match="is no hub repository: give owner/name"):
        export.to_hub(merged, "../x", True, True, print)


@pytest.mark.long
def test_from_the_command_line(merged: Run, tmp_path: Path) -> None:
    assert runs_folder() == merged.path.parent
    done = tandem("finetune", "export", merged.id, "--as", "ollama", "--to", str(tmp_path / "ollama"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exported"] == str(tmp_path / "ollama")
    assert {path.name for path in (tmp_path / "ollama").iterdir()} == {
        "Modelfile",
        "model-q8_0.gguf",
        "manifest.json",
    }
    again = tandem("finetune", "export", merged.id, "--as", "ollama", "--to", str(tmp_path / "ollama"))
    assert again.returncode == 2 and "exists: name another place" in again.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_without_a_merged_model_it_says_how_to_make_one(merged: Run, tmp_path: Path) -> None:
    bare = Run(shutil.copytree(merged.path, tmp_path / "bare", ignore=shutil.ignore_patterns("merged")))
    with pytest.raises(ValueError, match=f"make it with `python -m finetune merge {bare.id}`"):
        export.to_gguf(bare, tmp_path / "x.gguf", "f16")
