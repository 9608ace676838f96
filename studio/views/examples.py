"""Every example of an evaluation: an index of samples.jsonl, a page of it in some order, and its HTML, escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from math import ceil
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import TypeAdapter

from evaluation.html_findings import judged_texts
from evaluation.measures import MEASURES
from evaluation.report import EvalReport, Sample

PAGE = 6  # examples shown at once
EVERY = ""  # the category that stands for all of them
Order = Literal["gain", "loss", "asked"]
ORDERS = [("Largest gain first", "gain"), ("Largest loss first", "loss"), ("As they were asked", "asked")]
STOPS = {"end": "ended by itself", "length": "cut at the longest answer", "cancelled": "stopped"}


class Line(NamedTuple):
    """Where an example lies in the file, and what it is sorted and filtered by."""

    offset: int
    length: int
    category: str
    values: dict[str, list[float]]


class Shown(NamedTuple):
    """A page of the examples."""

    samples: list[Sample]
    number: int
    """Of the page, from 0."""
    pages: int
    found: int
    """Examples of that category that have that score."""


@dataclass
class _Kept:
    category: str
    values: dict[str, list[float]]


_KEPT = TypeAdapter(_Kept)


def index(file: Path) -> list[Line]:
    """The lines of a samples.jsonl. Texts are not kept: a page reads its own."""
    stat = file.stat()
    return _index(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _index(file: Path, modified: int, size: int) -> list[Line]:
    lines, offset = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        kept = _KEPT.validate_json(line)
        lines.append(Line(offset, len(line), kept.category, kept.values))
        offset += len(line)
    return lines


def categories(lines: Sequence[Line]) -> list[str]:
    return sorted({line.category for line in lines})


def metrics(lines: Sequence[Line]) -> list[str]:
    """The scores that at least one example has, in the measures' order."""
    there = {key for line in lines for key in line.values}
    return [key for key in MEASURES if key in there]


def gain(values: Sequence[float], column: int, metric: str) -> float:
    """How much better a column is than the first; where neither way is better, how much higher."""
    change = values[column] - values[0]
    return -change if MEASURES[metric].higher_is_better is False else change


def shown(file: Path, column: int, metric: str, order: str, category: str, number: int) -> Shown:
    """A page of the examples of a category (EVERY: of all) that have a score, in an order."""
    lines = [line for line in index(file) if metric in line.values and category in (EVERY, line.category)]
    if order != "asked":
        sign = -1 if order == "gain" else 1
        lines.sort(key=lambda line: sign * gain(line.values[metric], column, metric))
    pages = max(1, ceil(len(lines) / PAGE))
    number = min(max(0, number), pages - 1)
    with file.open("rb") as stream:
        samples = []
        for line in lines[number * PAGE : (number + 1) * PAGE]:
            stream.seek(line.offset)
            samples.append(Sample.model_validate_json(stream.read(line.length)))
    return Shown(samples, number, pages, len(lines))


def place(page: Shown) -> str:
    """Where one is, in words."""
    if not page.found:
        return "No example has this score here."
    first = page.number * PAGE + 1
    return f"{first} to {first + len(page.samples) - 1} of {page.found}"


def examples_html(report: EvalReport, page: Shown, column: int, metric: str) -> str:
    """The page's examples. Whatever a person, a row or a model wrote is escaped."""
    return "".join(_example(report, sample, column, metric) for sample in page.samples)


def _example(report: EvalReport, s: Sample, column: int, metric: str) -> str:
    context = ""
    if s.context:
        context = f"<details><summary>Context ({len(s.context)} characters)</summary>{_text(s.context)}</details>"
    flag = '<span class="tag warn">prompt was trained on</span>' if s.leak else ""
    return (
        f'<article class="example"><header><span class="tag">{escape(_spaced(s.category))}</span>{flag}'
        f"{_change(s.values[metric], column, metric)}</header>"
        f'<p class="asked">{escape(s.instruction)}</p>{context}{_sides(report, s, column)}'
        f"{_judged(report, s, column)}{_scores(report, s, column)}"
        "</article>"
    )


def _change(values: Sequence[float], column: int, metric: str) -> str:
    difference = gain(values, column, metric)
    known = MEASURES[metric].higher_is_better is not None and abs(difference) > 1e-9
    kind = ("better" if difference > 0 else "worse") if known else "same"
    name = escape(MEASURES[metric].name)
    return (
        f'<span class="change {kind}">{name} {values[0]:.3f} → {values[column]:.3f} '
        f"<b>{values[column] - values[0]:+.3f}</b></span>"
    )


def _sides(report: EvalReport, s: Sample, column: int) -> str:
    sides = []
    if s.answers:
        for kind, at in (("base", 0), ("tuned", column)):
            sides.append((kind, report.columns[at], STOPS.get(s.stops[at], s.stops[at]), s.answers[at]))
    sides.append(("reference", "reference", "from the data", s.reference))
    blocks = [
        f'<section class="{kind}"><h4>{escape(name)} <small>{escape(note)}</small></h4>{_text(text)}</section>'
        for kind, name, note, text in sides
    ]
    return f'<div class="sides">{"".join(blocks)}</div>'


def _judged(report: EvalReport, s: Sample, column: int) -> str:
    """What the judge made of it, where one was asked."""
    found = judged_texts(s, report.columns)[column - 1 : column]
    return "".join(f"<details><summary>{escape(head)}</summary>{_text(text)}</details>" for head, text in found)


def _text(text: str) -> str:
    """Text as it is, also when it is long: its box scrolls, by keyboard too."""
    return f'<pre tabindex="0">{escape(text) or "<i>nothing</i>"}</pre>'


def _scores(report: EvalReport, s: Sample, column: int) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("score", report.columns[0], report.columns[column]))
    rows = "".join(
        f"<tr><td>{escape(MEASURES[key].name)}</td><td>{values[0]:.3f}</td><td>{values[column]:.3f}</td></tr>"
        for key, values in s.values.items()
        if key in MEASURES
    )
    table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<details><summary>All its scores</summary>{table}</details>"


def _spaced(name: str) -> str:
    return name.replace("_", " ")
