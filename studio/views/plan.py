"""What is known of a run before it starts, as HTML: memory, time, its rows, and one example with its mask."""

from collections.abc import Sequence
from dataclasses import asdict

from finetune.data import Row
from finetune.datareport import DataReport
from finetune.duplicates import THRESHOLD
from finetune.plan import PARTS, RunPlan, Time, duration
from studio.views.html import Bar, bars, facts, size, table, text

SHOWN_CELL = 240  # characters of a cell of the preview
SHOWN_CATEGORIES = 20


def plan(made: RunPlan) -> str:
    """Does it fit, how long will it take, and on what memory goes."""
    need = made.memory.need
    sizes = {name: count for name, count in asdict(need).items() if count}
    if need.loading <= need.training:
        sizes.pop("loading", None)
    when = "while the weights are read" if need.loading > need.training else "while it trains"
    lines = [Bar(PARTS[name], count, size(count)) for name, count in sizes.items()]
    return (
        f'<p class="fit {"good" if made.memory.fits else "bad"}"><b>{"✓" if made.memory.fits else "✗"} Memory.</b> '
        f"{text(made.memory.sentence)}</p>"
        f"<p><b>Time.</b> {text(time(made.time))}</p>"
        + bars(lines, f"Memory at its fullest, {when}: {size(need.total)}")
    )


def time(cost: Time) -> str:
    """How long, and how that is known."""
    steps = f"{cost.steps} steps of {cost.seconds_per_step:.2f} s"
    if cost.method == "limit":
        return f"Its limit of {duration(cost.seconds)}; a pilot at its start sets the steps."
    if cost.method == "pilot":
        return f"{duration(cost.seconds)}, as measured ({steps})."
    return (
        f"No less than {duration(cost.seconds)} ({steps}) at the speed of this machine's matrix products; "
        "often two or three times that."
    )


def data(report: DataReport) -> str:
    """Rows, tokens, what was cut or dropped, duplicates, lengths and categories."""
    rows = report.rows
    held_out = rows.validation + rows.test
    pairs = [
        ("Source", f"{report.source}, {rows.all:,} rows"),
        ("Train on", f"{rows.train:,} rows, {report.tokens:,} tokens"),
        ("Carry loss", f"{report.supervised_tokens:,} tokens, {report.supervised_share:.0%}"),
        ("Held out", f"{rows.validation:,} to watch the loss, {rows.test:,} for the scores"),
        ("Longest example", f"{report.max_length:,} tokens, {report.max_length_from}"),
        ("Too long", f"{report.shortened:,} contexts cut, {report.dropped:,} rows dropped"),
        ("Repeated prompts", f"{report.repeated_prompts:,}"),
        (
            "Nearly the same",
            f"{report.near_duplicates:,} of {held_out:,} held-out prompts (from {THRESHOLD:.0%} alike)",
        ),
    ]
    lengths = [
        Bar(f"{b.low:,}–{b.high:,}", b.rows, f"{b.rows:,}" + (" too long" if b.low > report.max_length else ""),
            "worse" if b.low > report.max_length else "")
        for b in report.lengths
    ]  # fmt: skip
    title = f"Rows by their tokens (median {report.median_length:,.0f}, longest {report.longest:,})"
    kinds = list(report.categories.items())[:SHOWN_CATEGORIES]
    cells = [(name.replace("_", " "), f"{n.train:,}", f"{n.validation:,}", f"{n.test:,}") for name, n in kinds]
    left = len(report.categories) - len(kinds)
    more = f" (and {left} more)" if left else ""
    return (
        facts(pairs)
        + '<div class="pair">'
        + bars(lengths, title)
        + table(["Category", "train", "validation", "test"], cells, f"Categories{more}", "numbers")
        + "</div>"
    )


def example(shares: Sequence[tuple[str, bool]], template: str) -> str:
    """One training example token by token; those that carry loss are underlined and tinted, not by colour alone."""
    spans = "".join(
        f'<span class="{"loss" if supervised else "prompt"}">{text(share).replace(chr(10), "↵" + chr(10))}</span>'
        for share, supervised in shares
        if share
    )
    count = sum(supervised for _, supervised in shares)
    return (
        f"<p>One example as the model sees it, with template <b>{text(template)}</b>: {len(shares)} tokens, of which "
        f'the {count} that are <span class="loss">underlined</span> carry loss.</p><div class="tokens">{spans}</div>'
    )


def preview(rows: Sequence[Row]) -> str:
    """The first rows as they are understood: a part of a row to a line, so that it fits a narrow column."""
    parts = [
        f'<tr{first}><th scope="row">{name.capitalize()}</th><td>{text(said, SHOWN_CELL)}</td></tr>'
        for row in rows
        for first, (name, said) in zip((' class="first"', "", "", ""), row._asdict().items(), strict=True)
        if said
    ]
    return f'<table class="grid rows">{"".join(parts)}</table>' if rows else ""
