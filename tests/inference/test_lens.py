"""The lens against a plain forward that holds all its logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inference.lens import cross, look
from inference.lora import Placed, load_adapter, placed

PROMPT, TEXT = list(range(3, 20)), list(range(40, 90))


class WidestLogits(TorchDispatchMode):
    """Remembers the most elements that any result with a vocabulary as its last dimension had."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape[-1:] == (self.vocabulary,):
            self.most = max(self.most, out.numel())
        return out


def test_the_lens_says_what_a_plain_forward_says(tiny_base: Any, tiny_adapter: Path) -> None:
    adapters = [Placed(load_adapter(tiny_adapter, tiny_base), [0.0, 1.0, 0.5])]
    lens = look(tiny_base, PROMPT, TEXT, adapters, 3, chunk_logits=20_000)
    with torch.no_grad(), placed(tiny_base, adapters):
        ids = torch.tensor([PROMPT + TEXT] * 3, device=tiny_base.device)
        logits = tiny_base(ids).logits[:, len(PROMPT) - 1 : -1].float().cpu()
    log_q = logits.log_softmax(-1)
    expected = log_q.gather(2, torch.tensor(TEXT).expand(3, -1)[..., None])[..., 0]
    torch.testing.assert_close(torch.tensor(lens.log_p), expected, atol=1e-4, rtol=1e-4)
    kl = torch.nn.functional.kl_div(log_q, log_q[:1].expand_as(log_q), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(torch.tensor(lens.kl), kl.clamp(min=0), atol=1e-4, rtol=1e-3)
    assert max(lens.kl[0]) == 0 and max(lens.kl[1]) > 0.01
    tops = logits.argmax(-1)
    for column in (1, 2):
        differs = (tops[column] != tops[0]).nonzero()
        assert lens.divergence[column] == (differs[0].item() if len(differs) else None)
    assert lens.divergence[0] is None and lens.divergence[1] is not None


def test_a_long_text_never_holds_all_its_logits(tiny_base: Any, tiny_adapter: Path) -> None:
    adapters = [Placed(load_adapter(tiny_adapter, tiny_base), [0.0, 1.0])]
    text = [3 + i % 900 for i in range(4096)]
    vocabulary = tiny_base.get_output_embeddings().weight.shape[0]
    budget = 64 * 2 * vocabulary  # 64 positions of two columns
    with WidestLogits(vocabulary) as seen:
        lens = look(tiny_base, PROMPT, text, adapters, 2, chunk_logits=budget)
    assert 0 < seen.most <= budget < 2 * len(text) * vocabulary / 50
    assert len(lens.log_p[1]) == len(lens.kl[1]) == 4096


def test_each_answer_under_each_model(tiny_base: Any, tiny_adapter: Path) -> None:
    """Each model finds its own greedy answer likelier than the other model does; a reference is one more row."""
    adapter = load_adapter(tiny_adapter, tiny_base)
    answers = []
    for strength in (0.0, 1.0):
        with torch.no_grad(), placed(tiny_base, [Placed(adapter, [strength])]):
            ids = list(PROMPT)
            for _ in range(12):
                ids.append(int(tiny_base(torch.tensor([ids], device=tiny_base.device)).logits[0, -1].argmax()))
        answers.append(ids[len(PROMPT) :])
    table = cross(tiny_base, [PROMPT] * 4, [*answers, TEXT, []], [Placed(adapter, [0.0, 1.0])], 2)
    assert table[0][0].mean > table[0][1].mean and table[1][1].mean > table[1][0].mean
    assert [score.tokens for row in table for score in row] == [12, 12, 12, 12, 50, 50, 0, 0]


def test_without_a_text_it_is_one_sentence(tiny_base: Any) -> None:
    with pytest.raises(ValueError, match="needs a prompt and a text"):
        look(tiny_base, PROMPT, [], [], 1)
    assert not any(module._forward_hooks for module in tiny_base.modules())
