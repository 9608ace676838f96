"""Adapters on a resident base: each row of a batch gets its own strength of each adapter, in one pass.

Only rows with a strength other than 0 are touched, so a base row is the bare base, bit for bit. Hooks live as long as
the `with` block, whatever is raised in it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PREFIX = "base_model.model."
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # siblings that are fed the same tensor


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


def read_config(folder: Path) -> dict[str, Any]:
    """An adapter's settings as PEFT keeps them. Raises ValueError if they are not there or broken."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"The adapter in {folder} is not there or not whole: {error}.") from error
    return config


def load_adapter(folder: Path, base: Any) -> Adapter:
    """An adapter in PEFT's format, beside `base`: on a GPU in the base's precision, for speed; on a CPU as PEFT has it.

    Raises:
        ValueError: it is not there, not whole, or of a kind that does not fit in a shared batch.
    """
    config = read_config(folder)
    try:
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
        # A copy, so that the file's pages, which safetensors maps into memory, are let go.
        adapter[name] = LowRank(down.to(device, dtype), up.to(device, dtype, copy=True), scaling)
    if not adapter:
        raise ValueError(f"The adapter in {folder} holds no LoRA weights.")
    return _side_by_side(adapter)


def _side_by_side(adapter: Adapter) -> Adapter:
    """The same adapter with the downs of layers that share their input as views of one tensor [r…, in]."""
    laid = dict(adapter)
    for names in _groups(adapter):
        joined = torch.cat([adapter[name].down for name in names])
        downs = joined.split([adapter[name].down.shape[0] for name in names])
        laid |= {name: adapter[name]._replace(down=down) for name, down in zip(names, downs, strict=True)}
    return laid


def _joined(downs: Sequence[Tensor]) -> Tensor:
    """The downs as one tensor [r…, in]: without a copy where they lie side by side."""
    whole = downs[0]._base
    if whole is not None and len(whole) == sum(map(len, downs)) and all(down._base is whole for down in downs):
        return whole
    return torch.cat(list(downs))


@contextmanager
def placed(base: nn.Module, adapters: Sequence[Placed]) -> Iterator[object]:
    """Within it `base` answers with those adapters on its rows; yields what holds the tensors that they are made of.

    Raises:
        ValueError: an adapter has layers that the base has not.
    """
    device = next(base.parameters()).device
    parts: dict[str, list[_Part]] = {}
    for adapter, strengths in adapters:
        rows = _rows(strengths)
        if rows is None:
            continue
        for names in _groups(adapter):
            shared = _SharedDown([adapter[name] for name in names], rows, strengths[rows], device)
            for index, name in enumerate(names):
                parts.setdefault(name, []).append(_Part(shared, index, adapter[name]))
    handles = []
    try:
        for name, terms in parts.items():
            try:
                module = base.get_submodule(name)
            except AttributeError as error:
                raise ValueError(f"The adapter does not fit this base: it has no layer {name}.") from error
            handles.append(module.register_forward_hook(_adding(terms)))
        yield parts
    finally:
        for handle in handles:
            handle.remove()


def _rows(strengths: Sequence[float]) -> slice | None:
    """The smallest evenly spaced slice that holds every row with a strength; None where there is no such row."""
    used = [row for row, strength in enumerate(strengths) if strength != 0]
    if not used:
        return None
    gaps = {after - before for before, after in pairwise(used)}
    return slice(used[0], used[-1] + 1, gaps.pop() if len(gaps) == 1 else 1)


def _groups(adapter: Adapter) -> list[list[str]]:
    """The adapter's layers, those that are fed the same tensor together, in the adapter's order."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for name, low_rank in adapter.items():
        parent, _, leaf = name.rpartition(".")
        kind = next((kinds[0] for kinds in SAME_INPUT if leaf in kinds), leaf)
        groups.setdefault((parent, kind, tuple(low_rank.down.shape[1:])), []).append(name)
    return list(groups.values())


class _SharedDown:
    """The down-projection of layers with the same input: computed at the first of them, kept until the last."""

    def __init__(self, layers: Sequence[LowRank], rows: slice, strengths: list[float], device: torch.device) -> None:
        self.down = _joined([layer.down for layer in layers]).T  # [in, r…]
        self.ranks = [layer.down.shape[0] for layer in layers]
        self.rows = rows
        self.strength = strengths[0] if len(set(strengths)) == 1 else 1.0  # else each row's, on the small product:
        scale = torch.tensor(strengths, device=device, dtype=self.down.dtype)[:, None, None]  # [rows, 1, 1]
        self.scale = scale if len(set(strengths)) > 1 else None
        self.hidden: Tensor | None = None
        self.products: list[Tensor] = []

    def product(self, index: int, hidden: Tensor) -> Tensor:
        """[rows, time, r] of layer `index` for its input [batch, time, in]."""
        if hidden is not self.hidden:  # held, so that no other tensor can be taken for it
            product = hidden[self.rows].to(self.down.dtype) @ self.down
            if self.scale is not None:
                product = product * self.scale
            self.hidden, self.products = hidden, list(product.split(self.ranks, -1))
        found = self.products[index]
        if index == len(self.ranks) - 1:
            self.hidden, self.products = None, []
        return found


class _Part:
    """What one adapter adds to one layer."""

    def __init__(self, shared: _SharedDown, index: int, low_rank: LowRank) -> None:
        self.shared, self.index = shared, index
        self.up = low_rank.up.T  # [r, out]
        self.factor = low_rank.scaling * shared.strength

    def add_to(self, output: Tensor, hidden: Tensor) -> None:
        """output [batch, time, out], in place, on the adapter's rows alone."""
        product = self.shared.product(self.index, hidden)
        mine = output[self.shared.rows]
        if mine.dtype == product.dtype and mine.is_contiguous():
            mine.view(-1, mine.shape[-1]).addmm_(product.flatten(0, -2), self.up, alpha=self.factor)
        else:
            mine += ((product @ self.up) * self.factor).to(mine.dtype)


def _adding(parts: Sequence[_Part]) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (hidden,) = args  # [batch, time, in]
        for part in parts:
            part.add_to(output, hidden)
        return output

    return hook
