"""One owner of the model: callers queue, a closed stream stops, nothing is left behind."""

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import wait_for

from finetune.prompt import Turn
from inference.columns import BASE, Column, Subject
from inference.engine import Engine, Update
from inference.sampling import Sampling


def compare(engine: Engine, model: Path, adapter: Path | None, tokens: int = 24, **named: Any) -> Any:
    columns = [BASE, Column("tuned", adapter)] if adapter else [BASE]
    histories = [[Turn("Name a bird.")]] * len(columns)
    return engine.compare(str(model), None, "auto", columns, histories, Sampling(), tokens, **named)


def test_two_columns_stream_and_end(tiny_model: Path, tiny_adapter: Path) -> None:
    updates: list[Update] = list(compare(Engine(), tiny_model, tiny_adapter, 200))
    base, tuned = updates[-1].answers
    assert base.stop and tuned.stop and base.text != tuned.text
    assert tuned.tokens_per_second > 0 and tuned.first_token_seconds > 0


def test_closing_the_stream_stops_the_worker(tiny_model: Path) -> None:
    engine = Engine()
    stream = compare(engine, tiny_model, None, 100_000)
    wait_for(lambda: bool(next(stream).answers))
    stream.close()
    started = time.monotonic()
    list(compare(engine, tiny_model, None, 2))  # the worker is free again
    assert time.monotonic() - started < 5


def test_callers_queue_and_are_not_mixed(tiny_model: Path, tiny_adapter: Path) -> None:
    engine = Engine()
    alone = list(compare(engine, tiny_model, tiny_adapter))[-1]
    results: list[Update] = []
    callers = [
        threading.Thread(target=lambda: results.append(list(compare(engine, tiny_model, tiny_adapter))[-1]))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [[a.text for a in r.answers] for r in results] == [[a.text for a in alone.answers]] * 4


def test_an_adapter_of_other_weights_is_refused(tiny_model: Path, tiny_adapter: Path) -> None:
    with pytest.raises(ValueError, match="was trained on other weights"):
        list(compare(Engine(), tiny_model, tiny_adapter, expected_sha256="0" * 64))


def test_an_error_does_not_end_the_engine(tiny_model: Path) -> None:
    engine = Engine()
    with pytest.raises(ValueError, match="There is no model"):
        list(compare(engine, Path("/no/such/model"), None))
    assert list(compare(engine, tiny_model, None, 2))[-1].answers


def test_memory_and_threads_are_flat_over_200_starts_and_cancels(tiny_model: Path, tiny_adapter: Path) -> None:
    engine, process = Engine(), psutil.Process()

    def start_and_cancel(times: int) -> None:
        for _ in range(times):
            stream = compare(engine, tiny_model, tiny_adapter, 100_000)
            while not next(stream).answers:
                pass
            stream.close()
        engine._worker.submit(lambda: None).result()  # the last one has ended

    start_and_cancel(20)
    memory, threads = process.memory_info().rss, threading.active_count()
    start_and_cancel(200)
    assert threading.active_count() <= threads  # those that another test left may end meanwhile
    assert process.memory_info().rss - memory < 24 * 2**20  # a kept cache or thread an answer would be far more


def test_memory_is_given_back_on_request_and_the_next_answer_loads_again(tiny_model: Path) -> None:
    engine = Engine()
    first = list(compare(engine, tiny_model, None))[-1]
    assert engine._loaded is not None
    engine.release().result()
    assert engine._loaded is None and engine.prefix._cache is None and not engine._adapters
    updates = list(compare(engine, tiny_model, None))
    assert updates[-1].answers[0].text == first.answers[0].text


def test_a_further_turn_reuses_the_engines_prefix(tiny_model: Path, tiny_adapter: Path) -> None:
    engine = Engine()
    first = list(compare(engine, tiny_model, tiny_adapter))[-1]
    again = list(compare(engine, tiny_model, tiny_adapter))[-1]
    assert engine.prefix.prefilled == [1, 1]
    assert [a.text for a in again.answers] == [a.text for a in first.answers]
    list(compare(engine, tiny_model, None))
    assert engine.prefix.prefilled == [again.prompt_tokens[0]]


def test_the_engine_looks_and_crosses(tiny_model: Path, tiny_adapter: Path) -> None:
    engine, asked = Engine(), Subject(str(tiny_model))
    columns, history = [BASE, Column("tuned", tiny_adapter)], [Turn("Name a bird.")]
    lens = engine.lens(asked, columns, history, "The wren.")
    (base, tuned), *_ = engine.cross(asked, columns, history, ["The wren.", "A robin."])
    assert base.log_p == pytest.approx(sum(lens.log_p[0])) and tuned.log_p == pytest.approx(sum(lens.log_p[1]))
    assert base.tokens == len(lens.ids) == len(lens.texts) and max(lens.kl[1]) > 0
    assert "".join(lens.texts) == "The wren."
    as_a_pirate = engine.lens(asked, columns, history, "The wren.", "Talk like a pirate.")
    assert as_a_pirate.log_p != lens.log_p
