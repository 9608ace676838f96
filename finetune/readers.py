"""Raw rows of a .jsonl, .json, .csv or .parquet file, or of a data set on the hub: one dict a row, nothing interpreted.

Files are not trusted: whatever is wrong with one is a ValueError of one sentence. finetune/schema.py finds the columns.
"""

import csv
import io
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

DOLLY = "databricks/databricks-dolly-15k"
DOLLY_REVISION = "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]+))?")


class Raw(NamedTuple):
    """Rows as they were found (dicts, unless the file holds something else), and where, for words about them."""

    rows: list[Any]
    source: str
    where: str


def read(data: str) -> Raw:
    """Rows of a file, or of a hub data set named owner/name or owner/name@revision; a file that exists comes first.

    Raises:
        ValueError: it can't be read, is no such file, or can't be had from the hub.
    """
    path = Path(os.path.expanduser(data))  # unlike Path.expanduser, never an error
    hub = HUB_ID.fullmatch(data)
    if hub and path.suffix.lower() not in READERS and not os.path.exists(path):
        return read_hub(hub[1], hub[2])
    return Raw(read_file(path), f"file {path.name}", str(path))


def read_file(path: Path) -> list[Any]:
    """Rows of a file, by its ending. Raises ValueError that names the file and the line."""
    reader = READERS.get(path.suffix.lower())
    if reader is None and os.path.exists(path):
        raise ValueError(f"The data file {path} is none of {', '.join(READERS)}: rows come in one of these.")
    try:
        return (reader or _jsonl)(path)
    except OSError as error:
        reason = _first_line(error.strerror or error).lower()
        raise ValueError(f"The data file {path} can't be read: {reason}.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        raise ValueError(f"The data file {path} can't be read: it is not UTF-8 text.") from error


def _jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"Line {number} of {path} is not JSON: {_first_line(error)}.") from error
    return rows


def _json(path: Path) -> list[Any]:
    text = _text(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = " (one row a line? then call it .jsonl)" if str(error).startswith("Extra data") else ""
        raise ValueError(f"The data file {path} is not JSON: {_first_line(error)}{hint}.") from error
    if not isinstance(rows, list):
        raise ValueError(f"The data file {path} must hold a list of rows.")
    return rows


def _csv(path: Path) -> list[Any]:
    """Rows under a header, split at commas, or at the semicolons or tabs that the header has more of."""
    text = _text(path)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # a field may be as long as its file
    first = text.lstrip("\n").partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
    rows: list[Any] = []
    header: list[str] = []
    try:
        for fields in reader:
            if not fields:
                continue
            if not header:
                header = [name.strip() for name in fields]
                if len(set(header)) < len(header):
                    raise ValueError(f"The header of {path} names a column twice: give each a name of its own.")
            elif len(fields) != len(header):
                raise ValueError(
                    f"The row that ends in line {reader.line_num} of {path} has {len(fields)} fields where the header "
                    f"has {len(header)}: put fields with commas or line breaks in quotes."
                )
            else:
                rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} of {path} is not CSV: {_first_line(error)}.") from error
    return rows


def _parquet(path: Path) -> list[Any]:
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        try:
            rows: list[Any] = parquet.ParquetFile(file).read().to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError, LookupError, ArithmeticError) as error:
            reason = _first_line(error).rstrip(".")
            raise ValueError(f"The data file {path} is not Parquet that can be read: {reason}.") from error
    return rows


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def read_hub(name: str, revision: str | None = None) -> Raw:
    """Rows of a data set's train split (or of its only one), from the cache where the hub can't be reached.

    Args:
        name: owner/name.
        revision: branch, tag or commit; None is the newest one, and for Dolly the pinned one.
    Raises:
        ValueError: there is no such data set, it needs a choice that can't be made here, or it can't be had offline.
    """
    if name == DOLLY:
        revision = revision or DOLLY_REVISION
    if not (hub_reachable() or is_cached(name)):
        raise ValueError(
            f"The data set {name} is not on this machine and the hub can't be reached: "
            f"connect once to fetch it, or give a file ({', '.join(READERS)})."
        )
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        splits = load_dataset(name, revision=revision)  # data only: it runs no code of a data set
    except DatasetNotFoundError as error:
        raise ValueError(
            f"There is no data set {name}{f' at {revision}' if revision else ''} on the hub, "
            "or it is private or gated and needs `hf auth login`."
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"The data set {name} can't be loaded: {_first_line(error).rstrip('.')}.") from error
    chosen = "train" if "train" in splits else next(iter(splits))
    if chosen != "train" and len(splits) > 1:
        raise ValueError(f"The data set {name} has no split train, only {', '.join(splits)}: give it as a file.")
    found = _revision_of(splits[chosen]) or revision
    if found and revision and re.fullmatch(r"[0-9a-f]{40}", revision) and found != revision:  # offline: what is cached
        raise ValueError(f"The data set {name} is on this machine at {found[:8]}, not {revision[:8]}: connect once.")
    # to_list and not iteration: pictures and sounds in other columns are left undecoded.
    return Raw(splits[chosen].to_list(), f"{name} @ {found[:8]}" if found else name, name)


def _revision_of(dataset: Any) -> str | None:
    """The commit that the files came from: part of their addresses, hf://datasets/owner/name@commit/file."""
    addresses = getattr(dataset.info, "download_checksums", None) or {}
    commits = (re.search(r"@([0-9a-f]{40})/", str(address)) for address in addresses)
    return next((commit[1] for commit in commits if commit), None)


def hub_reachable(timeout_seconds: float = 3.0) -> bool:
    """Whether the hub answers; asked first because its client retries for half a minute where there is no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def is_cached(name: str, commit: str | None = None) -> bool:
    """Whether a data set (at that commit) was prepared on this machine before; it can then be had without the hub."""
    from huggingface_hub import constants

    # Where `datasets` keeps them; asking it itself would take two seconds to load it.
    folder = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    prepared = (Path(folder) / name.replace("/", "___")).glob("*/*/*/dataset_info.json")
    return any(commit is None or f"@{commit}/" in info.read_text(errors="replace") for info in prepared)


def _first_line(error: object) -> str:
    """What an error says, as a clause: libraries write several lines, and may name what stands in the file."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:200]
