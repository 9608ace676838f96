"""Safe by default: what is refused at the start, and who comes in where a login is demanded; on a real server."""

import asyncio
import base64
import os
import re
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import shots
from conftest import wait_for
from gradio_client import Client
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from playwright.sync_api import Page, expect

import app as command
from finetune.run import ENDED, Run
from inference.engine import Engine
from inference.server import routes
from studio import accounts, guard
from studio.access import keep_uploads_private, settle
from studio.accounts import Accounts, hash_password, matches, read_accounts
from studio.blocks import build
from studio.login import MOST_WRONG, Login

PASSWORD = "correct horse"


def run_async(coroutine: Any) -> Any:
    """In a thread of its own: the browser's fixture keeps a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--host", "0.0.0.0"],
            "Listening on 0.0.0.0 lets others in: demand a login with --user NAME or --users FILE.",
        ),
        (["--host", "::"], "lets others in"),
        (["--host", "example.org"], "lets others in"),
        (["--share"], "Sharing it lets others in"),
        (["--port", "0"], "between 1 and 65535"),
        (["--host", "203.0.113.7", "--user", "ann"], "Nothing can listen on 203.0.113.7"),
        (["--user", "ann"], "TANDEM_PASSWORD"),
        (["--users", "README.md"], "README.md is no file of accounts"),
        (["--users", "nowhere"], "The accounts in nowhere can't be read"),
    ],
)
def test_what_is_not_safe_does_not_start(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if "--port" in arguments else [*arguments, "--port", free_port()]
    monkeypatch.setattr(sys, "argv", ["app.py", *given])
    assert command.main() == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_taken_port_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"Port \d+ is taken: end what listens there, or choose another"):
            settle(["--port", str(taken.getsockname()[1])])


def test_uploads_go_with_their_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "every user's")
    killed = tmp_path / "tandem-page-killed"
    killed.mkdir()
    (killed / ".lock").touch()
    keep_uploads_private()
    mine = Path(os.environ["GRADIO_TEMP_DIR"])
    assert list(tmp_path.iterdir()) == [mine] and mine.stat().st_mode & 0o077 == 0
    keep_uploads_private()
    assert mine.exists() and len(list(tmp_path.iterdir())) == 2  # two pages at once


def test_by_default_it_is_this_machine_alone() -> None:
    access = settle(["--port", free_port()])
    assert (access.host, access.share, access.mcp, access.login) == ("127.0.0.1", False, False, None)


def test_a_file_of_accounts_holds_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accounts, "COST_EXPONENT", 10)  # as it is, a hash takes half a second
    file = tmp_path / "users"
    for name, password in (("ann", "first one"), ("bob", PASSWORD), ("ann", PASSWORD)):
        monkeypatch.setenv(accounts.PASSWORD_VARIABLE, password)
        assert accounts.main([str(file), name]) == 0
        assert accounts.PASSWORD_VARIABLE not in os.environ  # runs are children of ours
    assert file.stat().st_mode & 0o077 == 0 and PASSWORD not in file.read_text()
    kept = dict(line.split(":", 1) for line in file.read_text().splitlines())
    assert sorted(kept) == ["ann", "bob"] and kept["ann"] != kept["bob"]  # the salts differ
    known = read_accounts(file)
    assert known.admits("ann", PASSWORD) and not known.admits("ann", "first one") and not known.admits("eve", PASSWORD)
    monkeypatch.setenv(accounts.PASSWORD_VARIABLE, "short")
    assert accounts.main([str(file), "eve"]) == 2 and "at least 8" in capsys.readouterr().err
    assert not matches(PASSWORD + " ", kept["ann"])


@pytest.fixture(scope="module")
def guarded(furnished: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page as app.py launches it for others, in this process; with hashes that take no time."""
    with pytest.MonkeyPatch.context() as patch:
        environment = {"GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("up")), accounts.PASSWORD_VARIABLE: PASSWORD}
        for name, value in (furnished | environment).items():
            patch.setenv(name, value)
        patch.setattr(accounts, "COST_EXPONENT", 10)
        access = settle(["--host", "0.0.0.0", "--port", free_port(), "--user", "ann", "--mcp"])
        engine = Engine()
        opened = build(engine).queue()
        opened.launch(quiet=True, prevent_thread_lock=True, **access.launch(routes(engine)))
        access.let_mcp_in(opened)
        opened.address = access.address()
        yield opened
        opened.close(verbose=False)


def test_without_the_login_there_is_nothing(guarded: Any) -> None:
    asked = 0
    with httpx.Client(base_url=guarded.address, timeout=10) as client:
        for path, methods in guarded.app.openapi()["paths"].items():
            for method in methods:
                if guard.OPEN.fullmatch(path) or path == "/":
                    continue
                wrong = {"Authorization": "Basic YW5uOndyb25n"} if asked < 3 else {}
                said = client.request(method, re.sub(r"{.*}", "x", path), headers=wrong)
                assert said.status_code == (403 if "proxy=" in path else 401), (
                    f"{method} {path} answers {said.status_code}"
                )
                asked += 1
        assert asked > 60
        assert client.get("/").headers["location"] == "/login"
        assert client.post("/v1/chat/completions", json={}).json()["error"]["message"].startswith("Log in first")


def test_with_the_login_everything_works(guarded: Any) -> None:
    with pytest.raises(Exception, match="Invalid credentials"):
        Client(guarded.address, auth=("ann", "wrong horse"), verbose=False)
    client = Client(guarded.address, auth=("ann", PASSWORD), verbose=False)
    assert len(client.predict(api_name="/runs")) == 2
    for header in ({"Authorization": f"Bearer ann:{PASSWORD}"}, {"Authorization": "Basic YW5uOmNvcnJlY3QgaG9yc2U="}):
        assert "base:smollm2-135m" in httpx.get(f"{guarded.address}/v1/models", headers=header).text
    for kept in ({"tandem-1": "x"}, {f"tandem-{guarded.server_port}": "guessed"}):
        assert httpx.get(f"{guarded.address}/config", cookies=kept).status_code == 401


def test_a_program_starts_watches_stops_and_scores(guarded: Any, small_runs: list[Run], runs: Path) -> None:
    client = Client(guarded.address, auth=("ann", PASSWORD), verbose=False)
    for bad, sentence in (({"model": "/etc"}, "Here a model is one of"), ({"data": "x.jsonl"}, "hub id")):
        with pytest.raises(Exception, match=sentence):
            client.predict(**bad, api_name="/start")
    assert not runs.exists()
    run = client.predict(rows=60, steps=500, api_name="/start")
    assert client.predict(run, api_name="/status")["state"] in ("queued", "preparing", "running")
    assert run in client.predict(run, api_name="/stop")
    wait_for(lambda: client.predict(run, api_name="/status")["state"] == "stopped", 60)
    scored = shutil.copytree(small_runs[-1].path, runs / small_runs[-1].id).name
    assert client.predict("Hi", max_new_tokens=4, api_name="/compare")[
        "answers"
    ]  # "latest" has no adapter: the one before
    evaluation = client.predict(scored, 8, 8, api_name="/evaluate")
    Run(runs / scored).evaluations()[0].request_stop()
    report = client.predict(scored, api_name="/report")
    assert "response loss" in report["verdict"] and report["evaluation"] != evaluation
    assert {score["category"] for score in report["scores"]} >= {"all"}
    wait_for(lambda: client.predict(scored, api_name="/status")["evaluations"][0]["state"] in ENDED, 60)
    with pytest.raises(Exception, match="this model reads at most 2048: make it shorter"):
        client.predict("word " * 4000, run=scored, api_name="/compare")
    client.executor.shutdown()


def by_mcp(guarded: Any, password: str, work: Callable[[ClientSession], Awaitable[Any]]) -> Any:
    """What `work` gets of a session with the page's MCP server, as ann."""
    credentials = base64.b64encode(f"ann:{password}".encode()).decode()

    async def session() -> Any:
        headers = {"Authorization": f"Basic {credentials}"}
        server = streamablehttp_client(f"{guarded.address}/gradio_api/mcp/", headers)
        async with server as (read, write, _), ClientSession(read, write) as opened:
            await opened.initialize()
            return await work(opened)

    with ThreadPoolExecutor(1) as pool:  # Playwright's loop runs in this thread
        return pool.submit(asyncio.run, session()).result()


def test_the_same_are_mcp_tools(guarded: Any, small_runs: list[Run], runs: Path) -> None:
    async def work(session: ClientSession) -> Any:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        state = await session.call_tool("status", {"run": small_runs[0].id})
        said = await session.call_tool("compare", {"prompt": "Hi", "max_new_tokens": 4, "columns": "base,tuned"})
        wrong = await session.call_tool("status", {"run": "../etc"})
        return tools, state, said, wrong

    shutil.copytree(small_runs[0].path, runs / small_runs[0].id)
    tools, state, said, wrong = by_mcp(guarded, PASSWORD, work)
    assert set(tools) >= {"compare", "start", "stop", "status", "evaluate", "report", "runs"}
    assert "columns" in tools["compare"].inputSchema["properties"] and tools["start"].description
    assert "finished" in state.content[0].text
    assert said.content[0].text.count("tokens_per_second") == 2
    assert wrong.isError and "There is no run" in wrong.content[0].text
    with pytest.raises(BaseExceptionGroup, match=r"unhandled errors"):
        by_mcp(guarded, "wrong horse", work)


@pytest.mark.browser
def test_the_login_page(page: Page, guarded: Any) -> None:
    page.goto(f"{guarded.address}/?c=one&d=two%20words")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong horse")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the name and password of an account.")
    shots(page, "login")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("tab", name="Compare")).to_be_visible(timeout=30_000)
    assert page.url == f"{guarded.address}/?c=one&d=two%20words"
    (cookie,) = [c for c in page.context.cookies() if c["name"].startswith("tandem-")]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax"
    page.goto(f"{guarded.address}/logout")
    expect(page.get_by_label("Password")).to_be_visible()
    page.goto(guarded.address)
    expect(page.get_by_label("Password")).to_be_visible()


def test_guessing_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "COST_EXPONENT", 10)
    login = Login(Accounts({"ann": hash_password(PASSWORD)}))

    def enter(name: str, password: str, address: str) -> int:
        scope = {"method": "POST", "headers": [], "query_string": b"", "client": (address, 1), "path": "/login"}
        return int(run_async(login.answer(scope, f"username={name}&password={password}".encode())).status_code)

    assert [enter("ann", PASSWORD, "10.0.0.1") for _ in range(MOST_WRONG + 5)] == [200] * (MOST_WRONG + 5)
    guesses = [enter("ann", f"guess {n}", f"10.0.0.{n}") for n in range(MOST_WRONG + 1)]
    assert guesses == [401] * MOST_WRONG + [429]
    assert enter("ann", PASSWORD, "10.9.9.9") == 429  # a right guess among many does not get in either
    assert enter("bob", "anything", "10.0.0.99") == 401
