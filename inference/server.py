"""An OpenAI-compatible endpoint: each column is a model, so that any client can talk to base and tuned.

POST /v1/chat/completions (also as a stream of server-sent events) and GET /v1/models, on the engine of the page.
"""

import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any, Literal, NamedTuple

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from finetune.prompt import Turn
from inference.decode import Answer
from inference.engine import Engine, Update
from inference.sampling import Sampling
from inference.served import names, serve

FINISH = {"end": "stop", "length": "length", "cancelled": "stop"}


class Message(BaseModel):
    """One message of a conversation; its content is text, or parts of which each is text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        if any(part.get("type") != "text" for part in self.content):
            raise ValueError("Only text can be sent: these models see no images and hear no sound.")
        return "\n".join(part.get("text", "") for part in self.content)


class StreamOptions(BaseModel):
    """What a stream may tell besides the answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """What a client may ask for. A setting that would have no effect is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Message]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    user: str | None = None

    def sampling(self) -> Sampling:
        """Without a seed every answer is another one."""
        seed = random.getrandbits(62) if self.seed is None else self.seed
        kept = self.model_dump(include=set(Sampling.model_fields) - {"seed"})
        return Sampling(**kept, seed=seed)


class Conversation(NamedTuple):
    """The messages as our templates take them."""

    system: str
    turns: list[Turn]


def conversation(messages: list[Message]) -> Conversation:
    """Messages as turns, the last without a response. Raises ValueError where they don't take turns."""
    system = "\n\n".join(m.text() for m in messages if m.role in ("system", "developer"))
    said = [m for m in messages if m.role in ("user", "assistant")]
    if len(said) % 2 == 0 or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(said)):
        raise ValueError("The messages must alternate between user and assistant, and end with the user.")
    turns = [
        Turn(user.text(), "", answer.text() if answer else None)
        for user, answer in zip(said[::2], [*said[1::2], None], strict=True)
    ]
    return Conversation(system, turns)


def routes(engine: Engine, longest_answer: int = 1024) -> list[Any]:
    """The endpoint's routes, for the application that holds the page.

    Args:
        engine: who answers.
        longest_answer: in tokens, where a client asks for no other.
    """
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "tandem"} for name in names()]
        return {"object": "list", "data": listed}

    @router.post("/chat/completions")
    def chat(asked: dict[str, Any]) -> Response:
        try:
            request = ChatRequest.model_validate(asked)
            updates = _updates(engine, request, longest_answer)
            if not request.stream:
                return JSONResponse(_whole(request, updates))
            first = next(updates)  # what can't be had is told by the status, before the stream begins
        except ValueError as error:
            return _refused(error)
        return StreamingResponse(_live(_events(request, first, updates)), media_type="text/event-stream")

    return list(router.routes)


def _updates(engine: Engine, request: ChatRequest, longest_answer: int) -> Iterator[Update]:
    (model, revision, template, sha256), column = serve(request.model)
    talk = conversation(request.messages)
    length = request.max_completion_tokens or request.max_tokens or longest_answer
    found = engine.compare(
        model, revision, template, [column], [talk.turns], request.sampling(), length, sha256, talk.system
    )
    return (update for update in found if update.answers)


def _whole(request: ChatRequest, updates: Iterator[Update]) -> dict[str, Any]:
    *_, last = updates
    (answer,) = last.answers
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": FINISH[str(answer.stop)], "logprobs": None}
    return _head(request, "chat.completion") | {"choices": [choice], "usage": _usage(last, answer)}


async def _live(events: Generator[str, None, None]) -> AsyncIterator[str]:
    """The events, made in a worker thread; a client that hangs up ends the generation at once, not at some clean-up."""
    try:
        while (event := await run_in_threadpool(next, events, None)) is not None:
            yield event
    finally:
        events.close()


def _events(request: ChatRequest, first: Update, updates: Iterator[Update]) -> Generator[str, None, None]:
    """Server-sent events: what is new in each update, the reason of the end, usage where it was asked for."""
    head = _head(request, "chat.completion.chunk")
    sent, last = "", first

    def event(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event(head | {"choices": [choice]})

    yield event({"role": "assistant", "content": ""})
    try:
        for last in _chain(first, updates):
            (answer,) = last.answers
            if new := answer.text[len(sent) :]:
                yield event({"content": new})
                sent = answer.text
        (answer,) = last.answers
        yield event({}, FINISH[str(answer.stop)])
        if request.stream_options.include_usage:
            yield _event(head | {"choices": [], "usage": _usage(last, answer)})
    except ValueError as error:
        yield _event({"error": _error(error)})
    yield "data: [DONE]\n\n"


def _chain(first: Update, rest: Iterator[Update]) -> Iterator[Update]:
    yield first
    yield from rest


def _head(request: ChatRequest, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": request.model}


def _usage(update: Update, answer: Answer) -> dict[str, int]:
    (prompt,) = update.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer.tokens, "total_tokens": prompt + answer.tokens}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _refused(error: ValueError) -> JSONResponse:
    missing = "There is no model" in str(error) or "There is no run" in str(error)
    return JSONResponse({"error": _error(error)}, status_code=404 if missing else 400)


def _error(error: ValueError) -> dict[str, Any]:
    """OpenAI's shape of an error, with one sentence."""
    details = getattr(error, "errors", None)
    text = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in details()) if details else str(error)
    return {"message": text, "type": "invalid_request_error", "param": None, "code": None}
