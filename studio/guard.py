"""What every request passes on its way to the page, the API, /v1 and MCP: who asks, from where, and how much."""

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response

from studio.form import UPLOAD_LIMIT
from studio.login import Login, TooOften

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

USER = "tandem.user"  # where in a request's scope the guard puts who sent it
MOST_JSON = 16 * 2**20  # bytes of a request that is no upload
MOST_V1_JSON = 2**20  # bytes: text for a model, and no page's state
MOST_UPLOAD = UPLOAD_LIMIT + 2**20  # bytes of an upload, its envelope included
MOST_V1 = 4  # requests under way, of one person: as many as a comparison has columns
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# The login page needs none of these; a page that is still open when its login ends looks as it did. The launch asks
# whether the server has started.
OPEN = re.compile(r"/(login|logout|favicon\.ico|robots\.txt|gradio_api/startup-events)/?|/(assets|static)/.*")
BY_ADDRESS = re.compile(r"/gradio_api/(file[=/]\s*https?:|proxy=)", re.IGNORECASE)
OTHER_NAME = "This server answers to localhost and 127.0.0.1; to reach it by another name, start it with --user NAME."
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Gradio's page has scripts in line, and its plots compile expressions; but nothing leads to another machine.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
}


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        login: who may come in; None: everyone on this machine, and no one else.
    """

    def __init__(self, app: Any, login: Login | None = None) -> None:
        self.app, self.login = app, login
        self._v1: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # the page has none
            return
        send = _with_headers(send)
        refused = _refuse_origin(scope, self.login is None) or await self._refuse_person(scope, receive)
        if refused is None:
            refused, receive = await _refuse_body(scope, receive)
        if refused is not None:
            await refused(scope, receive, send)
        elif scope["path"].startswith("/v1/"):
            await self._answer_v1(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _refuse_person(self, scope: Scope, receive: Receive) -> Response | None:
        """The login's own pages, and no entry without it."""
        if self.login is None:
            return None
        path = scope["path"].rstrip("/")
        if path == "/login":
            return await self.login.answer(scope, await _read(receive, 2**14) or b"")
        if path == "/logout":
            return self.login.leave(scope)
        try:
            scope[USER] = await self.login.user(scope)
        except TooOften as error:
            return _refusal(scope, 429, str(error))
        if scope[USER] or OPEN.fullmatch(scope["path"]):
            return None
        if scope["path"] == "/" and scope["method"] == "GET":
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse(f"/login?next=/%3F{query.replace('&', '%26')}" if query else "/login", 303)
        refused = _refusal(scope, 401, "Log in first: with a name and a password, or NAME:PASSWORD as the API key.")
        refused.headers["WWW-Authenticate"] = "Bearer"  # "Basic" would make browsers open a window of their own
        return refused

    async def _answer_v1(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = str(scope.get(USER) or (scope.get("client") or ("unknown",))[0])
        if self._v1[who] >= MOST_V1:
            sentence = f"{MOST_V1} of your requests are under way already: wait for one of them."
            await _refusal(scope, 429, sentence)(scope, receive, send)
            return
        self._v1[who] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._v1[who] -= 1


def _refuse_origin(scope: Scope, only_here: bool) -> Response | None:
    """No page from elsewhere speaks through a visitor's browser, also not under a name that leads here (rebinding)."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if only_here and _name(host) not in LOOPBACK:
        return _refusal(scope, 403, OTHER_NAME)
    hosts = {host} if only_here else {host, headers.get("x-forwarded-host", host)}
    if "origin" in headers:
        foreign = urlsplit(headers["origin"]).netloc not in hosts
    else:  # where a browser sends none, it says so here
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        foreign = site in ("cross-site", "same-site") and (mode != "navigate" or scope["method"] != "GET")
    if foreign:
        return _refusal(scope, 403, "This server answers only to its own page.")
    if BY_ADDRESS.match(scope["path"]):
        return _refusal(scope, 403, "Nothing is fetched from an address: upload the file.")
    return None


async def _refuse_body(scope: Scope, receive: Receive) -> tuple[Response | None, Receive]:
    """Too much, or a file that is to be fetched from an address; else how to read the body from now on."""
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return None, receive
    headers = Headers(scope=scope)
    multipart = headers.get("content-type", "").startswith("multipart/")
    most = MOST_UPLOAD if multipart else MOST_V1_JSON if scope["path"].startswith("/v1/") else MOST_JSON
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        return _refusal(scope, 413, f"That is more than {most // 2**20} MB."), receive
    if multipart:
        return None, _counted(receive, most)
    body = await _read(receive, most)
    if body is None:
        return _refusal(scope, 413, f"That is more than {most // 2**20} MB."), receive
    try:
        if _fetches(json.loads(body or b"null")):
            return _refusal(scope, 403, "Nothing is fetched from an address: upload the file."), receive
    except (ValueError, RecursionError):
        if scope["path"].startswith("/gradio_api/") and body:
            return _refusal(scope, 400, "That is not JSON."), receive
    return None, _again(body, receive)


def _fetches(value: Any) -> bool:
    """Whether a file is named in it by an address: Gradio would fetch it, from inside this machine's network."""
    if isinstance(value, dict):
        path = value.get("path")
        named = isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]*://", path, re.IGNORECASE)
        return bool(named) or any(map(_fetches, value.values()))
    return isinstance(value, list) and any(map(_fetches, value))


async def _read(receive: Receive, most: int) -> bytes | None:
    """A request's body; None where it is longer, or the client left."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > most:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more; after that what comes next, such as the client leaving."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return left.pop() if left else await receive()

    return again


def _counted(receive: Receive, most: int) -> Receive:
    """A body that ends, as if the client had left, where it is too long."""
    seen = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= most else {"type": "http.disconnect"}

    return counted


def _with_headers(send: Send) -> Send:
    async def with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return with_headers


def _refusal(scope: Scope, status: int, sentence: str) -> Response:
    """One sentence, in the form that those who ask there expect."""
    if scope["path"].startswith("/v1/"):
        error = {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": error}, status)
    return JSONResponse({"detail": sentence}, status)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return (re.sub(r":\d+$", "", host).strip("[]") if host.count(":") == 1 or "]" in host else host).lower()
