from typing import Any

import pytest
import torch
from conftest import beside

from finetune import loss
from finetune.data import Example, Row
from finetune.loss import headless, model_inputs, summed_loss, supervised_hidden, token_losses
from finetune.packing import collate_packed

ROW = Row("q", "", "a", "open_qa")


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_value_and_gradient_equal_eager_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk * 50)
    torch.manual_seed(0)
    hidden, weight = torch.randn(33, 16, requires_grad=True), torch.randn(50, 16)
    targets = torch.randint(0, 50, (33,))
    eager = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(eager, hidden)
    ours = summed_loss(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(ours * 0.5, hidden)
    assert torch.allclose(ours, eager, rtol=1e-5)
    assert torch.allclose(gradient, expected * 0.5, atol=1e-5)
    assert torch.allclose(token_losses(hidden, weight, targets).sum(), eager, rtol=1e-5)


def test_it_is_the_models_own_loss(tiny_trainable: Any) -> None:
    pack = [Example([5, 6, 7, 8, 9], 2, ROW), Example([10, 11, 12], 1, ROW)]
    batch = beside(tiny_trainable, collate_packed([pack]))
    inputs = model_inputs(batch)
    with torch.no_grad():
        logits = tiny_trainable(**inputs, use_cache=False).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=-100, reduction="sum")
        with headless(tiny_trainable) as head:
            hidden, targets = supervised_hidden(tiny_trainable, batch)
        assert targets.tolist() == [7, 8, 9, 11, 12]
        assert torch.allclose(summed_loss(hidden, head, targets), expected, rtol=1e-5)


def test_the_head_is_back_after_an_error(tiny_base: Any) -> None:
    head = tiny_base.get_output_embeddings()
    with pytest.raises(RuntimeError), headless(tiny_base):
        raise RuntimeError
    assert tiny_base.get_output_embeddings() is head


def test_a_model_that_caps_its_logits_is_refused(tiny_base: Any) -> None:
    tiny_base.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="not supported yet"), headless(tiny_base):
        pass
