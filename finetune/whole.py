"""Nothing half-written ever looks whole: files that are replaced at once, folders that are declared complete."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Replace a file's content so that a reader, or a crash, finds the old or the new text."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def finish_folder(hidden: Path, target: Path) -> None:
    """Make a finished folder visible: first its manifest, with the size of every file, then its name."""
    seal(hidden)
    if target.exists():
        shutil.rmtree(target)
    hidden.rename(target)


def seal(folder: Path) -> None:
    """Declare a folder whole: its manifest, the last file, says how long every other one is."""
    manifest = folder / "manifest.json"  # one may be there already, of the folder that this one is a copy of
    files = (path for path in _files(folder) if path != manifest)
    write_atomically(manifest, json.dumps({str(f.relative_to(folder)): f.stat().st_size for f in files}, indent=2))


def is_whole(folder: Path) -> bool:
    """Whether a folder has its manifest and every file is as long as it says."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    sizes: dict[str, int] = json.loads(manifest.read_text())
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
