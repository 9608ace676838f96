"""Word by word, what an answer has that the first one has not, as HTML in which all that was said stays text."""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape
from typing import NamedTuple

MOST_WORDS = 1500  # of an answer: comparing takes more than the square of it
MOST_PAIRS = 50_000  # of equal words: beyond it a text says little else than a few words over and over
MARKS = {"insert": ("ins",), "delete": ("del",), "replace": ("del", "ins"), "equal": ()}


class Piece(NamedTuple):
    """Neighbouring words of one kind: "same", "del" (only in the first text) or "ins" (only in the other)."""

    kind: str
    text: str


def pieces(first: str, other: str) -> list[Piece]:
    """`other` as changes of `first`. Words are compared without the space after them, which is `other`'s own.

    The words of the longest matching blocks are the same (difflib's Ratcliff/Obershelp).
    """
    old, new = _words(first), _words(other)
    plain_old, plain_new = [word.strip() for word in old], [word.strip() for word in new]
    counts = Counter(plain_new)
    repeats = sum(counts[word] for word in plain_old) > MOST_PAIRS  # then no frequent word is matched
    matcher = SequenceMatcher(None, plain_old, plain_new, autojunk=repeats)
    found: list[Piece] = []
    for kind, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if kind == "equal":
            found.append(Piece("same", "".join(new[new_from:new_to])))
        for mark in MARKS[kind]:
            found.append(Piece(mark, "".join(old[old_from:old_to] if mark == "del" else new[new_from:new_to])))
    return found


def differences(texts: Sequence[str], names: Sequence[str], inks: Sequence[str]) -> str:
    """The first text as it is, each other one with its changes marked.

    Args:
        texts, names: of the columns, in the order in which they stand.
        inks: the columns' colours, as the chat has them.
    """
    if len(texts) < 2:
        return '<p class="figures">A difference takes two columns.</p>'
    cut = any(len(_words(text)) > MOST_WORDS for text in texts)
    texts = ["".join(_words(text)[:MOST_WORDS]) for text in texts]
    articles = [
        _article(names[0], inks[0], f"{len(texts[0].split())} words, to which the others are held", escape(texts[0]))
    ]
    for text, name, ink in zip(texts[1:], names[1:], inks[1:], strict=True):
        found = pieces(texts[0], text)
        articles.append(_article(name, ink, _tally(found, names[0]), "".join(map(_marked, found))))
    note = f"<p class='figures'>Only the first {MOST_WORDS:,} words of each are compared.</p>" if cut else ""
    legend = (
        '<p class="figures"><ins>underlined</ins>: not in the first answer · '
        "<del>struck out</del>: only in the first answer</p>"
    )
    return f'<div class="answers">{"".join(articles)}</div>{legend}{note}'


def _words(text: str) -> list[str]:
    """Words and single marks, each with the white space after it."""
    return re.findall(r"\s+|(?:\w+|[^\w\s])\s*", text)


def _marked(piece: Piece) -> str:
    text = escape(piece.text)
    return text if piece.kind == "same" else f"<{piece.kind}>{text}</{piece.kind}>"


def _tally(found: Sequence[Piece], first: str) -> str:
    counts = {kind: sum(len(p.text.split()) for p in found if p.kind == kind) for kind in ("same", "ins", "del")}
    if not counts["ins"] and not counts["del"]:
        return f"the same words as {escape(first)}"
    return f"{counts['same']} words shared, {counts['ins']} new, {counts['del']} left out"


def _article(name: str, ink: str, tally: str, marked: str) -> str:
    return (
        f'<article class="answer" data-ink="{escape(ink)}"><header><b>{escape(name)}</b></header>'
        f'<div class="text" dir="auto">{marked}</div><p class="figures">{tally}</p></article>'
    )
