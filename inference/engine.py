"""The one resident 4-bit base and whoever may use it: one worker owns it, callers queue.

Two threads on one model would see each other's adapters; here only the worker ever touches it.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from finetune import memory, model, room
from finetune.base import load_base, load_tokenizer
from finetune.prompt import Template, Turn, template, token_texts
from inference import apart
from inference.captured import Captures
from inference.columns import Column, Subject
from inference.decode import Answer, decode
from inference.lens import Lens, Score, answer_ids, cross, look
from inference.lora import Adapter, Placed, load_adapter
from inference.prefix import Prefix
from inference.room import Tenant, refuse_without_room
from inference.sampling import Sampling
from inference.watching import Shared, watch
from inference.watching import Update as Update

T = TypeVar("T")
NO_ROOM = (
    "The GPU's memory did not suffice for this: shorten the prompt, take fewer columns, or wait until the run beside it"
    " has ended."
)


class Loaded(NamedTuple):
    """A base in memory, with its tokenizer."""

    source: model.Source
    base: Any
    tokenizer: Any


class Engine:
    """Answers for any number of columns from one base."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._line: list[Future[Any]] = []  # what works and what waits, in turn
        self._loaded: Loaded | None = None
        self._tenant: Tenant | None = None  # on a GPU, which is shared with runs
        self._adapters: dict[Path, tuple[int, Adapter]] = {}
        self.prefix = Prefix()
        self.captures = Captures()

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
        system: str = "",
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
            system: what stands before the turns; empty: the template's own.

        Raises:
            ValueError: the base can't be had or is not the expected one; an adapter is broken or does not fit.
        """
        state = Shared()
        asked = Subject(name, revision, template_id, expected_sha256)

        def work() -> None:
            state.started = True
            base, chosen = self._ready(asked, state.say, state.cancel.is_set)
            prompts = [chosen.encode_prompt(history, system) for history in histories]
            _refuse_too_long(prompts, base)
            state.prompt_tokens = tuple(map(len, prompts))
            for answers in self._decode(base, chosen, prompts, columns, sampling, max_new_tokens, state):
                state.answers = answers

        future = self._submit(work)
        state.ahead = lambda: self._ahead(future)
        yield from watch(future, state)

    def lens(
        self, asked: Subject, columns: Sequence[Column], history: Sequence[Turn], text: str, system: str = ""
    ) -> Lens:
        """`text` as the answer to `history` under each column, with its tokens' texts. Waits for its turn.

        Raises as `compare` and `look`.
        """

        def work() -> Lens:
            base, chosen = self._ready(asked, lambda _: None)
            prompt, ids = chosen.encode_prompt(history, system), answer_ids(chosen, text)
            _refuse_too_long([prompt + ids], base)
            lens = look(base, prompt, ids, self.place(columns), len(columns))
            return lens._replace(texts=token_texts(ids, chosen.tokenizer))

        return self._submit(work).result()

    def cross(
        self, asked: Subject, columns: Sequence[Column], history: Sequence[Turn], texts: Sequence[str], system: str = ""
    ) -> list[list[Score]]:
        """Each answer (of the columns, and a reference where there is one) under each column, [answers][columns]."""

        def work() -> list[list[Score]]:
            base, chosen = self._ready(asked, lambda _: None)
            prompts = [chosen.encode_prompt(history, system)] * len(texts)
            ids = [answer_ids(chosen, text) for text in texts]
            _refuse_too_long([prompt + answer for prompt, answer in zip(prompts, ids, strict=True)], base)
            return cross(base, prompts, ids, self.place(columns), len(columns))

        return self._submit(work).result()

    def place(self, columns: Sequence[Column]) -> list[Placed]:
        """Each adapter once, with its strength on every row (a row is a column); ValueError for a merged model."""
        if any(column.model for column in columns):
            raise ValueError("A merged model can't share a pass with the base: leave its column out.")
        folders = dict.fromkeys(column.adapter for column in columns if column.adapter and column.strength)
        return [
            Placed(self._adapter(folder), [c.strength if c.adapter == folder else 0.0 for c in columns])
            for folder in folders
        ]

    def release(self) -> "Future[None]":
        """Give the memory back once the answers that wait are done; the next call loads again, and says so."""
        return self._submit(self.unload_now)

    def unload_now(self) -> None:
        """Give the memory back. Only on the worker, or before it has work."""
        self._loaded = None
        self._adapters.clear()
        self.prefix.drop()
        self.captures.drop()
        gc.collect()  # a 4-bit weight and its layer know each other, so that they do not go with their last name
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._tenant:
            self._tenant.leave()
            self._tenant = None

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        def guarded() -> T:
            try:
                return work()
            except torch.OutOfMemoryError:
                pass  # what it held is let go only once the error is
            self.unload_now()
            raise ValueError(NO_ROOM)

        future = self._worker.submit(guarded)
        self._line.append(future)
        future.add_done_callback(self._line.remove)
        return future

    def _ahead(self, future: "Future[Any]") -> int:
        """How many are to be done before it."""
        line = list(self._line)
        return line.index(future) if future in line else 0

    def _decode(
        self,
        base: Any,
        chosen: Template,
        prompts: list[list[int]],
        columns: Sequence[Column],
        sampling: Sampling,
        max_new_tokens: int,
        state: "Shared",
    ) -> Iterator[list[Answer]]:
        cancelled = state.cancel.is_set
        if any(apart.is_apart(column) for column in columns):
            state.say(apart.NOTICE)
            return apart.decode_apart(base, chosen, prompts, columns, sampling, max_new_tokens, cancelled)
        adapters = self.place(columns)
        state.say("")
        captures = self.captures if base.device.type == "cuda" else None
        return decode(base, chosen, prompts, adapters, sampling, max_new_tokens, cancelled, self.prefix, captures)

    def _leave(self, tenant: Tenant) -> None:
        """Give the memory back to a job, if it is still that base that it asked to leave."""
        self._submit(lambda: self.unload_now() if self._tenant is tenant else None)

    def _ready(
        self, asked: Subject, say: Callable[[str], None], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Any, Template]:
        """The base in memory and its template, with the weights that were expected."""
        source = model.fetch(asked.model, asked.revision, say)
        if asked.sha256 not in (None, source.sha256):
            raise ValueError(f"The adapter was trained on other weights than {source.origin}: load those.")
        if self._loaded is None or self._loaded.source != source or (self._tenant and room.chat_is_to_leave()):
            self.unload_now()
            with room.loading(is_cancelled, say):
                refuse_without_room(source)
                say(f"Loading {asked.model} in 4 bits")
                self._loaded = Loaded(source, load_base(source), load_tokenizer(source))
                self._tenant = Tenant(self._leave) if memory.device().kind == "cuda" else None
        return self._loaded.base, template(self._loaded.tokenizer, asked.template)

    def _adapter(self, folder: Path) -> Adapter:
        """The adapter in that folder, read again when its file has changed."""
        assert self._loaded is not None
        weights = folder / "adapter_model.safetensors"
        changed = weights.stat().st_mtime_ns if weights.exists() else 0
        if folder not in self._adapters or self._adapters[folder][0] != changed:
            self.prefix.drop()
            self.captures.drop()
            self._adapters[folder] = (changed, load_adapter(folder, self._loaded.base))
        return self._adapters[folder][1]


def _refuse_too_long(prompts: list[list[int]], base: Any) -> None:
    """Attention's memory grows with a prompt's square: one that the model can't read anyway could take all there is."""
    longest, most = max(map(len, prompts)), base.config.max_position_embeddings
    if longest >= most:
        raise ValueError(f"The prompt has {longest} tokens and this model reads at most {most}: make it shorter.")
