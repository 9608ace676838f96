"""Attention for packed rows: each example attends to itself alone, and no [tokens, tokens] mask is ever made.

transformers' own way (a block-diagonal mask from position ids) computes every pair of a pack and throws most away:
on packs of 1,024 tokens that was a third of the time of a training step on a CPU. A GPU has a kernel for it; elsewhere
the examples of a pack go one by one through torch's ordinary attention.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "packed"
# From torch 2.12 on, fewer key heads than query heads must be asked for; before, the kernel takes them as they are.
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen.varlen_attn).parameters else {}


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each example of a pack.

    Args:
        query: [1, heads, tokens, width]; key and value: [1, key heads, tokens, width].
        cu_seq_lens_q: [examples + 1], where each example starts, and the end; int32.
        max_length_q: no example is longer.

    Returns:
        [1, tokens, heads, width], and None for the attention weights that are never kept.
    """
    assert attention_mask is None
    if has_kernel(query):
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [tokens, heads, width]
        ends = cu_seq_lens_q
        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), **GROUPED}  # (-1, 0): causal
        out = varlen.varlen_attn(q, k, v, ends, ends, max_length_q, max_length_q, **options)
        assert isinstance(out, Tensor)
        return out[None], None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = cu_seq_lens_q.diff().tolist()
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def has_kernel(query: Tensor) -> bool:
    """Whether torch's variable-length attention takes it: half precision on a GPU of Ampere's generation or later."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def register() -> str:
    """Make the attention known to transformers under its name, which is returned. Doing it twice is doing it once."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME
