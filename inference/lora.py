"""Adapters on a resident base: each row of a batch gets its own strength of each adapter, in one pass.

Only rows with a strength other than 0 are touched, so a base row is the bare base, bit for bit. Hooks live as long as
the `with` block, whatever is raised in it.
"""

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from torch import Tensor, nn

from inference import few_rows

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

    On a GPU a few rows of one token each, as in decoding, take kernels of their own (few_rows.py); all else, hooks.

    Raises:
        ValueError: an adapter has layers that the base has not.
    """
    device = next(base.parameters()).device
    parts = _parts(adapters, device)
    with ExitStack() as held:
        fast = few_rows.possible(base)
        terms = _terms(adapters, device) if fast else {}
        for name, those in parts.items():
            try:
                module = base.get_submodule(name)
            except AttributeError as error:
                raise ValueError(f"The adapter does not fit this base: it has no layer {name}.") from error
            hook = _adding(those, but_a_few=name in terms and isinstance(module, Linear4bit))
            held.callback(module.register_forward_hook(hook).remove)
        if fast:
            held.enter_context(few_rows.in_place(base, terms))
        yield parts, terms


def _parts(adapters: Sequence[Placed], device: torch.device) -> dict[str, list["_Part"]]:
    """What the hooks add, by the layers' names."""
    parts: dict[str, list[_Part]] = {}
    for adapter, strengths in adapters:
        rows = _rows(strengths)
        if rows is None:
            continue
        dtype = next(iter(adapter.values())).down.dtype
        scale = torch.tensor(strengths[rows], device=device, dtype=dtype)[:, None, None]  # [rows, 1, 1]
        for names in _groups(adapter):
            shared = _SharedDown([adapter[name] for name in names], rows, strengths[rows], scale)
            for index, name in enumerate(names):
                parts.setdefault(name, []).append(_Part(shared, index, adapter[name]))
    return parts


def _terms(adapters: Sequence[Placed], device: torch.device) -> dict[str, few_rows.Term]:
    """What the kernels for a few rows add, by the layers' names: all adapters of a layer as one."""
    groups: dict[str, dict[str, list[tuple[LowRank, list[float]]]]] = {}  # siblings → layer → its adapters
    for adapter, strengths in adapters:
        for names in _groups(adapter) if any(strengths) else ():
            for name in names:
                group = groups.setdefault(_input_of(name), {})
                group.setdefault(name, []).append((adapter[name], strengths))
    terms: dict[str, few_rows.Term] = {}
    factors: dict[Hashable, Tensor] = {}
    for layers in groups.values():
        every = [pair for pairs in layers.values() for pair in pairs]
        columns = tuple((len(lora.down), lora.scaling, tuple(strengths)) for lora, strengths in every)
        if columns not in factors:  # the same for all layers of a kind
            parts = [torch.tensor(each)[:, None].expand(-1, rank) * scaling for rank, scaling, each in columns]
            factors[columns] = torch.cat(parts, 1).to(device)
        low = few_rows.Low(_joined([lora.down for lora, _ in every]), factors[columns])
        start = 0
        for name, pairs in layers.items():
            ups = [lora.up for lora, _ in pairs]
            up = ups[0].contiguous() if len(ups) == 1 else torch.cat(ups, 1)  # [out, r…]
            terms[name] = few_rows.Term(low, slice(start, start + up.shape[1]), up, is_last=name == list(layers)[-1])
            start += up.shape[1]
    return terms


def _rows(strengths: Sequence[float]) -> slice | None:
    """The smallest evenly spaced slice that holds every row with a strength; None where there is no such row."""
    used = [row for row, strength in enumerate(strengths) if strength != 0]
    if not used:
        return None
    gaps = {after - before for before, after in pairwise(used)}
    return slice(used[0], used[-1] + 1, gaps.pop() if len(gaps) == 1 else 1)


def _groups(adapter: Adapter) -> list[list[str]]:
    """The adapter's layers, those that are fed the same tensor together, in the adapter's order."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, low_rank in adapter.items():
        groups.setdefault((_input_of(name), tuple(low_rank.down.shape[1:])), []).append(name)
    return list(groups.values())


def _input_of(name: str) -> str:
    """Equal for layers that are fed the same tensor."""
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{next((kinds[0] for kinds in SAME_INPUT if leaf in kinds), leaf)}"


class _SharedDown:
    """The down-projection of layers with the same input: computed at the first of them, kept until the last."""

    def __init__(self, layers: Sequence[LowRank], rows: slice, strengths: list[float], scale: Tensor) -> None:
        self.down = _joined([layer.down for layer in layers]).T  # [in, r…]
        self.ranks = [layer.down.shape[0] for layer in layers]
        self.rows = rows
        self.strength = strengths[0] if len(set(strengths)) == 1 else 1.0  # else each row's, on the small product:
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


def _adding(parts: Sequence[_Part], but_a_few: bool) -> Any:
    """`but_a_few`: whether a few rows of one token have their sums from elsewhere."""

    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (hidden,) = args  # [batch, time, in]
        if but_a_few and few_rows.takes(hidden):
            return output
        for part in parts:
            part.add_to(output, hidden)
        return output

    return hook
