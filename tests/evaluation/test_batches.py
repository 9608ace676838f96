"""Batches that find their own size, and the cache under them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.answers import greedy_answers, prompts_of
from evaluation.batches import Hooks, Item, run_batched
from evaluation.cache import Cache, ids_key
from evaluation.columns import Side
from evaluation.progress import Part, Progress
from finetune.data import load_rows
from finetune.prompt import template
from finetune.run import Reporter, create_job
from inference.decode import decode
from inference.lora import load_adapter


class Device:
    """Work on a device with room for so many padded tokens; remembers the batches that fitted."""

    def __init__(self, lengths: Sequence[int], room: int, error: Exception) -> None:
        self.lengths, self.room, self.error = lengths, room, error
        self.batches: list[list[Item]] = []

    def work(self, items: list[Item]) -> list[dict[str, Any] | None]:
        if len(items) * max(self.lengths[item.example] for item in items) > self.room:
            raise self.error
        self.batches.append(items)
        return [{"value": item.example * 10 + item.column} for item in items]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_batch_and_goes_on(error: Exception) -> None:
    lengths = [5, 40, 10, 20, 30, 10, 25]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    told: list[int] = []
    device = Device(lengths, 100, error)
    found = run_batched(order, lengths, 2, 400, device.work, None, [], Hooks(told.append))
    assert found.results == {Item(i, c): {"value": i * 10 + c} for i in range(7) for c in range(2)}
    assert found.budget <= 100 and told[0] == 0 and told[-1] == 7
    for batch in device.batches:  # both columns of an example share a batch
        assert {(i.example, 1 - i.column) for i in batch} == {(i.example, i.column) for i in batch}


def test_columns_part_only_where_one_example_is_too_much() -> None:
    device = Device([40], 50, torch.OutOfMemoryError("full"))
    assert len(run_batched([0], [40], 2, 400, device.work, None, [], Hooks()).results) == 2
    assert [len(batch) for batch in device.batches] == [1, 1]


def test_what_fits_nowhere_is_a_sentence_and_another_error_is_raised() -> None:
    with pytest.raises(ValueError, match="The memory is too small for a single example"):
        run_batched([0], [40], 2, 400, Device([40], 10, torch.OutOfMemoryError("x")).work, None, [], Hooks())
    with pytest.raises(RuntimeError, match="something else"):
        run_batched([0], [40], 2, 400, Device([40], 10, RuntimeError("something else")).work, None, [], Hooks())


def test_answers_survive_a_device_that_runs_full(
    tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real decoder with a memory error injected: the answers are those of a device with room."""
    rows = load_rows(None).rows[:6]
    sides = [Side(None, 0.0), Side(load_adapter(tiny_adapter, tiny_base), 1.0)]
    chosen = template(tiny_tokenizer)
    roomy = greedy_answers(tiny_base, chosen, rows, sides, 8)
    real, sizes = decode, []

    def full(base: Any, template_: Any, prompts: Any, *rest: Any) -> Any:
        if len(prompts) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(prompts))
        return real(base, template_, prompts, *rest)

    monkeypatch.setattr("evaluation.answers.decode", full)
    tight = greedy_answers(tiny_base, chosen, rows, sides, 8)
    assert tight.results == roomy.results and max(sizes) <= 4 and tight.budget <= 4


def test_both_columns_are_asked_the_same(
    tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peers' trap: base and tuned with different prompts. Here they are the same ids, in the same batch."""
    rows = load_rows(None).rows[:5]
    sides = [Side(None, 0.0), Side(load_adapter(tiny_adapter, tiny_base), 1.0)]
    asked: list[tuple[list[list[int]], list[float]]] = []
    real = decode

    def spy(base: Any, template_: Any, prompts: Any, adapters: Any, *rest: Any) -> Any:
        asked.append((prompts, adapters[0].strengths))
        return real(base, template_, prompts, adapters, *rest)

    monkeypatch.setattr("evaluation.answers.decode", spy)
    chosen = template(tiny_tokenizer)
    greedy_answers(tiny_base, chosen, rows, sides, 4)
    ((prompts, strengths),) = asked
    base, tuned = ([p for p, s in zip(prompts, strengths, strict=True) if s == side] for side in (0.0, 1.0))
    assert base == tuned and sorted(base) == sorted(prompts_of(chosen, rows))


def test_a_cut_short_answer_is_not_kept(tiny_base: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    cache = Cache("answers", {"a": 1}, tmp_path)
    rows = load_rows(None).rows[:3]
    asked = iter([False, *[True] * 50])  # the first batch begins, and is stopped after its first token
    found = greedy_answers(
        tiny_base, template(tiny_tokenizer), rows, [Side(None, 0.0)], 50, [cache], Hooks(cancelled=lambda: next(asked))
    )
    assert not found.results and len(cache.file.read_text().splitlines()) == 1


def test_a_cache_is_of_one_context(tmp_path: Path) -> None:
    context = {"model_sha256": "m", "adapter": "a", "strength": 1.0, "max_new_tokens": 8, "columns": 2}
    cache = Cache("answers", context, tmp_path)
    cache.put("k", {"text": "Löwe\n"})
    cache.close()
    assert Cache("answers", dict(reversed(context.items())), tmp_path).get("k") == {"text": "Löwe\n"}
    for name, value in [("adapter", "b"), ("adapter", None), ("strength", 0.5), ("max_new_tokens", 9), ("columns", 3)]:
        assert Cache("answers", context | {name: value}, tmp_path).get("k") is None, name
    assert Cache("likelihoods", context, tmp_path).get("k") is None


def test_half_a_line_costs_no_other(tmp_path: Path) -> None:
    cache = Cache("answers", {}, tmp_path)
    cache.put("one", {"v": 1})
    cache.close()
    with cache.file.open("a") as file:
        file.write('{"key": "two", "val')
    again = Cache("answers", {}, tmp_path)
    assert again.get("one") == {"v": 1} and again.get("two") is None
    again.put("three", {"v": 3})
    again.close()
    last = Cache("answers", {}, tmp_path)
    assert last.get("one") == {"v": 1} and last.get("three") == {"v": 3}
    assert json.loads(cache.file.read_text().splitlines()[0]) == {"context": {}}


def test_a_key_knows_where_the_prompt_ends() -> None:
    assert ids_key([1, 2], [3]) != ids_key([1], [2, 3]) != ids_key([1, 2, 3])


def test_the_time_left_is_of_all_parts_and_not_of_what_the_cache_gave(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts of 10 steps, the second one's 8 times as long; half of the first was known. 1 s a weight."""
    job, _ = create_job(runs, "evaluation", {})
    clock = iter([100.0, 100.0, 103.0, 105.0, 113.0])
    monkeypatch.setattr("evaluation.progress.time.monotonic", lambda: next(clock))
    parts = {"likelihood": Part("reading", 10), "answers": Part("answering", 10)}
    with Progress(job, Reporter(job), parts) as progress:
        reading = progress.hooks("likelihood")
        assert (job.status()["step"], job.status()["max_steps"], job.status()["message"]) == (0, 20, "reading")
        reading.on_done(5)
        assert "eta_seconds" not in job.status()
        reading.on_done(8)
        assert job.status()["eta_seconds"] == pytest.approx(2 + 80)
        reading.on_done(10)
        progress.hooks("answers").on_done(1)
        assert job.status()["step"] == 11 and job.status()["eta_seconds"] == pytest.approx(72)
        assert not reading.cancelled()
        job.request_stop()
        assert reading.cancelled()
