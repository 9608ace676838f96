"""Each column's greedy text is that of transformers' `generate` with the adapter on or off, over 50 Dolly prompts."""

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from finetune.base import load_base
from finetune.data import Row, load_rows
from finetune.prompt import Turn, template
from inference.decode import decode, pad_left
from inference.lora import Placed, load_adapter
from inference.sampling import Sampling


def history(row: Row, before: Row, multi_turn: bool) -> list[Turn]:
    asked = Turn(row.instruction, row.context[:300])
    return [Turn(before.instruction, "", before.response[:200]), asked] if multi_turn else [asked]


def test_fifty_dolly_prompts(
    tiny_source: Any, tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path, dolly_rows: Path
) -> None:
    from peft import PeftModel

    chosen = template(tiny_tokenizer)
    rows = load_rows(str(dolly_rows)).rows[:51]
    turns = [history(row, before, n % 2 == 1) for n, (before, row) in enumerate(pairwise(rows))]
    prompts = [chosen.encode_prompt(talk) for talk in turns]
    strengths = [0.0] * 50 + [1.0] * 50
    adapter = load_adapter(tiny_adapter, tiny_base)
    *_, ours = decode(tiny_base, chosen, prompts * 2, [Placed(adapter, strengths)], Sampling(), 16)

    peft = PeftModel.from_pretrained(load_base(tiny_source), tiny_adapter).eval()
    ids, mask = pad_left(prompts, tiny_tokenizer.pad_token_id, torch.device("cpu"))
    texts: list[str] = []
    for context in (peft.disable_adapter(), nullcontext()):
        with context:
            said = peft.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=sorted(chosen.stop_ids),
                pad_token_id=tiny_tokenizer.pad_token_id,
            )
        texts += [t.strip() for t in tiny_tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)]
    assert len(prompts) == 50 and [answer.text for answer in ours] == texts
    assert texts[:50] != texts[50:]
