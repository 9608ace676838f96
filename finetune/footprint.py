"""The memory of a run at its peak, part by part: one formula each, from the model's shapes and the run's settings.

Written for decoders of Llama's kind (RMSNorm, rotary grouped attention, SwiGLU), as trained here: NF4 base, LoRA on
4-bit layers, packed attention, chunked loss. The count of what autograd saves is exact there (a test holds it against
torch's own hooks); for other architectures it is an estimate. `benchmarks/memory_cpu.py` measures it.
"""

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from finetune.config import TrainConfig
from finetune.shapes import Linear, Shapes

if TYPE_CHECKING:
    import torch

FP32 = 4  # bytes
NF4_BLOCK, NF4_GROUP = 64, 256  # weights to a block scale, block scales to a scale of their own (QLoRA, section 3)
OPTIMIZER_BLOCK, OPTIMIZER_SMALL = 256, 4096  # bitsandbytes: values to a scale; smaller tensors keep fp32 states
SUPERVISED = 0.5  # share of the tokens that carry loss where only responses do (Dolly: 0.41)
# Resident memory of a process on the CPU that has imported what training imports, and after its first step (kernels,
# thread pools, their buffers). On a GPU nothing of it is in torch's memory; the driver's context comes on top of it.
RUNTIME_BYTES = {"cpu": 545 * 2**20, "cuda": 0}
# The CUDA allocator's rounding and unused remainders of its blocks, as a share of what is asked of it.
CUDA_FRAGMENTATION = 0.05
# glibc's malloc rarely reuses the place of a freed tensor of aligned memory for the next one, so every layer leaves
# holes, kept tensors or not: a share of what all layers save in a pass, fitted to measurements with glibc 2.36.
CPU_FRAGMENTATION = {"off": 0.75, "on": 0.45}


@dataclass(frozen=True)
class Need:
    """Bytes by part at a run's peak."""

    runtime: int
    """Python and its libraries; 0 on a GPU."""
    base: int
    """The base: 4-bit linear layers with their scales, everything else in the compute type."""
    loading: int
    """Pages of the weight files while they are read; they are given back before training."""
    adapter: int
    gradients: int
    optimizer: int
    """Optimizer states, as far as they are on this device."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    working: int
    """What a layer or the loss needs for a moment."""
    fragmentation: int
    """What the allocator can't use."""

    @property
    def training(self) -> int:
        """Bytes that come to the base once training starts."""
        parts = (self.adapter, self.gradients, self.optimizer, self.activations, self.working, self.fragmentation)
        return sum(parts)

    @property
    def total(self) -> int:
        """Bytes at the peak: loading and training do not coincide."""
        return self.runtime + self.base + max(self.loading, self.training)


def predict(
    config: TrainConfig, shapes: Shapes, dtype: "torch.dtype", device: str, checkpointing: bool | None = None
) -> Need:
    """Bytes by part at the peak of a run on "cpu" or "cuda"; `checkpointing` None: as the config says."""
    if checkpointing is None:
        checkpointing = config.training.checkpointing == "on"
    adapter = adapter_parameters(config, shapes)
    base = base_bytes(shapes, dtype.itemsize)
    # A gradient for each parameter; with accumulation the trainer keeps a copy in case a micro-batch must be repeated.
    gradients = FP32 * adapter * (2 if config.training.accumulation > 1 else 1)
    optimizer = optimizer_bytes(config, shapes, device)
    activations = activation_bytes(config, shapes, dtype, device, checkpointing)
    working = working_bytes(config, shapes, dtype, device, checkpointing)
    if device == "cuda":
        fragmentation = CUDA_FRAGMENTATION * (FP32 * adapter + gradients + optimizer + activations + working)
    else:
        a_pass = shapes.layers * config.training.tokens_per_batch * saved_bytes_a_token(config, shapes, dtype, device)
        fragmentation = CPU_FRAGMENTATION["on" if checkpointing else "off"] * a_pass
    return Need(
        runtime=RUNTIME_BYTES[device],
        base=base,
        # safetensors files are mapped into the process; on a GPU at most one tensor is there in full.
        loading=shapes.parameters * shapes.stored_bytes if device == "cpu" else shapes.largest * dtype.itemsize,
        adapter=FP32 * adapter,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        working=working,
        fragmentation=int(fragmentation),
    )


def base_bytes(shapes: Shapes, itemsize: int) -> int:
    """The loaded base: a half byte a 4-bit weight, a byte to 64 of them, 4 bytes to 256 of those; the rest as it is.

    Each layer has two tables besides, of 16 and 256 fp32 values, and the fp32 mean of its scales.
    """
    four_bit = 0
    for linear in shapes.linear:
        blocks = ceil(linear.parameters / NF4_BLOCK)
        four_bit += ceil(linear.parameters / 2) + blocks + FP32 * (ceil(blocks / NF4_GROUP) + 16 + 256 + 1)
    return four_bit + shapes.dense_parameters * itemsize


