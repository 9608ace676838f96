"""Decoding's products on a GPU: 4-bit weights times a few rows in one kernel, with what the adapters add.

A step of a chat reads every weight for a row or a few, so the weights' bytes should bound it. bitsandbytes' kernel
decodes a weight again for each row, and an adapter takes kernels of its own; here a weight is decoded once and what the
adapters add is part of the same sum (`few_rows.cu`). Weights and scales stay in fp32, where bitsandbytes rounds their
product. Compiled at the first use, in about a second, by NVRTC, which comes with torch.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

SOURCE = Path(__file__).with_suffix(".cu")
MOST_ROWS = 4
HALVES = (torch.bfloat16, torch.float16)
WARPS = 8  # a block, as in the source
NARROW = 2048  # outputs below which a warp has one, so that there are enough of them to fill a GPU
BLOCK, GROUP = 64, 256  # weights to a scale, scales to a scale of their own
# Parts of transformers' models that are known to compute: weight · x / sqrt(mean(x²) + variance_epsilon);
NORMS = ("LlamaRMSNorm", "MistralRMSNorm")
GATED, SILU = ("LlamaMLP", "MistralMLP"), ("SiLU", "SiLUActivation")  # down(silu(gate(x)) · up(x));
ROTARY, ROTATE = ("LlamaAttention", "MistralAttention"), "apply_rotary_pos_emb"  # x · cos + (-x₂, x₁) · sin


class Low:
    """The small products of layers that are fed the same tensor, computed at the first of them."""

    def __init__(self, down: Tensor, factors: Tensor) -> None:
        """
        Args:
            down: [r…, in], of all their adapters, in the base's precision.
            factors: [rows, r…] in fp32, strength and scaling of each row; 0 for rows without that adapter.
        """
        self.down, self.factors = down.contiguous(), factors.contiguous()
        self.product = torch.empty_like(self.factors)
        self._of: Tensor | None = None

    def compute(self, x: Tensor) -> None:
        """The products for `x` [rows, 1, in], if they are not there already."""
        if x is not self._of:  # held, so that no other tensor can be taken for it
            rank, inputs = self.down.shape
            given = [x.contiguous(), self.down, self.factors, self.product, inputs, rank]
            _launch(_kernel("low_rank", len(x), 1, x.dtype), rank, given)
            self._of = x

    def forget(self) -> None:
        """The next layers have another input."""
        self._of = None


class Term(NamedTuple):
    """What adapters add to one layer: its columns of `low`, times up [out, columns]ᵀ."""

    low: Low
    columns: slice
    up: Tensor
    is_last: bool
    """Of the layers that share `low`."""


def takes(hidden: Tensor) -> bool:
    """Whether hidden [batch, time, width] are a few rows of one token, in half precision."""
    return hidden.dtype in HALVES and hidden.shape[-2] == 1 and hidden.shape[0] <= MOST_ROWS


def possible(base: Any) -> bool:
    """Whether it works for that base: on an NVIDIA GPU, in half precision, with all weights as we load them."""
    if base not in _POSSIBLE:
        device = next(base.parameters()).device
        layers = [module for module in base.modules() if isinstance(module, Linear4bit)]
        on_gpu = device.type == "cuda" and not torch.version.hip and base.dtype in HALVES
        _POSSIBLE[base] = on_gpu and bool(layers) and all(map(_is_ours, layers)) and _compiles(base.dtype)
    return _POSSIBLE[base]


_POSSIBLE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # asked before every answer


def _is_ours(layer: Any) -> bool:
    state = layer.weight.quant_state
    return bool(
        state.quant_type == "nf4"
        and state.nested
        and (state.blocksize, state.state2.blocksize) == (BLOCK, GROUP)
        and layer.in_features % BLOCK == 0
    )


@contextmanager
def in_place(base: nn.Module, terms: Mapping[str, Term]) -> Iterator[None]:
    """Within it a few rows are computed so: 4-bit layers, with `terms` by their full names, and what else is known."""
    changed: list[Any] = []
    libraries: dict[Any, Any] = {}
    try:
        for name, module in base.named_modules():
            kind = type(module).__name__
            if isinstance(module, Linear4bit):
                module.forward = _linear(module, terms.get(name))
            elif kind in NORMS:
                module.forward = _norm(module)
            elif kind in GATED and type(module.act_fn).__name__ in SILU:
                module.forward = _gated(module)
            elif kind in ROTARY and (library := sys.modules[type(module).__module__]) not in libraries:
                libraries[library] = getattr(library, ROTATE)
                setattr(library, ROTATE, _rotary(libraries[library]))
                continue
            else:
                continue
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward
        for library, rotate in libraries.items():
            setattr(library, ROTATE, rotate)


def _linear(layer: Any, term: Term | None) -> Callable[[Tensor], Tensor]:
    as_written, state = layer.forward, layer.weight.quant_state
    outputs, inputs = layer.out_features, layer.in_features
    per_warp = 1 if outputs < NARROW else 2
    blocks = -(-outputs // (WARPS * per_warp))
    weights = [layer.weight, state.absmax, state.state2.code, state.state2.absmax, state.offset, state.code]

    def forward(x: Tensor) -> Tensor:
        if not takes(x):
            result: Tensor = as_written(x)
            return result
        if term:
            term.low.compute(x)
            low, up = term.low.product[:, term.columns], term.up
            rank, stride = up.shape[1], low.stride(0)
            if term.is_last:
                term.low.forget()
        else:  # nothing is read through these
            low = up = x
            rank = stride = 0
        out = x.new_empty(*x.shape[:-1], outputs)
        bias = x if layer.bias is None else layer.bias.to(x.dtype)
        sizes = [outputs, inputs, rank, stride, int(layer.bias is not None)]
        _launch(
            _kernel("product", len(x), per_warp, x.dtype),
            blocks,
            [x.contiguous(), *weights, low, up, bias, out, *sizes],
        )
        return out

    return forward


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    as_written, weight, epsilon = module.forward, module.weight, float(module.variance_epsilon)

    def forward(x: Tensor) -> Tensor:
        if not takes(x) or x.dtype != weight.dtype or x.shape[-1] % 8:
            result: Tensor = as_written(x)
            return result
        x = x.contiguous()
        out = torch.empty_like(x)
        _launch(_kernel("rms_norm", len(x), 1, x.dtype), len(x), [x, weight, out, x.shape[-1], epsilon])
        return out

    return forward


def _gated(module: Any) -> Callable[[Tensor], Tensor]:
    as_written = module.forward

    def forward(x: Tensor) -> Tensor:
        if not takes(x):
            result: Tensor = as_written(x)
            return result
        gate, up = module.gate_proj(x), module.up_proj(x)
        out, count = torch.empty_like(gate), gate.numel()
        _launch(_kernel("silu_times", 1, 1, x.dtype), -(-count // (32 * WARPS)), [gate, up, out, count])
        down: Tensor = module.down_proj(out)
        return down

    return forward


def _rotary(as_written: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> Any:
        rows, heads, tokens, width = queries.shape
        if tokens != 1 or rows > MOST_ROWS or others or named or not queries.dtype == cos.dtype in HALVES:
            return as_written(queries, keys, cos, sin, *others, **named)
        # [rows, heads, 1, width] seen through a transposition lies as [rows, heads, width]
        given = [each.transpose(1, 2).contiguous() for each in (queries, keys)]
        turned = [torch.empty_like(each) for each in given]
        tables = [table.expand(rows, 1, width).contiguous() for table in (cos, sin)]
        sizes = [heads, keys.shape[1], width]
        _launch(_kernel("rotary", 1, 1, queries.dtype), rows * sum(sizes[:2]), [*given, *tables, *turned, *sizes])
        return tuple(each.transpose(1, 2) for each in turned)

    return rotate


def _launch(kernel: Any, blocks: int, arguments: list[Any]) -> None:
    kernel(grid=(blocks, 1, 1), block=(32 * WARPS, 1, 1), args=arguments)


@cache
def _kernel(name: str, rows: int, per_warp: int, dtype: torch.dtype) -> Any:
    """A kernel of the source for that many rows. Raises where it can't be compiled here."""
    given = {"ROWS": rows, "PER_WARP": per_warp} | ({"HALF": 1} if dtype == torch.float16 else {})
    lines = "".join(f"#define {name} {value}\n" for name, value in given.items())
    return torch.cuda._compile_kernel(lines + SOURCE.read_text(), name)


@cache
def _compiles(dtype: torch.dtype) -> bool:
    """Whether torch can compile it: the call is young and not yet a public one."""
    try:
        _kernel("product", 1, 2, dtype)
    except Exception:  # of whatever kind: the layers as they are written do the same, only slower
        return False
    return True
