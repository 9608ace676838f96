"""Adapters on a resident base: each row of a batch gets its own strength of each adapter, in one pass.

Only rows with a strength other than 0 are touched, so a base row is the bare base, bit for bit. Hooks live as long as
the `with` block, whatever is raised in it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PREFIX = "base_model.model."


class LowRank(NamedTuple):
    """A layer's adapter: down [r, in], up [out, r] and the factor alpha / r on their product."""

    down: Tensor
    up: Tensor
    scaling: float


Adapter = dict[str, LowRank]  # by the layer's full name


class Placed(NamedTuple):
    """An adapter and its strength on each row of the batch, [rows]."""

    adapter: Adapter
    strengths: list[float]


def load_adapter(folder: Path, base: Any) -> Adapter:
    """An adapter in PEFT's format, beside `base`: on a GPU in the base's precision, for speed; on a CPU as PEFT has it.

    Raises:
        ValueError: it is not there, not whole, or of a kind that does not fit in a shared batch.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except Exception as error:  # safetensors has no common class for the ways in which a file can be broken
        raise ValueError(f"The adapter in {folder} is not there or not whole: {error}.") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise ValueError(f"The adapter in {folder} is no plain LoRA, and only those can share a batch with the base.")
    device = next(base.parameters()).device
    dtype = base.dtype if device.type == "cuda" else torch.float32
    adapter = {}
    for key, down in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        up = tensors[key.replace(".lora_A.", ".lora_B.")]
        rank = down.shape[0]
        scaling = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        adapter[name] = LowRank(down.to(device, dtype), up.to(device, dtype), scaling)
    if not adapter:
        raise ValueError(f"The adapter in {folder} holds no LoRA weights.")
    return adapter


@contextmanager
def placed(base: nn.Module, adapters: Sequence[Placed]) -> Iterator[None]:
    """Within it `base` answers with those adapters on its rows.

    Raises:
        ValueError: an adapter has layers that the base has not.
    """
    terms: dict[str, list[tuple[LowRank, Tensor, slice]]] = {}
    device = next(base.parameters()).device
    for adapter, strengths in adapters:
        used = [row for row, strength in enumerate(strengths) if strength != 0]
        if not used:
            continue
        rows = slice(used[0], used[-1] + 1)
        scale = torch.tensor(strengths[rows], device=device)[:, None, None]  # [rows, 1, 1]
        for name, low_rank in adapter.items():
            terms.setdefault(name, []).append((low_rank, scale * low_rank.scaling, rows))
    handles = []
    try:
        for name, parts in terms.items():
            try:
                module = base.get_submodule(name)
            except AttributeError as error:
                raise ValueError(f"The adapter does not fit this base: it has no layer {name}.") from error
            handles.append(module.register_forward_hook(_adding(parts)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(parts: list[tuple[LowRank, Tensor, slice]]) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (hidden,) = args  # [rows, time, in]
        for low_rank, scale, rows in parts:
            term = hidden[rows].to(low_rank.down.dtype) @ low_rank.down.T @ low_rank.up.T
            output[rows] += (term * scale).to(output.dtype)
        return output

    return hook
