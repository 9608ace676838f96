"""The captured step says what the plain loop says, in any order of conversations, and leaves the cache as it would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_adapter

from finetune.base import load_base, load_tokenizer
from finetune.data import load_rows
from finetune.prompt import Turn, template
from inference.captured import SLOTS, Captures
from inference.decode import decode
from inference.lora import Placed, load_adapter
from inference.prefix import Prefix
from inference.sampling import Sampling

QUESTIONS = ("Hi", "What is the longest river of them all, and where does it end?", "Name a bird.")


def answers(base: Any, chosen: Any, prompts: Any, adapters: Any, tokens: int = 24, **kept: Any) -> list[str]:
    *_, last = decode(base, chosen, prompts, adapters, Sampling(temperature=0.8, seed=3), tokens, **kept)
    return [answer.text for answer in last]


def conversation(chosen: Any) -> list[list[list[int]]]:
    """Prompts of three calls of two rows: unequal lengths; the second goes on from the first."""
    first = [Turn(QUESTIONS[0], "", "Good day"), Turn(QUESTIONS[1])]
    return [
        [chosen.encode_prompt([Turn(QUESTIONS[0])]), chosen.encode_prompt([Turn(QUESTIONS[1])])],
        [chosen.encode_prompt(first), chosen.encode_prompt([Turn(QUESTIONS[1], "", "Far away"), Turn(QUESTIONS[2])])],
        [chosen.encode_prompt([Turn(QUESTIONS[2])]), chosen.encode_prompt([Turn(QUESTIONS[0])])],
    ]


def test_same_tokens_as_the_plain_loop(tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path) -> None:
    chosen = template(tiny_tokenizer, "chat")
    adapters = [Placed(load_adapter(tiny_adapter, tiny_base), [0.0, 1.0])]
    prefix, captures = Prefix(), Captures()
    for prompts in conversation(chosen):
        said = answers(tiny_base, chosen, prompts, adapters, prefix=prefix, captures=captures)
        assert said == answers(tiny_base, chosen, prompts, adapters)
    assert captures.count == 1
    assert prefix.prefilled == [1, 1] or sum(prefix.prefilled) > 0


def test_a_further_turn_reuses_what_the_captured_step_wrote(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen, prefix, captures = template(tiny_tokenizer, "chat"), Prefix(), Captures()
    prompt = chosen.encode_prompt([Turn(QUESTIONS[1])])
    said = answers(tiny_base, chosen, [prompt], [], 8, prefix=prefix, captures=captures)
    kept = prefix._cache.layers[0].keys.shape[2]
    assert kept > len(prompt)  # what was said is in the cache
    longer = chosen.encode_prompt([Turn(QUESTIONS[1], "", said[0]), Turn(QUESTIONS[0])])
    again = answers(tiny_base, chosen, [longer], [], 8, prefix=prefix, captures=captures)
    assert prefix.prefilled[0] < len(longer) - len(prompt) + 1
    assert again == answers(tiny_base, chosen, [longer], [], 8)


def test_it_is_captured_again_only_when_something_changed(
    tiny_source: Any, tiny_base: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    chosen, captures = template(tiny_tokenizer, "chat"), Captures()
    one, two = (load_adapter(make_adapter(tiny_source, tmp_path / str(n), seed=n), tiny_base) for n in (1, 2))
    prompt = chosen.encode_prompt([Turn("Hi")])
    asked = [
        (2, [Placed(one, [0.0, 1.0])], 8, 1),
        (2, [Placed(one, [0.0, 1.0])], 9, 1),
        (2, [Placed(one, [0.0, 0.5])], 8, 2),
        (2, [Placed(two, [0.0, 0.5])], 8, 3),
        (1, [], 8, 4),
        (1, [], 2 * SLOTS, 5),
        (1, [], 8, 5),
    ]
    for rows, adapters, tokens, count in asked:
        said = answers(tiny_base, chosen, [prompt] * rows, adapters, tokens, captures=captures)
        assert captures.count == count
        assert said == answers(tiny_base, chosen, [prompt] * rows, adapters, tokens)


def test_stopped_in_the_middle_it_can_go_on(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen, prefix, captures = template(tiny_tokenizer, "chat"), Prefix(), Captures()
    prompt = chosen.encode_prompt([Turn(QUESTIONS[1])])
    steps = decode(tiny_base, chosen, [prompt], [], Sampling(), 50, prefix=prefix, captures=captures)
    for _ in range(3):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert answers(tiny_base, chosen, [prompt], [], prefix=prefix, captures=captures) == answers(
        tiny_base, chosen, [prompt], []
    )
    assert prefix.prefilled == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_a_graph(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen, captures = template(tiny_tokenizer, "chat"), Captures()
    answers(tiny_base, chosen, [chosen.encode_prompt([Turn("Hi")])], [], captures=captures)
    assert captures._kept is not None and captures._kept.graph is not None


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_twenty_prompts_on_the_real_model(smollm2: Any, tmp_path: Path) -> None:
    base, chosen = load_base(smollm2), template(load_tokenizer(smollm2))
    placed = [Placed(load_adapter(make_adapter(smollm2, tmp_path / "adapter", seed=1), base), [0.0, 1.0])]
    captures = Captures()
    for row in load_rows(None).rows[:20]:
        prompts = [chosen.encode_prompt([Turn(row.instruction, row.context)])] * 2
        said = answers(base, chosen, prompts, placed, 32, captures=captures)
        assert said == answers(base, chosen, prompts, placed, 32) and said[0] != said[1]
    assert captures.count <= 4  # as caches grow, not for every prompt
