"""A tiny random Llama with a tokenizer of its own, in NF4: the real code paths, in milliseconds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest_plugins = ["browsing", "scored"]  # the page over a tiny model in a browser; a run to evaluate

ROOT = Path(__file__).resolve().parents[1]
DOLLY_ROWS = ROOT.parent / "shared" / "data" / "dolly" / "rows.jsonl"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Without a network the hub's client would retry for half a minute at every turn.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests first: with two workers, the last one to run then takes seconds, not minutes."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama: 2 layers, width 64, grouped heads, about 1,000 tokens of byte-level BPE."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from benchmarks.tokenizer import byte_level_bpe

    folder = tmp_path_factory.mktemp("tiny")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = byte_level_bpe(1000, special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=special[0], eos_token=special[2])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_source(tiny_model: Path) -> Any:
    from finetune.model import fetch

    return fetch(str(tiny_model))


@pytest.fixture
def tiny_base(tiny_source: Any) -> Any:
    """The tiny model in NF4, for inference; in fp32, so that on a GPU too the same text comes out of other shapes."""
    import torch

    from finetune.base import load_base

    return load_base(tiny_source, dtype=torch.float32)


@pytest.fixture
def tiny_trainable(tiny_source: Any) -> Any:
    """The tiny model in NF4, for training on packs; in fp32 for the same reason."""
    import torch

    from finetune.base import load_base

    return load_base(tiny_source, dtype=torch.float32, trainable=True)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_source: Any) -> Any:
    from finetune.base import load_tokenizer

    return load_tokenizer(tiny_source)


@pytest.fixture
def tiny_adapter(tiny_source: Any, tmp_path: Path) -> Path:
    """A PEFT adapter for the tiny model, with random weights large enough to change what it says."""
    return make_adapter(tiny_source, tmp_path / "adapter", seed=1)


def compute_in(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """Have runs in this process compute in that type, whatever the device would choose."""
    from finetune import base, samples, train, trainer

    for module in (base, samples, train, trainer):
        monkeypatch.setattr(module, "compute_dtype", lambda: dtype)


@pytest.fixture
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process compute in fp32, on a GPU too: for comparisons finer than bf16's rounding."""
    import torch

    compute_in(monkeypatch, torch.float32)


def beside(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a batch on the model's device."""
    return {name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()}


def make_adapter(source: Any, folder: Path, seed: int) -> Path:
    import torch

    from finetune.base import add_lora, load_base
    from finetune.config import Lora
    from finetune.trainer import save_adapter

    torch.manual_seed(seed)
    adapted = add_lora(load_base(source), Lora(r=4, alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(adapted, folder)
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder that this test and its child processes use."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("TANDEM_RUNS", str(folder))
    return folder


@pytest.fixture(scope="session")
def dolly_rows() -> Path:
    if not DOLLY_ROWS.exists():
        pytest.skip(f"real Dolly rows are not at {DOLLY_ROWS.relative_to(ROOT.parent)}")
    return DOLLY_ROWS


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The real 135M model, fetched and converted once into the cache."""
    from finetune.model import fetch

    try:
        return fetch("smollm2-135m")
    except ValueError as error:
        pytest.skip(f"smollm2-135m can't be had here: {error}")


def tandem(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """A command of ours, as a user types it."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def here(main: Callable[[list[str]], int], *arguments: str) -> int:
    """The same command in this process: its imports, seconds in a process of its own, are paid for once."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return main(list(arguments))
    finally:  # a job catches signals for its life, and here that is not the process's
        for number, handler in handlers.items():
            signal.signal(number, handler)


def tiny_run_settings(tiny_model: Path, data: Path | None = None) -> dict[str, Any]:
    """Settings of a run that takes seconds."""
    return {
        "model": str(tiny_model),
        "data": str(data) if data else None,
        "rows": 40,
        "steps": 4,
        "tokens_per_batch": 256,
        "validation_rows": 4,
        "learning_rate": 5e-3,
    }


def wait_for(condition: Any, timeout_seconds: float = 60.0) -> None:
    """Wait until `condition()` is true; fails after the timeout."""
    end = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


class App:
    """The page as `make app` starts it, on a free port, with runs of its own; it can be killed and started again."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.env = {"TANDEM_RUNS": str(folder / "runs")} | (env or {})
        self.runs = Path(self.env["TANDEM_RUNS"])
        self.log = folder / "app.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "app.py", "--port", str(self.port)]
            self.server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | self.env)
        wait_for(self._answers, 90)

    def kill(self) -> None:
        self.server.kill()
        self.server.wait(20)

    def _answers(self) -> bool:
        assert self.server.poll() is None, self.log.read_text()
        try:
            with urlopen(self.address) as page:
                return bool(page.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    started = App(tmp_path_factory.mktemp("app"))
    started.start()
    yield started
    started.kill()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
