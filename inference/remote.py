"""The engine's interface over an OpenAI-compatible server, for those who outgrow one machine.

With vLLM (`--enable-lora`), llama.cpp, `transformers serve` or Tandem itself, base and adapters are model names. The
server applies its own template, and draws its own noise for each column.
"""

import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from finetune.prompt import BLANK_LINE, Turn
from inference.decode import Answer, StopReason
from inference.engine import Update
from inference.sampling import Sampling

STOP: dict[str, StopReason] = {"stop": "end", "length": "length"}
WAIT_SECONDS = 600.0  # for a token: a server may load a model first
TICK_SECONDS = 0.08


class Remote:
    """Answers of any number of a server's models, streamed side by side.

    Args:
        address: where the server's API begins, such as "http://127.0.0.1:8000/v1".
        key: what the server wants as a bearer token; empty: none.
    """

    def __init__(self, address: str, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=address.rstrip("/"), headers=headers, timeout=WAIT_SECONDS)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def models(self) -> list[str]:
        """The names of the server's models. Raises ValueError with a sentence where it does not answer."""
        try:
            answer = self._client.get("/models").raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            raise ValueError(f"No OpenAI-compatible server answers at {self._client.base_url}: {error}.") from error
        return [str(entry["id"]) for entry in answer["data"]]

    def compare(
        self,
        models: Sequence[str],
        histories: Sequence[Sequence[Turn]],
        sampling: Sampling,
        max_new_tokens: int,
        system: str = "",
    ) -> Iterator[Update]:
        """Stream the answers of `models`, each to its own history, about ten updates a second.

        Closing the iterator hangs up on every one. Tokens are the server's count where it tells, else its chunks.

        Raises:
            ValueError: the server does not answer, or refuses; the sentence says why.
        """
        news: queue.Queue[tuple[int, Answer | ValueError]] = queue.Queue()
        cancel = threading.Event()
        for row, (model, history) in enumerate(zip(models, histories, strict=True)):
            body = _body(model, history, sampling, max_new_tokens, system)
            threading.Thread(target=self._answer, args=(row, body, news, cancel), daemon=True).start()
        answers = [Answer("", 0, 0.0, 0.0, None) for _ in models]
        try:
            while not all(answer.stop for answer in answers):
                for row, answer in _drain(news):
                    if isinstance(answer, ValueError):
                        raise answer
                    answers[row] = answer
                yield Update(list(answers), "")
        finally:
            cancel.set()

    def _answer(self, row: int, body: dict[str, Any], news: "queue.Queue[Any]", cancel: threading.Event) -> None:
        """Read one model's stream into `news` until it ends or is cancelled."""
        started = time.perf_counter()
        try:
            with self._client.stream("POST", "/chat/completions", json=body) as response:
                if response.is_error:
                    raise ValueError(f"The server refused {body['model']}: {response.read().decode()[:300]}.")
                for answer in _read(response.iter_lines(), started):
                    if cancel.is_set():
                        return
                    news.put((row, answer))
        except httpx.HTTPError as error:
            news.put((row, ValueError(f"The server at {self._client.base_url} went silent: {error}.")))
        except ValueError as error:
            news.put((row, error))


def _body(model: str, history: Sequence[Turn], sampling: Sampling, longest: int, system: str) -> dict[str, Any]:
    """The request; settings beyond OpenAI's own are named only where they do something."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in history:
        asked = BLANK_LINE.join(part.strip() for part in (turn.instruction, turn.context) if part.strip())
        messages.append({"role": "user", "content": asked})
        if turn.response is not None:
            messages.append({"role": "assistant", "content": turn.response.strip()})
    defaults = Sampling()
    beyond = {n: getattr(sampling, n) for n in ("top_k", "min_p", "repetition_penalty")}
    return {
        "model": model,
        "messages": messages,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "max_tokens": longest,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | {name: value for name, value in beyond.items() if value != getattr(defaults, name)}


def _read(lines: Iterator[str], started: float) -> Iterator[Answer]:
    """The answer after each event of a stream; the last one has a stop reason."""
    text, tokens, first, stop = "", 0, 0.0, None
    for line in lines:
        if not line.startswith("data:") or line.endswith("[DONE]"):
            continue
        event = json.loads(line.removeprefix("data:"))
        if "error" in event:
            raise ValueError(f"The server gave up: {event['error'].get('message', event['error'])}")
        for choice in event.get("choices", []):
            if new := choice.get("delta", {}).get("content"):
                text, tokens, first = text + new, tokens + 1, first or time.perf_counter() - started
            stop = choice.get("finish_reason") or stop
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        yield Answer(text.strip(), tokens, first, time.perf_counter() - started, None)
    yield Answer(text.strip(), tokens, first, time.perf_counter() - started, STOP.get(str(stop), "end"))


def _drain(news: "queue.Queue[Any]") -> Iterator[tuple[int, Any]]:
    """What has come within a tick, the newest last."""
    end = time.monotonic() + TICK_SECONDS
    while (left := end - time.monotonic()) > 0:
        try:
            yield news.get(timeout=left)
        except queue.Empty:
            return
