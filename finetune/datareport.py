"""What a run's data is, before it is trained on: counts, lengths, duplicates, and one example with its loss mask.

`report` makes it from a config, `describe` from what a run already has, `text` says it for a terminal. No torch here.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune import data
from finetune.config import TrainConfig
from finetune.duplicates import SHINGLE_WORDS, THRESHOLD, near_duplicates, repeated
from finetune.prompt import Template, template, token_texts

BINS = 10
BAR = 40  # characters of the longest bar
SHOWN_CATEGORIES = 20
SHOWN_PAIRS = 3
SHOWN_TEXT = 200  # characters of a prompt
SHOWN_TOKENS = 160  # an example of at most so many is shown, where there is one


class Frozen(BaseModel):
    """A part of the report: frozen, and it survives being kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Counts(Frozen):
    """Rows by what they are for."""

    all: int
    """In the data."""
    train: int
    """Taken to train on, before any is dropped for its length."""
    validation: int
    """Taken to watch the loss."""
    test: int
    """Kept for the scores."""


class Bin(Frozen):
    """A bar of the histogram: rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


class NearPair(Frozen):
    """The beginnings of two prompts that nearly agree, one trained on and one held out."""

    train: str
    held_out: str
    similarity: float


class DataReport(Frozen):
    """Everything `text` says, as numbers; lengths and tokens are the template's and the tokenizer's."""

    source: str
    """Where the rows are from."""
    template: str
    """Id of the prompt template."""
    rows: Counts
    categories: dict[str, Counts]
    """The same by category, the largest first."""
    tokens: int
    """Tokens of the training examples, after cutting."""
    supervised_tokens: int
    """Those of them that carry loss."""
    lengths: list[Bin]
    """Training rows by their tokens, before anything is cut or dropped."""
    median_length: float
    longest: int
    max_length: int
    """Tokens of the longest example that is trained on as it is."""
    max_length_from: str
    """How that was found, in words."""
    shortened: int
    """Training rows whose context was cut; `dropped`, those too long even without it."""
    dropped: int
    repeated_prompts: int
    """Rows of the data whose normalized prompt stands in a row before them."""
    near_duplicates: int
    """Held-out rows (test, and validation as taken) whose prompt nearly agrees with a training row's."""
    near_pairs: list[NearPair]
    """The closest few of them."""
    example: list[tuple[str, bool]]
    """One training example: each token's text, and whether it carries loss."""

    @property
    def supervised_share(self) -> float:
        """Share of the training tokens that carry loss, 0 to 1."""
        return self.supervised_tokens / self.tokens


def report(config: TrainConfig, tokenizer: Any, limit: int) -> DataReport:
    """The report on what a run of `config` would train on and hold out.

    Args:
        config: what the run is asked to do.
        tokenizer: the base's.
        limit: longest example in tokens that the base takes.
    Raises:
        ValueError: what the run itself would raise about its data.
    """
    rows = data.load_rows(config.data, config.columns)
    split = data.select(config, rows)
    chosen = template(tokenizer, config.encoding.template)
    train, _ = data.encode_split(config, split, chosen, limit)
    return describe(config, rows, split, chosen, train, limit)


def describe(
    config: TrainConfig, rows: data.Rows, split: data.Split, chosen: Template, train: data.Examples, limit: int
) -> DataReport:
    """The report from a run's own steps: load_rows, select, template, encode_split."""
    pairs = near_duplicates(split.train, [*split.test, *split.validation])
    sides = [Counter(row.category for row in side) for side in (rows.rows, *split)]
    return DataReport(
        source=rows.source,
        template=chosen.id,
        rows=_counts([len(rows.rows), *map(len, split)]),
        categories={name: _counts([side[name] for side in sides]) for name, _ in sides[0].most_common()},
        tokens=sum(len(e.ids) for e in train.examples),
        supervised_tokens=sum(e.supervised for e in train.examples),
        lengths=histogram(train.lengths, train.max_length),
        median_length=median(train.lengths),
        longest=max(train.lengths),
        max_length=train.max_length,
        max_length_from=_in_words(config, train, limit),
        shortened=train.shortened,
        dropped=train.dropped,
        repeated_prompts=repeated(rows.rows),
        near_duplicates=len(pairs),
        near_pairs=[
            NearPair(train=_prompt(p.train), held_out=_prompt(p.held_out), similarity=p.similarity)
            for p in pairs[:SHOWN_PAIRS]
        ],
        example=token_by_token(_example(train.examples), chosen.tokenizer),
    )


