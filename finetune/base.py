"""The base in 4 bits, its tokenizer, and LoRA on it."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from finetune import attention
from finetune.config import Lora
from finetune.model import Source, converted

logging.disable_progress_bar()  # a line of our own says what is going on


def load_tokenizer(source: Source) -> Any:
    """The tokenizer, with a pad token that is not its end token (a padded end would be an end without loss)."""
    tokenizer = AutoTokenizer.from_pretrained(**_where(source))
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer of {source.origin} has no end token, so a model could not learn to stop.")
    others = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
    pads = [token for token in others if token and token != tokenizer.eos_token]
    if pads:  # otherwise rows are padded with the end token, which no label or mask here ever looks at
        tokenizer.pad_token = pads[0]
    return tokenizer


def _where(source: Source) -> dict[str, Any]:
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source.folder), "trust_remote_code": False}
    return where if source.gguf is None else where | {"gguf_file": source.gguf}


def context_limit(source: Source) -> int:
    """Longest example in tokens: what the model was made for, within its attention window."""
    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    config = AutoConfig.from_pretrained(source.folder, **gguf).get_text_config()
    return min(
        config.max_position_embeddings, getattr(config, "sliding_window", None) or config.max_position_embeddings
    )


def compute_dtype() -> torch.dtype:
    """What the base computes in: bf16 where the hardware has it; else fp16 on a GPU and fp32 on a CPU.

    A CPU without bf16 instructions emulates them: an AVX2 machine measured 19 GFLOP/s in bf16 and 150 in fp32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16", "bf16"} else torch.float32


def load_base(
    source: Source, dtype: torch.dtype | None = None, trainable: bool = False, packed: bool | None = None
) -> Any:
    """The base in 4 bits (NF4, double quantization) on the GPU if there is one, frozen, in eval mode.

    Args:
        source: where the weights are.
        dtype: what it computes in; None: `compute_dtype()`.
        trainable: whether gradients will flow through it. On CPUs with AVX512-BF16, bitsandbytes repacks the weights
            at the first evaluation, and later backward passes are then silently wrong; this keeps them as they are.
        packed: whether its attention takes packs, and nothing else; None: as `trainable`.
    """
    source = converted(source)
    dtype = dtype or compute_dtype()
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shards parameters of one type alone: the 4-bit bytes are then stored as the compute type.
        bnb_4bit_quant_storage=dtype if under_fsdp() else torch.uint8,
    )
    model = AutoModelForCausalLM.from_pretrained(
        **_where(source),
        quantization_config=four_bit,
        dtype=dtype,
        device_map=None if under_fsdp() else {"": device()},
        attn_implementation=attention.register() if (trainable if packed is None else packed) else "sdpa",
        use_safetensors=True,
    )
    if trainable:
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False).eval()


def device() -> str:
    """Where this process computes: its own GPU under a launcher of several, the only one, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def under_fsdp() -> bool:
    """Whether accelerate launched this process with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def target_names(base: Any, lora: Lora) -> list[str]:
    """Full names of the 4-bit linear layers that get an adapter. Raises ValueError for a target not in the model."""
    head = base.get_output_embeddings()
    linear = [n for n, module in base.named_modules() if isinstance(module, Linear4bit) and module is not head]
    if lora.targets == "all-linear":
        return linear
    kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in lora.targets:
        if target not in kinds:
            raise ValueError(f"The model has no layer {target!r} to adapt; it has: {', '.join(kinds)}.")
    return [name for name in linear if name.rsplit(".", 1)[-1] in lora.targets]


def add_lora(base: Any, lora: Lora) -> Any:
    """A PeftModel over `base` with a fresh adapter in fp32 (its output is 0 at first); nothing else is trainable."""
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=target_names(base, lora),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def parameter_report(adapted: Any) -> dict[str, Any]:
    """Trainable and total parameters by element, and elements by type; a byte of 4-bit weights holds two."""
    by_type: Counter[str] = Counter()
    trainable = 0
    for parameter in adapted.parameters():
        four_bit = isinstance(parameter, Params4bit)
        count = parameter.numel() * (2 * parameter.element_size() if four_bit else 1)
        by_type["nf4" if four_bit else str(parameter.dtype).removeprefix("torch.")] += count
        trainable += count if parameter.requires_grad else 0
    return {
        "trainable_parameters": trainable,
        "total_parameters": sum(by_type.values()),
        "parameter_types": dict(by_type),
    }
