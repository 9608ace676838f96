"""An LLM as judge: every answer against the first column's, in both orders; a win is what both orders agree on.

Asking both orders and calling a contradiction a tie is what Zheng et al. 2023 (arXiv:2306.05685, section 3.4) propose
against position bias. Replies are kept in a cache as they come, so a killed evaluation asks only what is missing.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from evaluation.batches import Hooks
from evaluation.cache import Cache, Value
from evaluation.config import EvalConfig, judge_name
from evaluation.findings import Counts, Judgement, JudgeReport, Outcome
from evaluation.judge_endpoint import Endpoint
from evaluation.judge_prompt import PROMPT, Question
from evaluation.judge_scores import preferences
from evaluation.report import Sample
from finetune import model

TICK_SECONDS = 0.2
FIRST_CHOICES: dict[tuple[str, str], Outcome] = {("second", "first"): "win", ("first", "second"): "loss"}


class LocalModel(NamedTuple):
    """A judge on this machine that is not in memory yet."""

    name: str
    source: model.Source


def reach(asked: EvalConfig, say: Callable[[str], None]) -> Endpoint | LocalModel | None:
    """The judge, reached or at least there, before hours are spent on answers. Raises ValueError with a sentence."""
    if asked.judge is None:
        return None
    name = judge_name(asked.judge)
    if name.address:
        return Endpoint(name, asked.judge_tokens)
    return LocalModel(name.model, model.fetch(name.model, None, say))


class Judged(NamedTuple):
    """The samples with what the judge made of them, and its report without the scores."""

    samples: list[Sample]
    report: JudgeReport
    notes: list[str]


class _Place(NamedTuple):
    """Where a question comes from: which sample, which column, and whether that column's answer stands first."""

    sample: int
    column: int
    turned: bool


def judge_samples(
    samples: Sequence[Sample], labels: Sequence[str], judge: Any, asked: EvalConfig, hooks: Hooks
) -> Judged | None:
    """Ask about every sample with answers; None where it was asked to stop.

    Args:
        samples: with answers.
        labels: the columns; each but the first is compared with the first.
        judge: an `Endpoint`, or a `LocalJudge`.
        asked: whether to show the reference, how many at once, what it costs, whether to use the cache.
        hooks: told how many samples are done.
    """
    started = time.monotonic()
    places = {
        place: question
        for i, sample in enumerate(samples)
        for column in range(1, len(labels))
        if sample.answers[column].strip() != sample.answers[0].strip()
        for place, question in _both_orders(sample, i, column, asked.judge_reference)
    }
    judge.counts.same = len(samples) * (len(labels) - 1) - len(places) // 2
    cache = Cache("judgements", _context(judge, asked)) if asked.cache else None
    replies: dict[str, Value] = {}
    left = {i: sum(place.sample == i for place in places) for i in {place.sample for place in places}}
    todo: dict[str, tuple[Question, list[_Place]]] = {}
    for place, question in places.items():  # one question may come up twice, and is asked once
        todo.setdefault(question.key, (question, []))[1].append(place)
    for key, value in _answers({k: q for k, (q, _) in todo.items()}, judge, cache, asked.judge_at_once, hooks):
        if value is not None:
            replies[key] = value
        for place in todo[key][1]:
            left[place.sample] -= 1
        hooks.on_done(len(samples) - sum(count > 0 for count in left.values()))
    if cache:
        cache.close()
    if hooks.cancelled():
        return None
    judge.counts.seconds = time.monotonic() - started
    read = {place: replies.get(question.key) for place, question in places.items()}
    judged = [_with_judgements(sample, i, len(labels), read) for i, sample in enumerate(samples)]
    return Judged(judged, _report(judge, asked, judged, labels), _notes(judge))


def _both_orders(sample: Sample, i: int, column: int, show_reference: bool) -> Iterator[tuple[_Place, Question]]:
    question = f"{sample.instruction}\n\n{sample.context}".strip()
    reference = sample.reference if show_reference else ""
    base, other = sample.answers[0], sample.answers[column]
    yield _Place(i, column, False), Question(question, reference, base, other)
    yield _Place(i, column, True), Question(question, reference, other, base)