def histogram(lengths: Sequence[int], max_length: int) -> list[Bin]:
    """Rows by length in at most BINS bars of equal width up to `max_length`, and one bar for whatever is longer."""
    longest = max(lengths)
    top = min(longest, max_length)
    width = -(-top // BINS)
    bins = [(low, min(low + width - 1, top)) for low in range(1, top + 1, width)]
    if longest > top:
        bins.append((top + 1, longest))
    return [Bin(low=low, high=high, rows=sum(low <= n <= high for n in lengths)) for low, high in bins]


def token_by_token(example: data.Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """Each token's share of the decoded text, as `token_texts` has it, and whether it carries loss."""
    carries = [label != data.IGNORED for label in example.labels]
    return list(zip(token_texts(example.ids, tokenizer), carries, strict=True))


def text(report: DataReport) -> str:
    """The report for a terminal; what carries loss in the example stands in [brackets], token by token."""
    rows = report.rows
    held_out = rows.test + rows.validation
    lines = [
        f"data      {report.source}: {rows.all:,} rows, {report.repeated_prompts:,} of them with a prompt "
        "that stands in a row before",
        f"split     {rows.train:,} to train on, {rows.validation:,} for validation, {rows.test:,} for the scores",
        f"tokens    {report.tokens:,} with template {report.template}; "
        f"{report.supervised_tokens:,} ({report.supervised_share:.1%}) carry loss",
        f"length    at most {report.max_length:,} tokens, {report.max_length_from}; "
        f"{report.shortened:,} contexts cut, {report.dropped:,} rows dropped",
        f"leakage   {report.near_duplicates:,} of {held_out:,} held-out prompts nearly agree with one that is trained "
        f"on (they share {THRESHOLD:.0%} or more of their {SHINGLE_WORDS}-word sequences)",
        *(
            f"          {p.similarity:.0%}  held out: {p.held_out}\n               trained:  {p.train}"
            for p in report.near_pairs
        ),
        "",
        *_category_lines(report.categories),
        "",
        f"training rows by tokens, before any is cut (median {report.median_length:,.0f}, longest {report.longest:,})",
        *_bars(report.lengths, report.max_length),
        "",
        "one training example, what carries loss in [brackets]",
        "".join(f"[{share}]" if supervised else share for share, supervised in report.example),
    ]
    # Control characters of a row are shown as escapes, so that data can't steer a terminal.
    safe = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in "\n".join(lines))
    return "".join(safe)


def _counts(numbers: Sequence[int]) -> Counts:
    return Counts(all=numbers[0], train=numbers[1], validation=numbers[2], test=numbers[3])


def _in_words(config: TrainConfig, train: data.Examples, limit: int) -> str:
    if train.max_length_from == "setting":
        return "as set in max_length"
    if train.max_length_from == "rows":
        return "the 99th percentile of the training rows"
    return (
        "the budget tokens_per_batch" if config.training.tokens_per_batch < limit else "the most that the model takes"
    )


def _example(examples: Sequence[data.Example]) -> data.Example:
    """The first that is short enough to be shown whole, else the shortest."""
    short = (example for example in examples if len(example.ids) <= SHOWN_TOKENS)
    return next(short, None) or min(examples, key=lambda example: len(example.ids))


def _prompt(row: data.Row) -> str:
    """The beginning of a row's prompt in one line."""
    line = " ".join(f"{row.instruction} {row.context}".split())
    return line if len(line) <= SHOWN_TEXT else line[: SHOWN_TEXT - 1] + "…"


def _category_lines(categories: dict[str, Counts]) -> list[str]:
    shown = list(categories.items())[:SHOWN_CATEGORIES]
    lines = [f"{'category':24} {'all':>7} {'train':>7} {'valid.':>7} {'test':>7}"]
    for name, n in shown:
        lines.append(f"{' '.join(name.split())[:24]:24} {n.all:7,} {n.train:7,} {n.validation:7,} {n.test:7,}")
    return [*lines, *([f"and {len(categories) - len(shown):,} more"] if len(categories) > len(shown) else [])]


def _bars(bins: Sequence[Bin], max_length: int) -> list[str]:
    most = max(b.rows for b in bins)
    spans = [f"{b.low}–{b.high}" for b in bins]
    width = max(map(len, spans))
    return [
        f"{span:>{width}}  {'#' * -(-BAR * b.rows // most):{BAR}} {b.rows:,}{' too long' if b.low > max_length else ''}"
        for span, b in zip(spans, bins, strict=True)
    ]
