"""The growing cache holds what transformers' own holds, bit for bit, and writes it in place."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from inference.cache import BLOCK, GrowingLayer, growing_cache


def test_it_holds_what_a_concatenated_one_holds() -> None:
    torch.manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()
    places = set()
    for time in (5, 1, 1, BLOCK - 7, 1, 1, 2 * BLOCK, 1):
        keys, values = torch.randn(2, 3, time, 4), torch.randn(2, 3, time, 4)
        for mine, expected in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, expected)
        places.add((ours.keys.data_ptr(), ours.values.data_ptr()))
    assert len(places) == 3  # one at first, one for a block more, one for many
    for layer in (ours, theirs):
        layer.crop(-9)
    place = ours.keys.data_ptr()
    more = torch.randn(2, 3, 2, 4)
    assert torch.equal(ours.update(more, more)[0], theirs.update(more, more)[0]) and ours.keys.data_ptr() == place
    assert ours.get_seq_length() == theirs.get_seq_length()
    # A copy, as the captured step gives it back, has no room behind it.
    ours.keys, ours.values = ours.keys.clone(), ours.values.clone()
    assert torch.equal(ours.update(more, more)[0], theirs.update(more, more)[0])
    one = GrowingLayer()
    for _ in range(3):
        one.update(more[:1, :1], more[:1, :1])
    assert torch.equal(one.keys, torch.cat([more[:1, :1]] * 3, dim=2))


@torch.inference_mode()
def test_a_model_says_the_same_with_it(tiny_base: Any) -> None:
    ids = torch.randint(3, 900, (2, 70), device=tiny_base.device)
    ours, theirs = growing_cache(tiny_base), DynamicCache(config=tiny_base.config)
    begun = 0
    for end in (29, 30, 31, 40, 69, 70):
        logits = [
            tiny_base(input_ids=ids[:, begun:end], past_key_values=cache, use_cache=True).logits
            for cache in (ours, theirs)
        ]
        assert torch.equal(*logits)
        begun = end


def test_sliding_windows_stay_as_they_are() -> None:
    from types import SimpleNamespace

    from transformers import MistralConfig

    config = MistralConfig(num_hidden_layers=2, sliding_window=8)
    layers = growing_cache(SimpleNamespace(config=config)).layers
    assert layers and all(type(layer) is DynamicSlidingWindowLayer for layer in layers)
