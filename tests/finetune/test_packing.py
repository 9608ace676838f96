from typing import Any

import torch
from conftest import beside

from finetune.data import Example, Row
from finetune.loss import headless, model_inputs, summed_loss, supervised_hidden
from finetune.packing import Fixed, collate_packed, pack

ROW = Row("q", "", "a", "open_qa")


def examples(*lengths: int) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    return [Example(torch.randint(3, 900, (n,), generator=generator).tolist(), n // 2, ROW) for n in lengths]


def test_every_example_is_packed_once_and_budgets_hold() -> None:
    given = examples(*range(5, 100))
    packs = pack(given, 128)
    assert sorted(e.ids for p in packs for e in p) == sorted(e.ids for e in given)
    sizes = [sum(len(e.ids) for e in p) for p in packs]
    assert max(sizes) <= 128
    assert len(packs) == -(-sum(sizes) // 128)  # best-fit decreasing finds the fewest packs there can be, here


def test_the_collated_pack_by_hand() -> None:
    first, second = Example([5, 6, 7], 1, ROW), Example([8, 9], 1, ROW)
    collated = collate_packed([[first, second]])
    assert (collated.pop("max_length_q"), collated.pop("real_tokens")) == (3, 5)
    batch = {name: tensor.tolist() for name, tensor in collated.items()}
    assert batch == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[-100, 6, 7, -100, 9]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "cu_seq_lens_q": [0, 3, 5],
    }


def test_a_pack_of_fixed_shape_by_hand() -> None:
    first, second, third = Example([5, 6, 7], 1, ROW), Example([8, 9], 1, ROW), Example([4, 4, 4, 4], 2, ROW)
    packs = [[first, second], [third]]
    fixed = Fixed.of(packs, 8)
    assert fixed == (8, 3, 4)  # room for a filling example in the pack of two; the third is the longest
    batch = collate_packed([packs[0]], fixed)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 8]
    assert (batch["max_length_q"], batch["real_tokens"]) == (4, 5)
    assert collate_packed([packs[1]], fixed)["cu_seq_lens_q"].tolist() == [0, 4, 8, 8]


def test_filling_changes_no_loss(tiny_trainable: Any) -> None:
    given = examples(31, 12, 40)
    with torch.no_grad(), headless(tiny_trainable) as head:
        losses = []
        for fixed in (None, Fixed(128, 6, 45)):
            hidden, targets = supervised_hidden(tiny_trainable, beside(tiny_trainable, collate_packed([given], fixed)))
            losses.append(summed_loss(hidden, head, targets))
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)


def test_packed_logits_equal_those_of_each_example_alone(tiny_trainable: Any, tiny_base: Any) -> None:
    given = examples(31, 12, 40)
    batch = collate_packed([given])
    with torch.no_grad():
        packed = tiny_trainable(**model_inputs(beside(tiny_trainable, batch)), use_cache=False).logits[0]
        start = 0
        for example in given:
            alone = tiny_base(torch.tensor([example.ids], device=tiny_base.device)).logits[0]
            together = packed[start : start + len(example.ids)]
            assert torch.allclose(together, alone, atol=1e-4, rtol=1e-4)
            start += len(example.ids)


def test_no_token_sees_another_example(tiny_trainable: Any) -> None:
    one, two = examples(20, 20)
    changed = two._replace(ids=list(reversed(two.ids)))

    def logits(*pack: Example) -> torch.Tensor:
        batch = collate_packed([list(pack)])
        found: torch.Tensor = tiny_trainable(**model_inputs(beside(tiny_trainable, batch)), use_cache=False).logits[0]
        return found

    with torch.no_grad():
        assert torch.equal(logits(one, two)[:20], logits(one, changed)[:20])
        assert torch.equal(logits(two, one)[20:], logits(changed, one)[20:])
