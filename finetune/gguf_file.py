"""A merged model as one GGUF file for llama.cpp and what is built on it: F16, BF16 or Q8_0, tensor by tensor.

Written with the gguf package, for models of Llama's and Mistral's kind with a byte-level or a SentencePiece-like BPE.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from finetune.merge import shards

Precision = Literal["f16", "bf16", "q8_0"]
TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
KINDS = ("llama", "mistral")


def write_gguf(folder: Path, file: Path, precision: Precision, name: str) -> None:
    """The merged model in `folder` as `file`.

    Raises:
        ValueError: a kind of model or tokenizer that is not known here.
    """
    config = AutoConfig.from_pretrained(folder)
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in KINDS or rope.get("rope_type", "default") != "default":
        raise ValueError(f"A GGUF file can be made of {' and '.join(KINDS)} models, and this is {config.model_type}.")
    writer = gguf.GGUFWriter(None, "llama")
    _add_shapes(writer, config, float(rope.get("rope_theta", 10_000.0)), name)
    writer.add_file_type(FILE_TYPES[precision])
    _add_tokenizer(writer, folder, config.vocab_size)
    for tensor_name, shape, kind in _tensors(folder, config, precision):
        stored, dtype = _stored(shape, kind)
        writer.add_tensor_info(tensor_name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in _arrays(folder, config, precision):
        writer.write_tensor_data(array)
    writer.close()


def _stored(shape: tuple[int, ...], kind: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and type of a tensor as numpy holds it; BF16 and Q8_0 are bytes there."""
    if kind == gguf.GGMLQuantizationType.F32:
        return shape, np.dtype(np.float32)
    if kind == gguf.GGMLQuantizationType.F16:
        return shape, np.dtype(np.float16)
    return gguf.quant_shape_to_byte_shape(shape, kind), np.dtype(np.uint8)


def _add_shapes(writer: Any, config: Any, theta: float, name: str) -> None:
    heads = config.num_attention_heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(getattr(config, "head_dim", None) or config.hidden_size // heads)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    special = set(tokenizer.all_special_ids)
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {entry["id"] for entry in stored["added_tokens"]}
    kind, before = _kind(stored)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(before)
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(size)]
    writer.add_token_list(tokens)
    writer.add_token_types([_type(index, by_id, special, added) for index in range(size)])
    if kind == "llama":
        writer.add_token_scores([-float(index) for index in range(size)])
        writer.add_add_space_prefix("Prepend" in json.dumps(stored["normalizer"]) or "Metaspace" in json.dumps(stored))
    else:
        merges = stored["model"]["merges"]
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
        writer.add_add_space_prefix(False)
    begins = tokenizer("").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and tokenizer.bos_token_id in begins)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(ends[-1] if tokenizer.eos_token_id not in ends else tokenizer.eos_token_id)
    others = [end for end in ends if end != tokenizer.eos_token_id]
    if others:
        writer.add_eot_token_id(others[0])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _kind(stored: dict[str, Any]) -> tuple[str, str]:
    """llama.cpp's names for a tokenizer and for how it cuts text beforehand. Raises ValueError for an unknown one."""
    if stored["model"]["type"] == "BPE" and stored["model"].get("byte_fallback"):
        return "llama", "default"
    cut = stored.get("pre_tokenizer") or {}
    steps = [step["type"] for step in cut.get("pretokenizers", [cut])]
    plain = all(not s.get("add_prefix_space") for s in cut.get("pretokenizers", [cut]) if s.get("type") == "ByteLevel")
    if stored["model"]["type"] == "BPE" and plain and steps in (["ByteLevel"], ["Digits", "ByteLevel"]):
        return "gpt2", "gpt-2" if steps == ["ByteLevel"] else "smollm"
    raise ValueError("This model's tokenizer has no counterpart in a GGUF file that is known here.")


def _type(index: int, by_id: dict[int, str], special: set[int], added: set[int]) -> int:
    token = by_id.get(index)
    if token is None:
        return int(gguf.TokenType.UNUSED)
    if token.startswith("<0x") and len(token) == 6:
        return int(gguf.TokenType.BYTE)
    if index in special or (index in added and token.startswith("<")):
        return int(gguf.TokenType.CONTROL)
    return int(gguf.TokenType.USER_DEFINED if index in added else gguf.TokenType.NORMAL)


def _tensors(folder: Path, config: Any, precision: Precision) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    for name, tensor in _weights(folder):
        yield _gguf_name(name, config), tuple(tensor.shape), _tensor_type(tensor, precision)


def _arrays(folder: Path, config: Any, precision: Precision) -> Iterator[Any]:
    for name, tensor in _weights(folder):
        array = _rotary(name, tensor.float(), config).numpy()
        kind = _tensor_type(tensor, precision)
        if kind == gguf.GGMLQuantizationType.F32:
            yield array
        elif kind == gguf.GGMLQuantizationType.F16:
            yield array.astype(np.float16)
        else:
            yield gguf.quants.quantize(array, kind)


def _weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in shards(folder):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a mapping)
                yield name, stored.get_tensor(name)


def _tensor_type(tensor: torch.Tensor, precision: Precision) -> Any:
    """Norms stay in fp32, as llama.cpp wants them; what Q8_0's blocks of 32 do not divide becomes F16."""
    if tensor.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    if precision == "q8_0" and tensor.shape[-1] % 32:
        return gguf.GGMLQuantizationType.F16
    return TYPES[precision]


def _gguf_name(name: str, config: Any) -> str:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(f"The weight {name} has no place in a GGUF file.")
    return found


def _rotary(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Query and key rows in llama.cpp's order: pairs beside each other, not in two halves of a head."""
    if name.endswith("q_proj.weight"):
        heads = config.num_attention_heads
    elif name.endswith("k_proj.weight"):
        heads = config.num_key_value_heads
    else:
        return tensor
    rows, width = tensor.shape
    return tensor.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width).contiguous()
