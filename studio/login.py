"""The way in, where a login is demanded: a page that asks, a cookie that remembers, a header for programs."""

import base64
import binascii
import hashlib
import html
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from studio.accounts import Accounts
from studio.limits import Brake

PAGE = Path(__file__).resolve().parents[1] / "assets" / "login.html"
SESSION_SECONDS = 7 * 24 * 3600
MOST_SESSIONS = 10_000
MOST_WRONG, WRONG_SECONDS = 10, 300.0  # guesses at a name, or from an address, within that time
SERVICE_HEADER = "x-tandem-service"
LONGEST_SECRET = 1024  # characters of a password that are looked at


class TooOften(ValueError):
    """Too many wrong guesses; the sentence says how long to wait."""


class Login:
    """Who is logged in. Passwords are asked once: then a cookie, or the same header again, is enough."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._brake = Brake(MOST_WRONG, WRONG_SECONDS)
        self._sessions: dict[str, tuple[str, float]] = {}
        self._headers: dict[bytes, str] = {}
        self._key = secrets.token_bytes(32)
        self._service = secrets.token_urlsafe(32)

    def service_header(self) -> dict[str, str]:
        """For what this program asks of itself; where a caller's own login comes with it, that one counts."""
        return {SERVICE_HEADER: self._service}

    async def user(self, scope: Any) -> str | None:
        """Who sent this request, by cookie or header; None for nobody. Raises TooOften."""
        headers = Headers(scope=scope)
        found = self._by_cookie(headers.get("cookie", ""), _cookie_name(scope))
        found = found or await self._by_header(headers.get("authorization", ""), _address(scope))
        if found is None and secrets.compare_digest(headers.get(SERVICE_HEADER, "").encode(), self._service.encode()):
            return "this program"
        return found

    async def answer(self, scope: Any, body: bytes) -> Response:
        """The login page, or the outcome of what was filled in."""
        if scope["method"] != "POST":
            return self._page(scope, "", 200)
        form = {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
        name, password = form.get("username", "").strip(), form.get("password", "")
        try:
            if not await self._admits(name, password, _address(scope)):
                return self._refuse(scope, "That is not the name and password of an account.", 401)
        except TooOften as error:
            return self._refuse(scope, str(error), 429)
        page = "text/html" in Headers(scope=scope).get("accept", "")
        response: Response = RedirectResponse(_target(scope), 303) if page else JSONResponse({"success": True})
        self._remember(scope, response, name)
        return response

    def leave(self, scope: Any) -> Response:
        """Forget the session."""
        self._sessions.pop(_cookie(Headers(scope=scope).get("cookie", ""), _cookie_name(scope)), None)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(_cookie_name(scope))
        return response

    def _remember(self, scope: Any, response: Response, name: str) -> None:
        now = time.time()
        self._sessions = {token: kept for token, kept in self._sessions.items() if kept[1] > now}
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        token = secrets.token_urlsafe(32)
        self._sessions[token] = (name, now + SESSION_SECONDS)
        secure = "https" in (scope.get("scheme"), Headers(scope=scope).get("x-forwarded-proto"))
        response.set_cookie(
            _cookie_name(scope), token, max_age=SESSION_SECONDS, httponly=True, samesite="lax", secure=secure
        )

    def _by_cookie(self, cookies: str, name: str) -> str | None:
        user, until = self._sessions.get(_cookie(cookies, name), (None, 0.0))
        return user if until > time.time() else None

    async def _by_header(self, header: str, address: str) -> str | None:
        """Basic NAME:PASSWORD, as curl sends it, or the same in the clear as a bearer token, as OpenAI's clients do."""
        kind, _, secret = header.partition(" ")
        if kind.lower() == "basic":
            try:
                secret = base64.b64decode(secret, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
        name, colon, password = secret.partition(":")
        if kind.lower() not in ("basic", "bearer") or not colon:
            return None
        digest = hashlib.blake2b(secret.encode(), key=self._key).digest()  # scrypt is too slow for every request
        if digest in self._headers:
            return self._headers[digest]
        if await self._admits(name, password, address):
            self._headers[digest] = name
            return name
        return None

    async def _admits(self, name: str, password: str, address: str) -> bool:
        keys = (f"name {name[:LONGEST_SECRET]}", f"address {address}")
        wait = max(map(self._brake.wait, keys))
        if wait:
            raise TooOften(f"Too many wrong guesses: try again in {wait:.0f} s.")
        for key in keys:  # counted before it is looked at, so that many at once are no way around
            self._brake.hit(key)
        right = await run_in_threadpool(self._accounts.admits, name, password[:LONGEST_SECRET])
        if right:
            for key in keys:
                self._brake.forgive(key)
        return right

    def _refuse(self, scope: Any, sentence: str, status: int) -> Response:
        if "text/html" in Headers(scope=scope).get("accept", ""):
            return self._page(scope, sentence, status)
        return JSONResponse({"detail": sentence}, status)

    def _page(self, scope: Any, sentence: str, status: int) -> Response:
        filled = PAGE.read_text().replace("{sentence}", html.escape(sentence))
        return HTMLResponse(filled.replace("{action}", html.escape(f"/login?next={_quoted(_target(scope))}")), status)


def _target(scope: Any) -> str:
    """Where to after the login: a path of this page, and nowhere else."""
    wanted = QueryParams(scope["query_string"]).get("next", "/")
    return wanted if wanted.startswith("/?") and not any(c in wanted for c in "\\\r\n") else "/"


def _quoted(target: str) -> str:
    return target.replace("%", "%25").replace("&", "%26").replace("#", "%23").replace("+", "%2B").replace(" ", "%20")


def _cookie_name(scope: Any) -> str:
    """With the port: browsers share cookies between a machine's ports."""
    return f"tandem-{(scope.get('server') or ('', 0))[1]}"


def _cookie(header: str, name: str) -> str:
    try:
        cookies = SimpleCookie(header)
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _address(scope: Any) -> str:
    return str((scope.get("client") or ("unknown",))[0])
