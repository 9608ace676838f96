"""The lens as HTML: each token of an answer on a ground as strong as the models' disagreement; and the 2×2, a table."""

import math
from collections.abc import Sequence
from html import escape

from inference.lens import Lens, Score

FAINTEST = 0.05  # nats: a text on which nothing departs further is not coloured as if it did
STRONG = 0.5  # of the most: from there on a token is underlined as well
LISTED = 8  # tokens in the table of where they depart most

# Arrows go from token to token; what is known of the one in focus, or under the pointer, stands below the text.
KEYS = """
const tell = (token) => {
  const line = element.querySelector('.lens-token');
  if (line && token) line.textContent = token.dataset.tip;
};
const at = (event) => event.target.closest?.('.token');
element.addEventListener('mouseover', (event) => tell(at(event)));
element.addEventListener('focusin', (event) => tell(at(event)));
element.addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const token = at(event);
  if (!token || !step) return;
  event.preventDefault();
  const all = [...element.querySelectorAll('.token')];
  const next = all[all.indexOf(token) + step];
  if (!next) return;
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
"""


def heat(lens: Lens, column: int, names: Sequence[str], whose: str) -> str:
    """The text under a column as against the first one.

    Args:
        lens: with its tokens' texts.
        column: which one of its columns.
        names: of its columns.
        whose: answer it is.
    """
    first, other, kl = names[0], names[column], lens.kl[column]
    most = max(kl)
    scale, split = max(most, FAINTEST), lens.divergence[column]
    tips = [_tip(lens, at, column, names) for at in range(len(kl))]
    tokens = "".join(
        _token(text, kl[at] / scale, tips[at], at == split, 0 if at == 0 else -1) for at, text in enumerate(lens.texts)
    )
    ground = f"{most:.2f}" if most >= FAINTEST else f"{FAINTEST:g} (this text stays below)"
    return (
        f'<p class="figures">How far {escape(other)} departs from {escape(first)} on the answer of {escape(whose)}: '
        f"KL({escape(first)}‖{escape(other)}) of the next token, mean {sum(kl) / len(kl):.3f} nats. "
        f"{_split(lens, column)}</p>"
        '<div class="text lens" dir="auto" role="group" aria-label="Tokens; the arrow keys go from one to the next">'
        f"{tokens}</div>"
        '<p class="lens-token figures" aria-live="polite">Point at a token, or go there with the arrow keys.</p>'
        f'<p class="legend figures"><span>0</span><span class="ramp"></span><span>{ground} nats</span>'
        '<span class="token strong">underlined</span><span>from half of that</span>'
        '<span class="token split">boxed</span><span>where their likeliest tokens first differ</span></p>'
        f"{_most(lens, column, names)}"
    )


def two_by_two(scores: Sequence[Sequence[Score]], answers: Sequence[str], names: Sequence[str], note: str = "") -> str:
    """Each answer under each model.

    Args:
        scores: [answers][columns], as Engine.cross gives them.
        answers: whose they are; "" is the reference.
        names: of the columns.
        note: what a person should know.
    """
    head = "".join(f'<th scope="col">under {escape(name)}</th>' for name in names)
    rows = []
    for whose, row in zip(answers, scores, strict=True):
        best = _best(row)
        cells = "".join(
            f'<td class="{"best" if at == best else ""}">{_cell(score)}</td>' for at, score in enumerate(row)
        )
        title = f"answer of {escape(whose)}" if whose else "reference answer"
        rows.append(f'<tr><th scope="row">{title}<small>{row[0].tokens} tokens</small></th>{cells}</tr>')
    told = " ".join(filter(None, (_told(row, whose, names) for whose, row in zip(answers, scores, strict=True))))
    caption = "Mean log p per token, and perplexity (lower: less surprised); the best of a row is bold"
    if note:
        told += f" {escape(note)}"
    return (
        f'<div class="scroll"><table class="cross"><caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="told">{told}</p>'
    )


def _token(text: str, share: float, tip: str, split: bool, index: int) -> str:
    kinds = "token" + (" strong" if share >= STRONG else "") + (" split" if split else "")
    shown = escape(text).replace("\n", '<i aria-hidden="true">⏎</i>\n') or '<i aria-hidden="true">·</i>'
    tip = escape(tip)
    return (
        f'<span class="{kinds}" style="--k:{min(1.0, share):.3f}" tabindex="{index}" title="{tip}" data-tip="{tip}">'
        f"{shown}</span>"
    )


def _tip(lens: Lens, at: int, column: int, names: Sequence[str]) -> str:
    """In one line: the token, how likely it is to each, and how far they are apart."""
    shown = " ".join(lens.texts[at].split()) or ("part of a character" if not lens.texts[at] else "white space")
    likely = " · ".join(f"log p {names[c]} {lens.log_p[c][at]:.2f}" for c in (0, column))
    return f"“{shown}” · {likely} · KL {lens.kl[column][at]:.3f}"


def _split(lens: Lens, column: int) -> str:
    at = lens.divergence[column]
    if at is None:
        return "Their likeliest tokens are the same all the way."
    return f"They first differ at token {at + 1} of {len(lens.ids)}."


def _most(lens: Lens, column: int, names: Sequence[str]) -> str:
    """The tokens with the most distance, for whoever can't see grounds."""
    kl = lens.kl[column]
    top = sorted(range(len(kl)), key=lambda at: -kl[at])[:LISTED]
    head = f"<th>token</th><th>log p {escape(names[0])}</th><th>log p {escape(names[column])}</th><th>KL</th>"
    rows = "".join(
        f"<tr><td><code>{escape(repr(lens.texts[at])[1:-1])}</code> <small>{at + 1}</small></td>"
        f"<td>{lens.log_p[0][at]:.2f}</td><td>{lens.log_p[column][at]:.2f}</td><td>{kl[at]:.3f}</td></tr>"
        for at in top
    )
    return (
        f'<details><summary>Where they are furthest apart</summary><div class="scroll"><table class="cross">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _cell(score: Score) -> str:
    return f"{score.mean:.3f}<small>perplexity {perplexity(score)}</small>" if score.tokens else "–"


def perplexity(score: Score) -> str:
    """exp of the mean loss, in as many figures as mean something."""
    value = math.exp(min(-score.mean, 700))
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.2g}"


def _best(row: Sequence[Score]) -> int | None:
    """The column to which an answer is likeliest; None where there is none, or no telling."""
    if not row[0].tokens or len(row) < 2:
        return None
    means = [score.mean for score in row]
    return None if max(means) - min(means) < 5e-4 else means.index(max(means))


def _told(row: Sequence[Score], whose: str, names: Sequence[str]) -> str:
    """What a row says, in a sentence."""
    what = f"The answer of {escape(whose)}" if whose else "The reference"
    if not row[0].tokens:
        return f"{what} has no words to score."
    best = _best(row)
    if best is None:
        return f"{what} is as likely to one as to the other."
    others = ", ".join(f"{perplexity(s)} under {escape(names[at])}" for at, s in enumerate(row) if at != best)
    return f"{what} is likeliest under {escape(names[best])}: perplexity {perplexity(row[best])}, against {others}."
