"""Our OpenAI-compatible endpoint, spoken to by the `openai` client, under the app as it is launched."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from conftest import App, wait_for
from fastapi import FastAPI
from finished_run import make_run

from finetune.prompt import Turn
from finetune.run import Run
from inference.columns import BASE, Column, subject
from inference.engine import Engine
from inference.remote import Remote
from inference.sampling import Sampling
from inference.server import routes

ASK: list[Any] = [{"role": "user", "content": "Name a bird."}]


class Endpoint:
    """The endpoint's routes in a server of this process, a run whose models it serves, and a client."""

    def __init__(self, run: Run) -> None:
        self.run, self.engine = run, Engine()
        self.server = uvicorn.Server(uvicorn.Config(FastAPI(routes=routes(self.engine)), port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_for(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/v1"
        self.client = openai.OpenAI(base_url=self.address, api_key="none", max_retries=0)

    def expected(self, column: Column, turns: list[Turn], tokens: int, sampling: Sampling = Sampling()) -> Any:  # noqa: B008
        model, revision, template, sha256 = subject(self.run)
        *_, last = self.engine.compare(model, revision, template, [column], [turns], sampling, tokens, sha256)
        return last.answers[0]

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def endpoint(runs: Path, tiny_model: Path, tiny_source: Any, tiny_adapter: Path) -> Iterator[Endpoint]:
    started = Endpoint(make_run(runs, "20260101-000000-one", tiny_model, tiny_source.sha256, tiny_adapter))
    yield started
    started.close()


def test_each_column_is_a_model(endpoint: Endpoint, tiny_model: Path) -> None:
    base, tuned, half = f"base:{tiny_model}", endpoint.run.id, f"{endpoint.run.id}@0.5"
    assert [base, tuned] == [model.id for model in endpoint.client.models.list()][1:]
    for name, column in (
        (base, BASE),
        (tuned, Column("tuned", endpoint.run.adapter)),
        (half, Column("half", endpoint.run.adapter, 0.5)),
    ):
        said = endpoint.client.chat.completions.create(model=name, messages=ASK, temperature=0, max_tokens=16)
        expected = endpoint.expected(column, [Turn("Name a bird.")], 16)
        assert said.choices[0].message.content == expected.text and said.model == name
        assert said.usage and said.usage.completion_tokens == expected.tokens and said.usage.prompt_tokens > 5
        assert said.choices[0].finish_reason == {"end": "stop", "length": "length"}[expected.stop]


def test_a_stream_adds_up_to_the_answer(endpoint: Endpoint) -> None:
    talk = [*ASK, {"role": "assistant", "content": "A wren."}, {"role": "user", "content": "Another one?"}]
    stream = endpoint.client.chat.completions.create(
        model=endpoint.run.id,
        messages=talk,
        temperature=1.2,
        seed=5,
        max_completion_tokens=150,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"top_k": 40, "min_p": 0.01},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    turns = [Turn("Name a bird.", "", "A wren."), Turn("Another one?")]
    sampling = Sampling(temperature=1.2, seed=5, top_k=40, min_p=0.01)
    expected = endpoint.expected(Column("t", endpoint.run.adapter), turns, 150, sampling)
    assert text == expected.text
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == expected.tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "nobody"}, 404, "There is no run"),
        ({"model": "base:/etc"}, 404, "There is no model"),
        ({"temperature": 9.0}, 400, "temperature"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "alternate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "Only text"),
        ({"stop": ["x"]}, 400, "stop"),
        ({"stream": True, "model": "nobody"}, 404, "There is no run"),
    ],
)
def test_what_can_not_be_had_is_one_sentence(endpoint: Endpoint, change: Any, status: int, says: str) -> None:
    with pytest.raises(openai.APIStatusError, match=says) as raised:
        endpoint.client.chat.completions.create(**({"model": endpoint.run.id, "messages": ASK} | change))
    assert raised.value.status_code == status


def test_hanging_up_frees_the_engine(endpoint: Endpoint) -> None:
    stream = endpoint.client.chat.completions.create(
        model=endpoint.run.id, messages=ASK, stream=True, max_tokens=100_000, temperature=2
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    started = time.monotonic()
    endpoint.expected(BASE, [Turn("Hi")], 2)
    assert time.monotonic() - started < 10


def test_the_remote_engine_says_what_the_resident_one_says(endpoint: Endpoint, tiny_model: Path) -> None:
    remote = Remote(endpoint.address)
    models = [f"base:{tiny_model}", endpoint.run.id]
    assert remote.models()[1:] == models
    updates = list(remote.compare(models, [[Turn("Name a bird.")]] * 2, Sampling(), 24))
    columns = [BASE, Column("tuned", endpoint.run.adapter)]
    for column, answer in zip(columns, updates[-1].answers, strict=True):
        expected = endpoint.expected(column, [Turn("Name a bird.")], 24)
        assert (answer.text, answer.tokens, answer.stop) == (expected.text, expected.tokens, expected.stop)
    with pytest.raises(ValueError, match="There is no run"):
        list(remote.compare(["nobody"], [[Turn("Hi")]], Sampling(), 4))
    remote.close()


@pytest.mark.slow
def test_the_endpoint_is_under_the_app(app: App) -> None:
    client = openai.OpenAI(base_url=f"{app.address}/v1", api_key="none", max_retries=0)
    assert "base:smollm2-135m" in [model.id for model in client.models.list()]
    stream = client.chat.completions.create(
        model="base:smollm2-135m",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=12,
        stream=True,
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
