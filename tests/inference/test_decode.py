"""The compare loop against plain forwards, PEFT and transformers' generate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_adapter

from finetune.base import load_base
from finetune.data import load_rows
from finetune.prompt import Turn, template
from inference.decode import Answer, _Row, _sure, decode, pad_left
from inference.lora import Placed, load_adapter, placed
from inference.sampling import Sampling

PROMPTS = ["Name a bird.", "What is the capital of France, and how long has it been so?", "Hi"]


def whole(*arguments: Any, **named: Any) -> list[Answer]:
    *_, last = decode(*arguments, **named)
    return last


def test_row_0_is_the_bare_base_bit_for_bit_and_row_1_the_adapter_alone(tiny_base: Any, tiny_adapter: Path) -> None:
    adapter = load_adapter(tiny_adapter, tiny_base)
    ids = torch.arange(3, 43).reshape(1, -1).repeat(2, 1)
    with torch.no_grad():
        bare = tiny_base(ids).logits
        with placed(tiny_base, [Placed(adapter, [0.0, 1.0])]):
            mixed = tiny_base(ids).logits
        with placed(tiny_base, [Placed(adapter, [1.0, 1.0])]):
            tuned = tiny_base(ids).logits
    assert torch.equal(mixed[0], bare[0])
    assert torch.equal(mixed[1], tuned[1])
    assert not torch.equal(mixed[0], mixed[1])


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_tuned_row_is_what_peft_says(tiny_source: Any, tiny_base: Any, tiny_adapter: Path, strength: float) -> None:
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale

    ids = torch.arange(3, 43).reshape(1, -1)
    peft = PeftModel.from_pretrained(load_base(tiny_source), tiny_adapter).eval()
    with torch.no_grad():
        with rescale_adapter_scale(peft, strength):
            expected = peft(ids).logits
        with placed(tiny_base, [Placed(load_adapter(tiny_adapter, tiny_base), [strength])]):
            ours = tiny_base(ids).logits
    tolerance = 1e-4 if ours.dtype == torch.float32 else 5e-2
    assert torch.allclose(ours, expected, atol=tolerance, rtol=tolerance)


def test_two_adapters_do_not_touch_each_others_rows(tiny_source: Any, tiny_base: Any, tmp_path: Path) -> None:
    first = load_adapter(make_adapter(tiny_source, tmp_path / "a", seed=1), tiny_base)
    second = load_adapter(make_adapter(tiny_source, tmp_path / "b", seed=2), tiny_base)
    ids = torch.arange(3, 23).reshape(1, -1).repeat(3, 1)
    with torch.no_grad():
        with placed(tiny_base, [Placed(first, [0.0, 1.0, 0.0]), Placed(second, [0.0, 0.0, 1.0])]):
            together = tiny_base(ids).logits
        with placed(tiny_base, [Placed(first, [0.0, 1.0, 0.0])]):
            alone = tiny_base(ids).logits
    assert torch.equal(together[:2], alone[:2]) and not torch.equal(together[2], alone[2])


def test_no_hook_outlives_a_call_whatever_is_raised(tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path) -> None:
    adapter = load_adapter(tiny_adapter, tiny_base)
    with pytest.raises(RuntimeError), placed(tiny_base, [Placed(adapter, [1.0])]):
        raise RuntimeError
    prompt = [template(tiny_tokenizer).encode_prompt([Turn("Hi")])]
    steps = decode(tiny_base, template(tiny_tokenizer), prompt, [Placed(adapter, [1.0])], Sampling(), 50)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert not any(module._forward_hooks for module in tiny_base.modules())


@pytest.mark.parametrize("choice", ["chat", "dolly"])
def test_greedy_answers_are_those_of_generate(
    tiny_source: Any, tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path, choice: Any
) -> None:
    from peft import PeftModel

    chosen = template(tiny_tokenizer, choice)
    prompts = [chosen.encode_prompt([Turn(text)]) for text in PROMPTS for _ in range(2)]
    adapter = load_adapter(tiny_adapter, tiny_base)
    ours = whole(tiny_base, chosen, prompts, [Placed(adapter, [0.0, 1.0] * 3)], Sampling(), 24)

    peft = PeftModel.from_pretrained(load_base(tiny_source), tiny_adapter).eval()
    ids, mask = pad_left(prompts, tiny_tokenizer.pad_token_id, torch.device("cpu"))
    said = peft.generate(
        input_ids=ids,
        attention_mask=mask,
        adapter_names=["__base__", "default"] * 3,
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=sorted(chosen.stop_ids),
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    texts = tiny_tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
    texts = [text.split("### End")[0].split("### Instruction:")[0] for text in texts]
    assert [answer.text for answer in ours] == [text.strip() for text in texts]
    assert len({answer.text for answer in ours}) > 1


def test_the_same_model_in_two_columns_says_the_same_at_any_temperature(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen = template(tiny_tokenizer)
    prompt = chosen.encode_prompt([Turn("Tell me something.")])
    sampling = Sampling(temperature=1.5, seed=3)
    one, two = whole(tiny_base, chosen, [prompt, prompt], [], sampling, 24)
    assert one.text == two.text
    (other, _) = whole(tiny_base, chosen, [prompt, prompt], [], Sampling(temperature=1.5, seed=4), 24)
    assert other.text != one.text


def test_cancelling_ends_within_one_token(tiny_base: Any, tiny_tokenizer: Any) -> None:
    chosen = template(tiny_tokenizer)
    seen: list[list[Answer]] = []
    for answers in decode(
        tiny_base, chosen, [chosen.encode_prompt([Turn("Hi")])], [], Sampling(), 400, lambda: len(seen) >= 3
    ):
        seen.append(answers)
    assert seen[-1][0].stop == "cancelled" and seen[-1][0].tokens == 4


def row_after(tokenizer: Any, choice: Any, text: str) -> list[str]:
    row = _Row(template(tokenizer, choice), 1000, 0.0)
    shown = []
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        row.add(token)
        shown.append(row.text)
    return [*shown, str(row.stop)]


def test_a_stop_string_split_across_tokens_is_never_shown(tiny_tokenizer: Any) -> None:
    shown = row_after(tiny_tokenizer, "dolly", "Bees.\n\n### End and more")
    assert shown[-1] == "end" and shown[-2] == "Bees."
    assert not any("#" in text for text in shown[:-1])


def test_half_a_character_is_never_shown(tiny_tokenizer: Any) -> None:
    shown = row_after(tiny_tokenizer, "chat", "Grüße 🐝!")
    assert not any("\ufffd" in text for text in shown) and shown[-2] == "Grüße 🐝!"


def test_what_may_become_a_stop_is_held_back() -> None:
    assert _sure("a ###", ("### End",)) == "a"
    assert _sure("a ### E", ("### End",)) == "a"
    assert _sure("a ### Fin", ("### End",)) == "a ### Fin"


def test_a_broken_adapter_is_one_sentence(tiny_base: Any, tiny_adapter: Path) -> None:
    weights = tiny_adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not there or not whole"):
        load_adapter(tiny_adapter, tiny_base)


def test_an_adapter_of_another_model_does_not_fit(tiny_base: Any, tiny_adapter: Path) -> None:
    adapter = {f"other.{name}": low_rank for name, low_rank in load_adapter(tiny_adapter, tiny_base).items()}
    with pytest.raises(ValueError, match="does not fit this base"), placed(tiny_base, [Placed(adapter, [1.0])]):
        pass
    assert not any(module._forward_hooks for module in tiny_base.modules())


@pytest.mark.long
@pytest.mark.slow
def test_the_real_model_says_what_generate_says(smollm2: Any) -> None:
    from finetune.base import load_tokenizer

    base, tokenizer = load_base(smollm2), load_tokenizer(smollm2)
    chosen = template(tokenizer)
    rows = load_rows(None).rows[:4]
    prompts = [chosen.encode_prompt([Turn(row.instruction, row.context)]) for row in rows]
    ours = whole(base, chosen, prompts, [], Sampling(), 16)
    ids, mask = pad_left(prompts, tokenizer.pad_token_id, torch.device("cpu"))
    said = base.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=sorted(chosen.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
    assert [answer.text for answer in ours] == [text.strip() for text in texts]
