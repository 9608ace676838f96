"""Each column's greedy text is that of transformers' `generate` with the adapter on or off, over 50 Dolly prompts."""

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_adapter
from peft import PeftModel

from finetune.base import load_base, load_tokenizer
from finetune.data import Row, load_rows
from finetune.prompt import Turn, template
from inference.decode import decode, pad_left
from inference.lora import Placed, load_adapter
from inference.sampling import Sampling


def history(row: Row, before: Row, multi_turn: bool) -> list[Turn]:
    asked = Turn(row.instruction, row.context[:300])
    return [Turn(before.instruction, "", before.response[:200]), asked] if multi_turn else [asked]


def fifty(path: Path, chosen: Any) -> list[list[int]]:
    """Prompts of single questions and of conversations in turn."""
    rows = load_rows(str(path)).rows[:51]
    turns = [history(row, before, n % 2 == 1) for n, (before, row) in enumerate(pairwise(rows))]
    return [chosen.encode_prompt(talk) for talk in turns]


def ours(base: Any, chosen: Any, prompts: list[list[int]], folder: Path, tokens: int) -> list[str]:
    """The base's answers, then the tuned one's, all in one batch."""
    count = len(prompts)
    placed = [Placed(load_adapter(folder, base), [0.0] * count + [1.0] * count)]
    *_, last = decode(base, chosen, prompts * 2, placed, Sampling(), tokens)
    return [answer.text for answer in last]


def theirs(base: Any, chosen: Any, prompts: list[list[int]], folder: Path, tokens: int) -> list[str]:
    """The same by `generate`, one model after the other."""
    tokenizer = chosen.tokenizer
    peft = PeftModel.from_pretrained(base, folder).eval()
    ids, mask = pad_left(prompts, tokenizer.pad_token_id, torch.device("cpu"))
    texts: list[str] = []
    for context in (peft.disable_adapter(), nullcontext()):
        with context:
            said = peft.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=sorted(chosen.stop_ids),
                pad_token_id=tokenizer.pad_token_id,
            )
        texts += [t.strip() for t in tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)]
    return texts


def test_fifty_dolly_prompts(
    tiny_source: Any, tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path, dolly_rows: Path
) -> None:
    chosen = template(tiny_tokenizer)
    prompts = fifty(dolly_rows, chosen)
    said = ours(tiny_base, chosen, prompts, tiny_adapter, 16)
    assert len(prompts) == 50 and said == theirs(load_base(tiny_source), chosen, prompts, tiny_adapter, 16)
    assert said[:50] != said[50:]


@pytest.mark.slow
@pytest.mark.long
def test_fifty_dolly_prompts_on_the_real_model(smollm2: Any, dolly_rows: Path, tmp_path: Path) -> None:
    chosen = template(load_tokenizer(smollm2))
    prompts, adapter = fifty(dolly_rows, chosen), make_adapter(smollm2, tmp_path / "adapter", seed=1)
    said = ours(load_base(smollm2), chosen, prompts, adapter, 24)
    assert len(prompts) == 50 and said == theirs(load_base(smollm2), chosen, prompts, adapter, 24)
    assert said[:50] != said[50:]
