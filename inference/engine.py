"""The one resident 4-bit base and whoever may use it: one worker owns it, callers queue.

Two threads on one model would see each other's adapters; here only the worker ever touches it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from finetune import model
from finetune.base import load_base, load_tokenizer
from finetune.prompt import Turn, template
from inference.columns import Column
from inference.decode import Answer, decode
from inference.lora import Adapter, Placed, load_adapter
from inference.sampling import Sampling

TICK_SECONDS = 0.08  # between two updates of a stream: browsers choke above about ten a second


class Loaded(NamedTuple):
    """A base in memory, with its tokenizer."""

    source: model.Source
    base: Any
    tokenizer: Any


class Update(NamedTuple):
    """One look at a comparison: an answer a column (none yet while something is being loaded), and what goes on."""

    answers: list[Answer]
    message: str


class Engine:
    """Answers for any number of columns from one base."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._loaded: Loaded | None = None
        self._adapters: dict[tuple[Path, int], Adapter] = {}

    def compare(
        self,
        name: str,
        revision: str | None,
        template_id: Any,
        columns: Sequence[Column],
        histories: Sequence[Sequence[Turn]],
        sampling: Sampling,
        max_new_tokens: int,
        expected_sha256: str | None = None,
    ) -> Iterator[Update]:
        """Stream the answers of `columns`, each to its own history, about ten updates a second.

        Closing the iterator stops the generation within one token. What the worker raises is raised here.

        Args:
            name, revision: the base, as in TrainConfig.
            template_id: "auto", "dolly" or "chat": the run's template.
            columns: what stands side by side.
            histories: the turns of each column, the last one without a response.
            sampling, max_new_tokens: see `decode`.
            expected_sha256: fingerprint of the weights that the adapters were trained on.

        Raises:
            ValueError: the base can't be had or is not the expected one; an adapter is broken or does not fit.
        """
        state = _Shared()

        def work() -> None:
            loaded = self._load(name, revision, state.say)
            if expected_sha256 not in (None, loaded.source.sha256):
                raise ValueError(f"The adapter was trained on other weights than {loaded.source.origin}: load those.")
            chosen = template(loaded.tokenizer, template_id)
            prompts = [chosen.encode_prompt(history) for history in histories]
            adapters = self.place(columns)
            state.say("")
            for answers in decode(
                loaded.base, chosen, prompts, adapters, sampling, max_new_tokens, state.cancel.is_set
            ):
                state.answers = answers

        yield from _watch(self._worker.submit(work), state)

    def place(self, columns: Sequence[Column]) -> list[Placed]:
        """Each adapter once, with its strength on every row (a row is a column)."""
        folders = dict.fromkeys(column.adapter for column in columns if column.adapter and column.strength)
        return [
            Placed(self._adapter(folder), [c.strength if c.adapter == folder else 0.0 for c in columns])
            for folder in folders
        ]

    def _load(self, name: str, revision: str | None, say: Callable[[str], None]) -> Loaded:
        source = model.fetch(name, revision, say)
        if self._loaded is None or self._loaded.source != source:
            self.unload_now()
            say(f"Loading {name} in 4 bits")
            self._loaded = Loaded(source, load_base(source), load_tokenizer(source))
        return self._loaded

    def unload_now(self) -> None:
        """Give the memory back. Only on the worker, or before it has work."""
        self._loaded = None
        self._adapters.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _adapter(self, folder: Path) -> Adapter:
        assert self._loaded is not None
        weights = folder / "adapter_model.safetensors"
        key = (folder, weights.stat().st_mtime_ns if weights.exists() else 0)
        if key not in self._adapters:
            self._adapters[key] = load_adapter(folder, self._loaded.base)
        return self._adapters[key]


class _Shared:
    """What the worker tells the caller while it works, and the caller the worker."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.message = "Waiting for the model"
        self.cancel = threading.Event()

    def say(self, text: str) -> None:
        self.message = text


def _watch(future: "Future[None]", state: _Shared) -> Iterator[Update]:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    try:
        while not done.wait(TICK_SECONDS):
            yield Update(state.answers, state.message)
        future.result()
        yield Update(state.answers, "")
    finally:
        state.cancel.set()
        future.cancel()
