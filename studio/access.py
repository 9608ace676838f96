"""The command line of the page: where it listens and to whom; what is not safe is refused, in one sentence."""

import argparse
import atexit
import errno
import fcntl
import ipaddress
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradio_client import Client
from starlette.middleware import Middleware

from studio.accounts import Accounts, one_account, read_accounts
from studio.form import UPLOAD_LIMIT
from studio.guard import USER, Guard
from studio.login import Login


@dataclass(frozen=True)
class Access:
    """What was settled."""

    host: str
    port: int
    share: bool
    mcp: bool
    login: Login | None

    def launch(self, routes: list[Any]) -> dict[str, Any]:
        """Gradio's launch options. Each that an environment variable could change otherwise is set."""
        return {
            "server_name": f"[{self.host}]" if ":" in self.host else self.host,
            "server_port": self.port,
            "share": self.share,
            "mcp_server": self.mcp,
            "ssr_mode": False,
            "strict_cors": True,
            "enable_monitoring": False,
            "run_history": False,  # it would keep what was asked in the browser
            "max_file_size": UPLOAD_LIMIT,
            "max_threads": 64,  # a stream holds a thread while it waits for news
            "auth_dependency": (lambda request: request.scope.get(USER)) if self.login else None,
            "app_kwargs": {"routes": routes, "middleware": [Middleware(Guard, login=self.login)]},
        }

    def let_mcp_in(self, page: Any) -> None:
        """Once launched: Gradio's MCP tools call the page's API as a client does, and so they need a login too.

        Each call then carries its caller's own header, so that it is the caller whose answers are counted.
        """
        if self.mcp and self.login:
            page.mcp_server_obj._client_instance = Client(
                self.address(), headers=self.login.service_header(), download_files=False, verbose=False
            )

    def address(self) -> str:
        """Where to open it."""
        every = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
        return f"http://{every.get(self.host, f'[{self.host}]' if ':' in self.host else self.host)}:{self.port}"


def settle(arguments: list[str] | None = None) -> Access:
    """What the command line asks for. Raises ValueError with a sentence where it is not safe or can't be had."""
    args = _parser().parse_args(arguments)
    elsewhere = args.share or not _is_loopback(args.host)
    if elsewhere and not (args.user or args.users):
        what = "Sharing it" if args.share else f"Listening on {args.host}"
        raise ValueError(f"{what} lets others in: demand a login with --user NAME or --users FILE.")
    if args.mcp and find_spec("mcp") is None:
        raise ValueError("--mcp needs the package `mcp`: install it with `.venv/bin/pip install 'mcp<2'`.")
    _check_port(args.host, args.port)
    accounts: Accounts | None = None
    if args.user or args.users:
        accounts = read_accounts(args.users) if args.users else one_account(args.user)
    return Access(args.host, args.port, args.share, args.mcp, Login(accounts) if accounts else None)


def keep_uploads_private() -> None:
    """Uploads and downloads pass through a folder of this process alone; Gradio's is the whole machine's.

    What a killed page left is removed here.
    """
    for left in Path(tempfile.gettempdir()).glob("tandem-page-*/.lock"):
        with suppress(OSError), left.open() as lock:  # held: its page lives; not ours: another user's
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="tandem-page-"))
    fcntl.flock(os.open(folder / ".lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)  # for the life of this process
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.py", description="Tandem's page: compare, fine-tune, evaluate.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers; needs a login")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", metavar="NAME", help="demand a login: this name, its password from $TANDEM_PASSWORD")
    who.add_argument(
        "--users", metavar="FILE", type=Path, help="the same for the accounts of `python -m studio.accounts`"
    )
    parser.add_argument("--mcp", action="store_true", help="offer the API as MCP tools too, under /gradio_api/mcp/")
    return parser


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_port(host: str, port: int) -> None:
    """Raises ValueError where nothing can listen there."""
    if not 1 <= port <= 65535:
        raise ValueError(f"A port lies between 1 and 65535 (given: {port}).")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"Port {port} is taken: end what listens there, or choose another with --port.") from error
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"Nothing can listen on {host}, port {port}: {reason}.") from error
