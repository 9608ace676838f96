"""The 4-bit base and its adapter, on real NF4 weights."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from finetune.base import add_lora, load_base, target_names
from finetune.config import Lora
from finetune.data import Example, Row
from finetune.loss import headless, model_inputs, summed_loss, supervised_hidden
from finetune.packing import collate_packed

PACK = [
    Example(list(range(3, 60)), 10, Row("q", "", "a", "x")),
    Example(list(range(100, 140)), 5, Row("r", "", "b", "x")),
]


def linears(base: Any) -> dict[str, Any]:
    return {name: module for name, module in base.named_modules() if isinstance(module, bnb.nn.Linear4bit)}


def test_the_base_is_nf4_doubly_quantized_and_frozen(tiny_base: Any) -> None:
    found = linears(tiny_base)
    assert len(found) == 2 * 7
    for module in found.values():
        assert module.weight.quant_state.quant_type == "nf4" and module.weight.quant_state.nested
        assert module.weight.dtype == torch.uint8
    assert not any(parameter.requires_grad for parameter in tiny_base.parameters())


def test_all_linear_means_all_but_the_head(tiny_base: Any) -> None:
    names = target_names(tiny_base, Lora())
    assert names == list(linears(tiny_base)) and not any("lm_head" in name for name in names)


def test_an_unknown_target_names_the_known_ones(tiny_base: Any) -> None:
    with pytest.raises(ValueError, match="no layer 'query' to adapt; it has: down_proj, gate_proj, k_proj"):
        target_names(tiny_base, Lora(targets=("query",)))


def test_exact_count_of_trainable_parameters(tiny_trainable: Any) -> None:
    adapted = add_lora(tiny_trainable, Lora(r=4))
    # r * (in + out): q and o 64→64, k and v 64→32, gate and up 64→128, down 128→64; two layers
    expected = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 128) + (128 + 64))
    assert adapted.get_nb_trainable_parameters()[0] == expected
    assert all(p.dtype == torch.float32 for p in adapted.parameters() if p.requires_grad)


def gradients(adapted: Any, base: Any) -> dict[str, torch.Tensor]:
    adapted.train()
    adapted.zero_grad()
    with headless(base) as head:
        hidden, targets = supervised_hidden(adapted, collate_packed([PACK]))
        summed_loss(hidden, head, targets).backward()
    return {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}


def evaluate(adapted: Any) -> None:
    adapted.eval()
    batch = collate_packed([PACK])
    with torch.no_grad():
        adapted(**model_inputs(batch), use_cache=False)


def start(source: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    base = load_base(source, trainable=True)
    adapted = add_lora(base, Lora(r=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return base, adapted


def check_evaluation_leaves_gradients_alone(source: Any) -> None:
    base, adapted = start(source)
    before = gradients(adapted, base)
    evaluate(adapted)
    after = gradients(adapted, base)
    assert before and all(torch.equal(before[name], after[name]) for name in before)
    dense = {name: gradient for name, gradient in dense_gradients(source).items() if name in before}
    assert dense.keys() == before.keys()
    for name, gradient in before.items():
        scale = dense[name].abs().max().item()
        assert torch.allclose(
            gradient, dense[name], atol=max(1e-6, 0.02 * scale) if base.dtype != torch.float32 else 1e-4 * scale + 1e-7
        ), name


def dense_gradients(source: Any) -> dict[str, torch.Tensor]:
    """The same with every 4-bit layer replaced by a dense one of the dequantized weights."""
    base, adapted = start(source)
    for layer in [module for module in adapted.modules() if hasattr(module, "base_layer")]:
        quantized = layer.base_layer
        weight = bnb.functional.dequantize_4bit(quantized.weight.data, quantized.weight.quant_state).to(base.dtype)
        dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=base.dtype)
        dense.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.base_layer = dense
    return gradients(adapted, base)


def test_an_evaluation_leaves_the_gradients_alone(tiny_source: Any) -> None:
    check_evaluation_leaves_gradients_alone(tiny_source)


@pytest.mark.slow
def test_an_evaluation_leaves_the_gradients_of_the_real_model_alone(smollm2: Any) -> None:
    check_evaluation_leaves_gradients_alone(smollm2)
