"""A judge behind an OpenAI-compatible endpoint: bounded retries, every call counted, the key never shown."""

import os
import random
import threading
from typing import Any, NamedTuple

import httpx

from evaluation.cache import Value
from evaluation.config import JudgeName
from evaluation.findings import Counts
from evaluation.judge_prompt import Message, Question, again, messages, read_reply

KEY = "TANDEM_JUDGE_KEY"
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5  # doubled at each retry
LONGEST_WAIT_SECONDS = 60.0
GIVE_UP_AFTER = 6  # questions in a row that the endpoint left without any reply
TIMEOUT_SECONDS = 180.0
PASSING = (408, 409, 425, 429, *range(500, 600))  # statuses that a later try may not meet
HIDDEN = "[key]"


class Reply(NamedTuple):
    """What the judge said; tokens are None where it does not tell."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class _Passing(Exception):
    """No reply this time; `wait` is what the server asks to wait, in seconds."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class _Refused(Exception):
    """No reply, whatever is tried."""


class Endpoint:
    """Asks; used by several threads at once. `counts` says what it took, `trouble` what went wrong last."""

    def __init__(self, name: JudgeName, longest_reply: int) -> None:
        """Reach it. Raises ValueError with a sentence where it does not answer, refuses, or has no such model."""
        self._key = os.environ.get(KEY, "").strip()
        if not self._key.isascii() or not self._key.isprintable():  # an error about it would print it
            raise ValueError(f"{KEY} holds a character that no key can have.")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # Redirects are not followed: the key goes to the address that was given, and nowhere else.
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS)
        self.address = name.address
        self.counts = Counts()
        self.trouble = ""
        self._limits: dict[str, Any] = {"temperature": 0, "max_tokens": longest_reply}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._silent_in_a_row = 0
        listed = self._models()
        if not name.model and len(listed) != 1:
            there = ", ".join(listed[:12]) or "none that it tells"
            raise ValueError(f"{self.address} has several models or none: name one, as URL,model; there are: {there}.")
        self.model = name.model or listed[0]

    def close(self) -> None:
        """Hang up, and start no further try."""
        self._over.set()
        self._client.close()

    @property
    def has_given_up(self) -> bool:
        return self._over.is_set()

    def ask(self, question: Question) -> Value | None:
        """Its choice and reasons, or None where no try gave a clear reply. Never raises."""
        asked, wait = messages(question), 0.0
        for attempt in range(ATTEMPTS):
            if self._over.wait(wait):
                return None
            wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.75, 1.25))
            self._count(retries=int(attempt > 0))
            try:
                reply = self._call(asked)
            except _Passing as error:
                wait = wait if error.wait is None else min(LONGEST_WAIT_SECONDS, error.wait)
                self.trouble = str(error)
                continue
            except _Refused as error:
                self._give_up(str(error))
                return None
            self._silent_in_a_row = 0
            choice, reason = read_reply(reply.text)
            if choice:
                return {"choice": choice, "reason": reason[:4000]}
            self._count(malformed=1)
            self.trouble = f"its reply ended with no verdict but {reply.text.strip()[-60:]!r}"
            asked, wait = again(asked, reply.text), 0.0
        if not self.trouble.startswith("its reply"):
            self._silent_in_a_row += 1
            if self._silent_in_a_row >= GIVE_UP_AFTER:
                self._give_up(self.trouble)
        return None

    def _call(self, asked: list[Message]) -> Reply:
        """One request. Where it refuses a setting that only some models know, once more without it."""
        limits = dict(self._limits)
        self._count(calls=1)
        try:
            body = {"model": self.model, "messages": asked} | limits
            response = self._client.post(f"{self.address}/chat/completions", json=body)
        except (httpx.HTTPError, RuntimeError) as error:  # a closed client raises RuntimeError
            raise _Passing(self._without_key(f"{type(error).__name__}: {error}")) from error
        if response.status_code == 400 and (fewer := _adapted(limits, response.text)) is not None:
            self._limits = fewer
            return self._call(asked)
        if response.is_error or response.is_redirect:
            said = self._without_key(f"status {response.status_code}: {response.text[:200]}")
            if response.status_code in PASSING:
                raise _Passing(said, _seconds(response.headers.get("retry-after")))
            raise _Refused(said)
        return self._read(response)

    def _read(self, response: httpx.Response) -> Reply:
        try:
            answer = response.json()
            text = answer["choices"][0]["message"]["content"] or ""
            usage = answer.get("usage") or {}
            reply = Reply(str(text), usage.get("prompt_tokens"), usage.get("completion_tokens"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Passing("it does not answer in OpenAI's format") from error
        told = isinstance(reply.prompt_tokens, int) and isinstance(reply.completion_tokens, int)
        if told:
            self._count(prompt_tokens=reply.prompt_tokens or 0, completion_tokens=reply.completion_tokens or 0)
        else:
            self._count(without_usage=1)
        return reply

    def _models(self) -> list[str]:
        """The models it lists; many list none. Raises ValueError where nobody is there, or the key is not taken."""
        try:
            response = self._client.get(f"{self.address}/models", timeout=20.0)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ValueError(f"No judge answers at {self.address}: {self._without_key(str(error))}.") from error
        if response.status_code in (401, 403):
            raise ValueError(f"{self.address} does not let us in (status {response.status_code}): set {KEY}.")
        try:
            return [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return []

    def _give_up(self, why: str) -> None:
        self.trouble = why
        self._over.set()

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)

    def _without_key(self, text: str) -> str:
        """A server may repeat the key in what it says."""
        return text.replace(self._key, HIDDEN) if self._key else text


def _adapted(limits: dict[str, Any], refusal: str) -> dict[str, Any] | None:
    """Settings that a model which refuses these may take: a longest reply by its newer name, its own temperature."""
    if "max_completion_tokens" in refusal and "max_tokens" in limits:
        return {n: v for n, v in limits.items() if n != "max_tokens"} | {"max_completion_tokens": limits["max_tokens"]}
    if "temperature" in refusal and "temperature" in limits:
        return {n: v for n, v in limits.items() if n != "temperature"}
    return None


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; its other form, a date, is left to our own wait."""
    return float(text) if text and text.isdigit() else None
