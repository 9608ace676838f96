"""The kernels for a few rows, against the products that they stand for; on a GPU alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from finetune.base import load_base
from inference import few_rows
from inference.lora import LowRank, Placed, load_adapter, placed

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def half_base(tiny_source: Any) -> Any:
    return load_base(tiny_source, torch.bfloat16)


def test_a_cpu_computes_as_before(tiny_base: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert not few_rows.possible(tiny_base)
    with placed(tiny_base, []):
        assert "forward" not in vars(tiny_base.get_submodule("model.layers.0.self_attn.q_proj"))


class Layers(nn.Module):
    """Two that are fed the same tensor, and one beside them."""

    def __init__(self, inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(inputs + outputs)
        self.dtype = dtype
        for name in ("q_proj", "k_proj", "o_proj"):
            layer = Linear4bit(inputs, outputs, bias=bias, compute_dtype=dtype, quant_type="nf4", device="meta")
            weight = torch.randn(outputs, inputs, dtype=dtype, device="cuda") * 0.05
            layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4").to("cuda")
            if bias:
                layer.bias = nn.Parameter(torch.randn(outputs, dtype=dtype, device="cuda"))
            self.add_module(name, layer)

    def exact(self, name: str, x: Tensor) -> Tensor:
        layer: Any = self.get_submodule(name)
        state = layer.weight.quant_state
        weight = dequantize_4bit(layer.weight.data, state).double()
        out: Tensor = x.double() @ weight.T
        return out if layer.bias is None else torch.add(out, layer.bias.double())


def adapter(inputs: int, outputs: int, rank: int, seed: int, *names: str) -> dict[str, LowRank]:
    torch.manual_seed(seed)
    made = {}
    for name in names:
        down, up = torch.randn(rank, inputs) / inputs**0.5, torch.randn(outputs, rank) * 0.1
        made[name] = LowRank(down.cuda().to(torch.bfloat16), up.cuda().to(torch.bfloat16), 2.0)
    return made


def added(lora: LowRank, x: Tensor, strength: float) -> Tensor:
    return (x.double() @ lora.down.double().T) @ lora.up.double().T * (lora.scaling * strength)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 24), (576, 1536), (4096, 2050), (14336, 512)])
class TestProducts:
    pytestmark = gpu

    def test_are_those_of_the_weights(self, rows: int, inputs: int, outputs: int) -> None:
        """And closer to them than bitsandbytes' own, which rounds each weight."""
        layers = Layers(inputs, outputs, False, torch.bfloat16)
        x = torch.randn(rows, 1, inputs, device="cuda").bfloat16()
        exact = layers.exact("q_proj", x)
        theirs = layers.q_proj(x)  # type: ignore[operator]
        with placed(layers, []):
            ours = layers.q_proj(x)  # type: ignore[operator]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        error, other = ((out.double() - exact).norm() / exact.norm() for out in (ours, theirs))
        assert error < 0.003 and error < 1.2 * other

    def test_with_adapters_rows_are_their_own(self, rows: int, inputs: int, outputs: int) -> None:
        """Two adapters that differ in layers, rank and strengths; a row without any is the bare one bit for bit."""
        layers = Layers(inputs, outputs, False, torch.bfloat16)
        first = adapter(inputs, outputs, 16, 1, "q_proj", "k_proj", "o_proj")
        second = adapter(inputs, outputs, 40, 2, "k_proj")
        strengths = [[0.0, 1.0, 0.5, 0.0][:rows], [0.0, 0.0, 0.7, 1.5][:rows]]
        x = torch.randn(rows, 1, inputs, device="cuda").bfloat16()
        with placed(layers, []):
            bare = {name: layer(x) for name, layer in layers.named_children()}
        with placed(layers, [Placed(first, strengths[0]), Placed(second, strengths[1])]):
            for _ in range(2):  # the small products of the first time are not taken for those of the second
                x = x.neg()
                for name, layer in layers.named_children():
                    exact = layers.exact(name, x)
                    for low_ranks, each in ((first, strengths[0]), (second, strengths[1])):
                        for row, strength in enumerate(each):
                            if name in low_ranks:
                                exact[row] += added(low_ranks[name], x[row], strength)
                    out = layer(x)
                    assert (out.double() - exact).norm() / exact.norm() < 0.003
                    assert torch.equal(out[0], -bare[name][0]) or torch.equal(out[0], bare[name][0])


class TestOthers:
    pytestmark = gpu

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_bias_and_half_precision(self, dtype: torch.dtype) -> None:
        layers = Layers(576, 100, True, dtype)
        x = torch.randn(2, 1, 576, device="cuda", dtype=dtype)
        exact = layers.exact("q_proj", x)
        with placed(layers, []):
            out = layers.q_proj(x)  # type: ignore[operator]
        assert out.dtype == dtype
        assert (out.double() - exact).norm() / exact.norm() < (0.003 if dtype == torch.bfloat16 else 0.0006)

    def test_more_rows_or_tokens_are_computed_as_written(self) -> None:
        layers = Layers(576, 100, False, torch.bfloat16)
        lora = adapter(576, 100, 8, 1, "q_proj")
        for shape in ((5, 1), (2, 2)):
            x = torch.randn(*shape, 576, device="cuda").bfloat16()
            with placed(layers, [Placed(lora, [1.0] * shape[0])]):
                out = layers.q_proj(x)  # type: ignore[operator]
            exact = layers.exact("q_proj", x) + added(lora["q_proj"], x, 1.0)
            assert (out.double() - exact).norm() / exact.norm() < 0.01

    def test_the_parts_beside_them_are_those_of_transformers(self, half_base: Any) -> None:
        layer = half_base.model.layers[0]
        width = layer.input_layernorm.weight.shape[0]
        x = torch.randn(3, 1, width, device="cuda").bfloat16()
        for part in (layer.input_layernorm, layer.mlp):
            theirs = part(x).double()
            with placed(half_base, []):
                assert "forward" in vars(part)
                ours = part(x).double()
            assert "forward" not in vars(part)
            assert (ours - theirs).norm() / theirs.norm() < 0.01
        shape, angles = (3, 1, 4, 16), torch.rand(3, 1, 16, device="cuda")
        heads = [torch.randn(shape, device="cuda").bfloat16().transpose(1, 2) for _ in range(2)]
        tables = [angles.cos().bfloat16(), angles.sin().bfloat16()]
        exact = modeling_llama.apply_rotary_pos_emb(*[t.double() for t in heads], *[t.double() for t in tables])
        before = modeling_llama.apply_rotary_pos_emb
        with placed(half_base, []):
            assert modeling_llama.apply_rotary_pos_emb is not before
            turned = modeling_llama.apply_rotary_pos_emb(*heads, *tables)
        assert modeling_llama.apply_rotary_pos_emb is before
        for mine, true, given in zip(turned, exact, heads, strict=True):
            assert mine.shape == given.shape and (mine.double() - true).norm() / true.norm() < 0.004

    def test_the_model_says_the_same_but_for_rounding(self, half_base: Any, tiny_adapter: Path) -> None:
        ids = torch.randint(5, 100, (2, 1), device="cuda")
        adapters = [Placed(load_adapter(tiny_adapter, half_base), [0.0, 1.0])]
        with placed(half_base, adapters):
            ours = half_base(ids).logits.float()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(few_rows, "possible", lambda _: False)
            with placed(half_base, adapters):
                theirs = half_base(ids).logits.float()
        assert not torch.equal(ours, theirs)  # it was computed otherwise
        assert (ours - theirs).norm() / theirs.norm() < 0.02
