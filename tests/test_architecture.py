"""The house plan as a test: arrows between the packages, what stays light, what is never done."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["finetune", "inference", "evaluation", "studio", "app"]  # each may import itself and what stands before it
SOURCES = [path for name in ORDER for path in ([ROOT / "app.py"] if name == "app" else (ROOT / name).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    allowed = ORDER[: ORDER.index(package(path)) + 1]
    ours = {name.split(".")[0] for name in imported(path)} & set(ORDER)
    assert ours <= set(allowed), f"{path.name} imports {ours - set(allowed)}"


def test_no_import_circle_inside_a_package() -> None:
    graph = {}
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[module] = imported(path)

    def reaches(start: str) -> None:
        todo, seen = [m for m in graph if m in graph[start]], set()
        while todo:
            module = todo.pop()
            assert module != start, f"{start} imports itself by way of others"
            if module not in seen:
                seen.add(module)
                todo += [m for m in graph if m in graph[module]]

    for module in graph:
        reaches(module)


@pytest.mark.parametrize(
    "module",
    [
        "finetune.config",
        "finetune.data",
        "finetune.datareport",
        "finetune.prompt",
        "finetune.model",
        "finetune.job",
        "evaluation.jobs",
    ],
)
def test_what_a_launcher_needs_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not [path for path in SOURCES if {"core", "common", "utils"} & set(path.with_suffix("").parts[-2:])]


def test_no_pickle_and_no_code_of_a_model() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "pickle" not in imported(path)
        assert "torch.load(" not in text
        assert '"trust_remote_code": True' not in text and "trust_remote_code=True" not in text


def test_files_stay_small() -> None:
    long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := path.read_text().count("\n")) > 250}
    assert not long
