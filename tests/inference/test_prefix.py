"""A further turn of a conversation computes only what is new, and says what a fresh run says."""

from pathlib import Path
from typing import Any

from conftest import make_adapter

from finetune.prompt import Turn, template
from inference.decode import decode
from inference.lora import Placed, load_adapter
from inference.prefix import Prefix
from inference.sampling import Sampling


def ask(base: Any, chosen: Any, prompts: Any, adapters: Any, prefix: Prefix | None = None, tokens: int = 12) -> Any:
    *_, last = decode(base, chosen, prompts, adapters, Sampling(), tokens, prefix=prefix)
    return [answer.text for answer in last]


def test_a_further_turn_prefills_only_what_is_new(tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path) -> None:
    """Two columns with histories of their own, three turns: unequal lengths, answers that end at different steps."""
    chosen = template(tiny_tokenizer, "chat")
    adapters = [Placed(load_adapter(tiny_adapter, tiny_base), [0.0, 1.0])]
    prefix = Prefix()
    histories: list[list[Turn]] = [[], []]
    asked: list[list[int]] = []
    for questions in (("Name a bird.", "Name one."), ("And where does it live, all year?", "Where?"), ("Why?", "Why?")):
        histories = [[*history, Turn(question)] for history, question in zip(histories, questions, strict=True)]
        prompts = [chosen.encode_prompt(history) for history in histories]
        said = ask(tiny_base, chosen, prompts, adapters, prefix)
        assert said == ask(tiny_base, chosen, prompts, adapters)
        if asked:  # what was asked before is known; an answer's text may be cut into other tokens
            new = [len(now) - len(before) for now, before in zip(prompts, asked, strict=True)]
            assert all(0 < made <= n for made, n in zip(prefix.prefilled, new, strict=True)), (prefix.prefilled, new)
        else:
            assert prefix.prefilled == [len(prompt) for prompt in prompts]
        asked = prompts
        histories = [[*h[:-1], h[-1]._replace(response=text)] for h, text in zip(histories, said, strict=True)]
    assert len({len(prompt) for prompt in prompts}) == 2


def test_the_same_prompt_again_computes_one_token(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen, prefix = template(tiny_tokenizer), Prefix()
    prompts = [chosen.encode_prompt([Turn(text)]) for text in ("Hi", "What is the longest river of them all?")]
    first = ask(tiny_base, chosen, prompts, [], prefix)
    assert ask(tiny_base, chosen, prompts, [], prefix) == first
    assert prefix.prefilled == [1, 1]


def test_other_adapters_strengths_or_rows_start_anew(
    tiny_source: Any, tiny_base: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    chosen, prefix = template(tiny_tokenizer), Prefix()
    one, two = (load_adapter(make_adapter(tiny_source, tmp_path / str(n), seed=n), tiny_base) for n in (1, 2))
    prompt = chosen.encode_prompt([Turn("Hi")])
    for adapters in ([Placed(one, [0.0, 1.0])], [Placed(one, [0.0, 0.5])], [Placed(two, [0.0, 0.5])], []):
        said = ask(tiny_base, chosen, [prompt] * 2, adapters, prefix)
        assert prefix.prefilled == [len(prompt)] * 2
        assert said == ask(tiny_base, chosen, [prompt] * 2, adapters)
    ask(tiny_base, chosen, [prompt], [], prefix)
    assert prefix.prefilled == [len(prompt)]


def test_a_cancelled_answer_leaves_a_prefix_that_is_right(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen, prefix = template(tiny_tokenizer), Prefix()
    prompt = chosen.encode_prompt([Turn("Hi")])
    steps = decode(tiny_base, chosen, [prompt], [], Sampling(), 50, prefix=prefix)
    for _ in range(4):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert ask(tiny_base, chosen, [prompt], [], prefix) == ask(tiny_base, chosen, [prompt], [])
    assert prefix.prefilled == [1]


def test_a_sliding_window_is_not_cut(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen, prefix = template(tiny_tokenizer), Prefix()
    prompt = chosen.encode_prompt([Turn("Hi")])
    ask(tiny_base, chosen, [prompt], [], prefix)
    tiny_base.config.sliding_window = 8
    prefix.start(tiny_base, [prompt], prefix._key)
    assert prefix.prefilled == [len(prompt)]