def _answers(
    questions: dict[str, Question], judge: Any, cache: Cache | None, at_once: int, hooks: Hooks
) -> Iterator[tuple[str, Value | None]]:
    """Every question's key with the reply to it, None where there is none, as they come. Ends when stopped."""
    missing = []
    for key in questions:
        if cache and (known := cache.get(key)) is not None:
            judge.counts.from_cache += 1
            yield key, known
        else:
            missing.append(key)
    far = bool(judge.address)
    replies = _at_once(missing, questions, judge, at_once, hooks) if far else _in_turn(missing, questions, judge)
    for key, value in replies:
        if value is None:
            judge.counts.failed += 1
        elif cache:
            cache.put(key, value)
        yield key, value
        if hooks.cancelled():
            return


def _in_turn(keys: list[str], questions: dict[str, Question], judge: Any) -> Iterator[tuple[str, Value | None]]:
    return ((key, judge.ask(questions[key])) for key in keys)


def _at_once(
    keys: list[str], questions: dict[str, Question], judge: Any, at_once: int, hooks: Hooks
) -> Iterator[tuple[str, Value | None]]:
    """A few at a time. The threads are daemons: a stop does not wait for a server that takes minutes to reply."""
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    news: queue.SimpleQueue[tuple[str, Value | None] | Exception] = queue.SimpleQueue()
    for key in keys:
        todo.put(key)

    def work() -> None:
        try:
            while True:
                key = todo.get_nowait()
                news.put((key, judge.ask(questions[key])))
        except queue.Empty:
            pass
        except Exception as error:  # raised where the news are read: a thread has nobody to tell
            news.put(error)

    for _ in range(min(at_once, len(keys))):
        threading.Thread(target=work, daemon=True).start()
    left = len(keys)
    while left and not hooks.cancelled():
        with suppress(queue.Empty):
            found = news.get(timeout=TICK_SECONDS)
            if isinstance(found, Exception):
                raise found
            yield found
            left -= 1


def _context(judge: Any, asked: EvalConfig) -> dict[str, Any]:
    """All that decides a reply but the question: of a model here its weights, else its name and where it is."""
    if not judge.address:
        return {"model_sha256": judge.source.sha256, "prompt": PROMPT}
    return {"address": judge.address, "model": judge.model, "prompt": PROMPT, "longest": asked.judge_tokens}


def _with_judgements(sample: Sample, i: int, columns: int, read: dict[_Place, Value | None]) -> Sample:
    """The sample with a judgement a column; its values too where all columns got one."""
    found = []
    for column in range(1, columns):
        if _Place(i, column, False) not in read:
            found.append(Judgement(outcome="tie"))
            continue
        replies = [read[_Place(i, column, turned)] for turned in (False, True)]
        choices = [reply["choice"] if reply else "" for reply in replies]
        outcome = FIRST_CHOICES.get((choices[0], choices[1]), "tie" if all(choices) else "failed")
        reasons = [reply["reason"] if reply else "" for reply in replies]
        found.append(Judgement(outcome=outcome, choices=choices, reasons=reasons))
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    if any(judgement.outcome == "failed" for judgement in found):
        return sample.model_copy(update={"judgements": found})
    values = sample.values | {"judge": [0.5, *(worth[judgement.outcome] for judgement in found)]}
    return sample.model_copy(update={"judgements": found, "values": values})


def _report(judge: Any, asked: EvalConfig, samples: Sequence[Sample], labels: Sequence[str]) -> JudgeReport:
    counts: Counts = judge.counts
    prices = (asked.judge_prompt_price, asked.judge_completion_price)
    cost = (counts.prompt_tokens * prices[0] + counts.completion_tokens * prices[1]) / 1e6
    return JudgeReport(
        judge=judge.model,
        address=judge.address,
        model_sha256=None if judge.address else judge.source.sha256,
        prompt=PROMPT,
        with_reference=asked.judge_reference,
        counts=counts.model_copy(),
        cost=cost if any(prices) else None,
        preferences=preferences(samples, labels),
    )


def _notes(judge: Any) -> list[str]:
    counts: Counts = judge.counts
    notes = []
    if counts.failed:
        gave_up = "It was given up. " if judge.has_given_up else ""
        notes.append(
            f"{counts.failed} questions to the judge {judge.model} got no clear reply, and count as nothing. {gave_up}"
            f"The last trouble: {judge.trouble}."
        )
    if counts.malformed and not counts.failed:
        notes.append(f"{counts.malformed} replies of the judge were malformed and were asked for again.")
    if counts.without_usage:
        notes.append(f"{counts.without_usage} replies of the judge did not tell their tokens: its cost is higher.")
    return notes
