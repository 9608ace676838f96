"""Who may come in: names with hashed passwords. python -m studio.accounts FILE NAME adds one to a file of accounts."""

import argparse
import base64
import getpass
import hashlib
import hmac
import os
import re
import secrets
import sys
import threading
from pathlib import Path

from finetune.whole import write_atomically

# scrypt's cost as OWASP's password storage cheat sheet has it: 32 MiB, three times over.
COST_EXPONENT, BLOCK, PASSES = 15, 8, 3
MOST_MEMORY = 64 * 2**20  # bytes that scrypt may take
LEAST_CHARACTERS = 8
PASSWORD_VARIABLE = "TANDEM_PASSWORD"


class Accounts:
    """Names and the hashes of their passwords."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes
        self._nobody = hash_password(secrets.token_hex(16))
        self._one_at_a_time = threading.Lock()  # many guesses at once must not take the machine's memory

    def admits(self, name: str, password: str) -> bool:
        """Whether that is the name's password. A name that there is not takes as long as one that there is."""
        with self._one_at_a_time:
            same = matches(password, self._hashes.get(name, self._nobody))
        return same and name in self._hashes


def hash_password(password: str) -> str:
    """A password as it is kept, with its cost and a salt of its own: scrypt$15$8$3$salt$hash."""
    salt = secrets.token_bytes(16)
    kept = _scrypt(password, salt, COST_EXPONENT, BLOCK, PASSES)
    return f"scrypt${COST_EXPONENT}${BLOCK}${PASSES}${_text(salt)}${_text(kept)}"


def matches(password: str, kept: str) -> bool:
    """Whether the password is the one that was kept; the comparison takes the same time wherever they differ."""
    _, exponent, block, passes, salt, expected = kept.split("$")
    found = _scrypt(password, base64.b64decode(salt), int(exponent), int(block), int(passes))
    return hmac.compare_digest(found, base64.b64decode(expected))


def one_account(name: str) -> Accounts:
    """The account of that name, its password from the environment or asked for. Raises ValueError with a sentence."""
    return Accounts({check_name(name): hash_password(new_password())})


def read_accounts(file: Path) -> Accounts:
    """The accounts of a file, a line each: name:hash. Raises ValueError with a sentence."""
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The accounts in {file} can't be read: {error}.") from error
    hashes = dict(line.strip().split(":", 1) for line in lines if ":" in line)
    if not hashes or len(hashes) < len(lines) or not all(map(_is_hash, hashes.values())):
        raise ValueError(f"{file} is no file of accounts: make one with `python -m studio.accounts {file} NAME`.")
    return Accounts(hashes)


def new_password() -> str:
    """From $TANDEM_PASSWORD, else asked for. Raises ValueError where there is no one to ask, or it is too short."""
    password = os.environ.pop(PASSWORD_VARIABLE, None)  # runs are our children: they need not know it
    if password is None:
        if not sys.stdin.isatty():
            raise ValueError(f"Put the password into the environment variable {PASSWORD_VARIABLE}.")
        password = getpass.getpass("Password: ")
        if password != getpass.getpass("Once more: "):
            raise ValueError("The two passwords differ: try again.")
    if len(password) < LEAST_CHARACTERS:
        raise ValueError(f"A password has at least {LEAST_CHARACTERS} characters.")
    return password


def check_name(name: str) -> str:
    """A name that can be kept. Raises ValueError for another."""
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise ValueError(f"A name is made of letters, digits and . @ - _ (given: {name!r}).")
    return name


def _is_hash(kept: str) -> bool:
    return re.fullmatch(r"scrypt\$1[0-9]\$\d{1,2}\$\d{1,2}\$[\w+/=]{8,}\$[\w+/=]{40,}", kept) is not None


def _scrypt(password: str, salt: bytes, exponent: int, block: int, passes: int) -> bytes:
    secret = password.encode()
    return hashlib.scrypt(secret, salt=salt, n=2**exponent, r=block, p=passes, maxmem=MOST_MEMORY, dklen=32)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studio.accounts", description="Add an account, or renew one.")
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    args = parser.parse_args(arguments)
    os.umask(0o077)  # hashes are for no one else's eyes
    try:
        kept = args.file.read_text().splitlines() if args.file.exists() else []
        name = check_name(args.name)
        lines = [*(line for line in kept if line.split(":")[0] != name), f"{name}:{hash_password(new_password())}"]
        write_atomically(args.file, "\n".join(lines) + "\n")
    except (OSError, ValueError) as error:
        print(f"accounts: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
