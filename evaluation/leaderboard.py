"""python -m evaluation leaderboard: every run's newest report, best first, side by side only where they can be."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from evaluation.report import OVERALL, EvalReport, Score, read_report
from finetune.run import Run, list_runs


class Line(NamedTuple):
    """One column of one run's newest report."""

    run: str
    column: str
    loss: Score | None
    rouge_l: Score | None


class Board(NamedTuple):
    """Lines that were scored on the very same rows with the same longest answer, best first."""

    title: str
    lines: list[Line]


def leaderboards(runs: Sequence[Run] | None = None) -> list[Board]:
    """Boards of all runs' newest reports: one for each set of rows, the largest first."""
    boards: dict[tuple[str, int], list[tuple[EvalReport, Line]]] = defaultdict(list)
    for run in list_runs() if runs is None else runs:
        report = newest_report(run)
        if report:
            key = (report.examples_sha256 or report.run, report.max_new_tokens)
            for column in dict.fromkeys(s.column for s in report.scores):
                overall = {s.metric: s for s in report.scores if s.category == OVERALL and s.column == column}
                boards[key].append((report, Line(run.id, column, overall.get("loss"), overall.get("rouge_l"))))
    made = []
    for entries in boards.values():
        report = entries[0][0]
        title = f"{report.rows} rows of {report.data}, answers of up to {report.max_new_tokens} tokens"
        made.append(Board(title, sorted((line for _, line in entries), key=_rank)))
    return sorted(made, key=lambda board: -len(board.lines))


def newest_report(run: Run) -> EvalReport | None:
    """The newest report of a run that has one which can be read, or None."""
    for job in run.evaluations():
        with suppress(FileNotFoundError, ValueError):  # it has not ended, or is of another version
            return read_report(job.path / "report.json")
    return None


def leaderboard_text(boards: Sequence[Board]) -> str:
    """For a terminal."""
    if not boards:
        return "No run has a report yet: make one with `python -m evaluation RUN`."
    return "\n\n".join(
        "\n".join([board.title, *(_line(n, line) for n, line in enumerate(board.lines, 1))]) for board in boards
    )


def _rank(line: Line) -> tuple[float, float, str]:
    return (
        line.loss.tuned if line.loss else float("inf"),
        -line.rouge_l.tuned if line.rouge_l else 0.0,
        line.run,
    )


def _line(number: int, line: Line) -> str:
    parts = [f"{number:>3}. {line.run} {line.column}"]
    for name, s in (("loss", line.loss), ("ROUGE-L", line.rouge_l)):
        if s:
            parts.append(f"{name} {s.base:.3f} → {s.tuned:.3f} [{s.low:+.3f}, {s.high:+.3f}] {s.verdict}")
    return " · ".join(parts)
