"""Small pieces of HTML. Whatever comes from a row, a model or a file goes through `text`."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class Bar(NamedTuple):
    """A line of a bar chart; `mark` is a class of the page's style, or nothing."""

    label: str
    value: float
    figure: str
    mark: str = ""


def text(said: str, most: int = 2000) -> str:
    """Text for HTML: escaped, cut, and with control characters shown as escapes."""
    cut = said if len(said) <= most else said[: most - 1] + "…"
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in cut)
    return escape(shown)


def bars(lines: Sequence[Bar], caption: str) -> str:
    """A bar chart as a table: readable without sight, without colour and without script."""
    most = max((line.value for line in lines), default=0) or 1
    rows = "".join(
        f'<tr><th scope="row">{text(line.label)}</th>'
        f'<td class="bar {line.mark}"><i style="width:{100 * line.value / most:.1f}%"></i></td>'
        f"<td>{text(line.figure)}</td></tr>"
        for line in lines
    )
    return f'<table class="bars"><caption>{text(caption)}</caption>{rows}</table>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """A table of texts."""
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table class="grid {kind}">{title}<tr>{top}</tr>{body}</table></div>'


def facts(pairs: Iterable[tuple[str, str]], kind: str = "known") -> str:
    """Names and values."""
    inside = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="{kind}">{inside}</dl>' if inside else ""


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