def adapter_parameters(config: TrainConfig, shapes: Shapes) -> int:
    """Trainable parameters: r rows of each adapted layer's inputs and outputs, and with DoRA a magnitude an output."""
    return sum(sum(_adapter_tensors(config, linear)) for linear in adapted(config, shapes))


def _adapter_tensors(config: TrainConfig, linear: Linear) -> list[int]:
    r = config.lora.r
    return [r * linear.inputs, r * linear.outputs] + ([linear.outputs] if config.lora.dora else [])


def adapted(config: TrainConfig, shapes: Shapes) -> list[Linear]:
    """The 4-bit layers that get an adapter."""
    targets = config.lora.targets
    return [linear for linear in shapes.linear if targets == "all-linear" or linear.kind in targets]


def optimizer_bytes(config: TrainConfig, shapes: Shapes, device: str) -> int:
    """AdamW keeps two moments a parameter: 4 bytes each, or 1 and a scale to 256 of them; paged, in main memory."""
    name = config.training.optimizer
    if name.startswith("paged") and device == "cuda":
        return 0
    sizes = [size for linear in adapted(config, shapes) for size in _adapter_tensors(config, linear)]
    if not name.endswith("8bit"):
        return sum(2 * FP32 * size for size in sizes)
    return sum(
        2 * (size + FP32 * ceil(size / OPTIMIZER_BLOCK)) if size >= OPTIMIZER_SMALL else 2 * FP32 * size
        for size in sizes
    )


def activation_bytes(
    config: TrainConfig, shapes: Shapes, dtype: "torch.dtype", device: str, checkpointing: bool
) -> int:
    """What the forward pass keeps: all layers' saved tensors; with checkpointing each one's input and one layer's."""
    tokens = config.training.tokens_per_batch
    a_layer = tokens * saved_bytes_a_token(config, shapes, dtype, device)
    if checkpointing:
        kept = shapes.layers * tokens * shapes.width * dtype.itemsize + a_layer
    else:
        kept = shapes.layers * a_layer
    # Under autocast the adapter's matrices are cast once a forward pass and kept to its end.
    casts = dtype.itemsize * adapter_parameters(config, shapes) if dtype.itemsize < FP32 else 0
    return kept + casts


def saved_bytes_a_token(config: TrainConfig, shapes: Shapes, dtype: "torch.dtype", device: str) -> int:
    """Bytes a token that autograd saves in one decoder layer. The frozen products themselves save nothing.

    norms: their input in fp32 (in an fp32 run the residual stream itself) and its inverse root mean square, twice;
    attention: query, key and value as the kernel takes them (key heads repeated to all heads), output, fp32 log-sums;
    SwiGLU: gate, SiLU(gate), up; adapters: the input once for all that share it, and r values each.
    """
    size, heads = dtype.itemsize, shapes.heads * shapes.head_width
    norms = 2 * FP32 * (shapes.width + 1)
    attention = 4 * heads * size + FP32 * shapes.heads
    swiglu = 3 * shapes.inner * size
    layers = [linear for linear in adapted(config, shapes) if linear.layer == 0]
    if config.lora.dropout:  # each adapter drops its own copy, and keeps the mask (bool on a GPU, a factor on the CPU)
        mask = 1 if device == "cuda" else size
        inputs = sum(linear.inputs * (size + mask) for linear in layers)
    elif device == "cpu" and size < FP32:  # PEFT casts there for each adapter anew
        inputs = sum(linear.inputs * size for linear in layers)
    else:
        inputs = sum({linear.shares: linear.inputs * size for linear in layers}.values())
    return norms + attention + swiglu + inputs + len(layers) * config.lora.r * size


def working_bytes(config: TrainConfig, shapes: Shapes, dtype: "torch.dtype", device: str, checkpointing: bool) -> int:
    """What is needed for a moment at the peak: by the loss or by a layer's backward pass, whichever is more.

    loss (finetune/loss.py): a chunk's logits and their log-softmax in fp32, and the hidden states of the supervised
    tokens with their gradient; layer: the gradients of SwiGLU's three tensors and of the residual stream, and the
    largest weight dequantized.
    """
    from finetune.loss import CHUNK_LOGITS  # torch comes with it

    tokens = config.training.tokens_per_batch
    supervised = ceil(tokens * (1 if config.encoding.loss_on == "all" else SUPERVISED))
    logits = min(max(CHUNK_LOGITS, shapes.vocabulary), supervised * shapes.vocabulary)
    loss = 2 * FP32 * logits + 2 * supervised * shapes.width * dtype.itemsize
    largest = max((linear.parameters for linear in shapes.linear), default=0)
    layer = tokens * (3 * shapes.inner + 2 * shapes.width) * dtype.itemsize + largest * dtype.itemsize
    if checkpointing:  # the loss comes before any layer is computed again
        a_layer = tokens * saved_bytes_a_token(config, shapes, dtype, device)
        return max(loss - a_layer, layer)
    return max(loss, layer)
