from typing import Any

import torch

from finetune.data import Example, Row
from finetune.packing import collate_packed, pack

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
    batch = {name: tensor.tolist() for name, tensor in collate_packed([[first, second]]).items()}
    assert batch == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[-100, 6, 7, -100, 9]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "cu_seq_lens_q": [0, 3, 5],
    }


def test_packed_logits_equal_those_of_each_example_alone(tiny_trainable: Any, tiny_base: Any) -> None:
    given = examples(31, 12, 40)
    batch = collate_packed([given])
    with torch.no_grad():
        packed = tiny_trainable(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[0]
        start = 0
        for example in given:
            alone = tiny_base(torch.tensor([example.ids])).logits[0]
            together = packed[start : start + len(example.ids)]
            assert torch.allclose(together, alone, atol=1e-4, rtol=1e-4)
            start += len(example.ids)


def test_no_token_sees_another_example(tiny_trainable: Any) -> None:
    one, two = examples(20, 20)
    changed = two._replace(ids=list(reversed(two.ids)))

    def logits(*pack: Example) -> torch.Tensor:
        batch = collate_packed([list(pack)])
        found: torch.Tensor = tiny_trainable(
            **{k: v for k, v in batch.items() if k != "labels"}, use_cache=False
        ).logits[0]
        return found

    with torch.no_grad():
        assert torch.equal(logits(one, two)[:20], logits(one, changed)[:20])
        assert torch.equal(logits(two, one)[20:], logits(changed, one)[20:])
