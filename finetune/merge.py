"""An adapter into full weights, shard by shard: a standalone model that plain transformers loads.

The sum is taken in fp32, onto the base's own weights ("bf16", as they are stored) or onto the 4-bit ones that the
adapter was trained against, dequantized ("nf4"). Which is the more faithful is measured: finetune/certificate.py.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import model
from finetune.base import compute_dtype, device, load_tokenizer
from finetune.config import from_mapping
from finetune.memory import gib
from finetune.model import Source, converted
from finetune.prompt import Template, template
from finetune.run import Run
from finetune.shapes import read_shapes
from finetune.whole import is_whole

Onto = Literal["bf16", "nf4"]
ONTO: tuple[Onto, ...] = ("bf16", "nf4")
PREFIX = "base_model.model."
DISK_MARGIN = 256 * 2**20  # bytes that stay free beside the merged model
BLOCK_SIZE = 64  # weights to a scale, as transformers loads NF4


@dataclass(frozen=True)
class Update:
    """What one weight [out, in] is given: scaling · up [out, r] @ down [r, in], and with DoRA its magnitude [out]."""

    down: Tensor
    up: Tensor
    scaling: float
    magnitude: Tensor | None

    def onto(self, weight: Tensor) -> Tensor:
        """The merged weight, fp32. DoRA (Liu et al. 2024, arXiv:2402.09353) rescales each row to its magnitude."""
        where = weight.device
        merged = weight + self.scaling * (self.up.to(where) @ self.down.to(where))
        if self.magnitude is None:
            return merged
        return merged * (self.magnitude.to(where) / torch.linalg.norm(merged, dim=1))[:, None]


@dataclass(frozen=True)
class Parts:
    """What a merge is made of."""

    run: Run
    source: Source
    template: Template
    updates: dict[str, Update]
    """By the name of the weight in the base's files."""
    four_bit: frozenset[str]
    """Weights that were in 4 bits while the adapter was trained."""

    @property
    def size(self) -> int:
        """Bytes of the merged model: those of the base."""
        return sum(file.stat().st_size for file in shards(self.source.folder))


def gather(run: Run, say: Callable[[str], None]) -> Parts:
    """The adapter of a run and the base that it was trained on.

    Raises:
        ValueError: there is no whole adapter, it is broken, or the base is not the one that it was trained on.
    """
    if not is_whole(run.adapter):
        state = run.status()["state"]
        raise ValueError(f"{run.id} has no whole adapter ({state}): train it to its end, or resume it.")
    config, facts = from_mapping(run.config()["config"]), run.facts()
    source = model.fetch(config.model, config.revision, say)
    if source.sha256 != facts["model_sha256"]:
        raise ValueError(
            f"{run.id} was trained on {facts['model']}, and the weights of {source.origin} are others: a merge with "
            "them would be no model. Fetch those that it was trained on."
        )
    source = converted(source)
    updates = read_updates(run.adapter)
    known = {name for file in shards(source.folder) for name in _names(file)}
    for name in updates:
        if name not in known:
            raise ValueError(f"The adapter does not fit {source.origin}: it has no weight {name}.")
    four_bit = frozenset(f"{linear.name}.weight" for linear in read_shapes(source).linear)
    chosen = template(load_tokenizer(source), facts["template"])
    return Parts(run, source, chosen, updates, four_bit)


def read_updates(adapter: Path) -> dict[str, Update]:
    """A PEFT LoRA adapter by weight name, in fp32. Raises ValueError where it is broken or of another kind."""
    try:
        config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
        tensors = {name: tensor.float() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"The adapter in {adapter} is broken: {error}.") from error
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise ValueError(f"The adapter in {adapter} is no LoRA without biases: Tandem merges no other kind.")
    updates = {}
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        stem = key.removesuffix(".lora_A.weight")
        down, up = tensors[key], tensors[f"{stem}.lora_B.weight"]
        rank = down.shape[0]
        scaling = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        magnitude = tensors.get(f"{stem}.lora_magnitude_vector") if config.get("use_dora") else None
        updates[stem.removeprefix(PREFIX) + ".weight"] = Update(down, up, scaling, magnitude)
    if not updates:
        raise ValueError(f"The adapter in {adapter} holds no LoRA weights.")
    return updates


def check_disk(parts: Parts, folder: Path, models: int) -> None:
    """Raises ValueError where `models` merged models do not fit beside each other on the disk of `folder`."""
    free, needed = shutil.disk_usage(folder).free, models * parts.size + DISK_MARGIN
    if free < needed:
        raise ValueError(
            f"The disk of {folder} has {gib(free)} free, and the merge needs {gib(needed)}: make room, or name another "
            "folder with --to."
        )


def write_merged(parts: Parts, onto: Onto, folder: Path, step: Callable[[int], object] = lambda _: None) -> None:
    """The merged model in `folder`: weights in the base's shards and precision, tokenizer, template, generation config.

    Args:
        parts: what is merged.
        onto: which weights the adapter is added to.
        folder: made here; it is not whole before the caller says so.
        step: told the bytes of each tensor as it is done.
    """
    folder.mkdir()
    for file in shards(parts.source.folder):
        with safe_open(file, "pt") as stored:
            names, metadata = list(stored.keys()), stored.metadata()
            merged = {}
            for name in names:
                merged[name] = _merged(stored.get_tensor(name), name, parts, onto)
                step(merged[name].nbytes)
        save_file(merged, folder / file.name, metadata or {"format": "pt"})
    index = parts.source.folder / "model.safetensors.index.json"
    if index.exists():
        shutil.copy2(index, folder)
    _write_configs(parts, folder)


def _merged(weight: Tensor, name: str, parts: Parts, onto: Onto) -> Tensor:
    update = parts.updates.get(name)
    if update is None and (onto == "bf16" or name not in parts.four_bit):
        return weight
    dense = weight.to(device())
    if onto == "nf4" and name in parts.four_bit:
        dense = dequantized(dense.to(compute_dtype()))
    dense = dense.float()
    if update is not None:
        dense = update.onto(dense)
    return dense.to(weight.dtype).cpu().contiguous()


def dequantized(weight: Tensor) -> Tensor:
    """What is left of a weight after NF4 with double quantization, as a base is loaded."""
    quantized, state = bnb.functional.quantize_4bit(
        weight, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
    )
    found: Tensor = bnb.functional.dequantize_4bit(quantized, state)
    return found


def _write_configs(parts: Parts, folder: Path) -> None:
    """config.json as it is, the tokenizer with the template that was trained, and where an answer ends."""
    shutil.copy2(parts.source.folder / "config.json", folder)
    tokenizer = parts.template.tokenizer
    tokenizer.chat_template = parts.template.as_jinja()
    tokenizer.save_pretrained(folder)
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": sorted(parts.template.stop_ids),
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def shards(folder: Path) -> list[Path]:
    """The weight files of a model folder."""
    return sorted(folder.glob("*.safetensors"))


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as stored:
        return list(stored.keys())


def leftovers(folder: Path) -> None:
    """Remove what a merge that was killed left behind."""
    for path in folder.glob(".merging-*"):
        shutil.rmtree(path, ignore_errors=True)


def workplace(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """A hidden folder on the same disk, gone afterwards."""
    leftovers(folder)
    return tempfile.TemporaryDirectory(dir=folder, prefix=".merging-")
