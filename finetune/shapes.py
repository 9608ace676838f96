"""The sizes of a model's parts, from its config.json alone: built on torch's meta device, without data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.model import Source

# Layers that read the same tensor, by the names that decoders of Llama's kind give them.
SHARED = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}


@dataclass(frozen=True)
class Linear:
    """A linear layer that is loaded in 4 bits."""

    name: str
    layer: int
    """Number of the decoder layer that it is in, from 0."""
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs

    @property
    def kind(self) -> str:
        """The last part of its name, such as q_proj."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def shares(self) -> str:
        """Equal for layers of one decoder layer that read the same tensor."""
        return SHARED.get(self.kind, self.name)


@dataclass(frozen=True)
class Shapes:
    """What memory is counted from."""

    layers: int
    width: int
    """Of the residual stream."""
    heads: int
    head_width: int
    inner: int
    """Width inside the feed-forward block."""
    vocabulary: int
    linear: tuple[Linear, ...]
    """Layers in 4 bits: all linear ones but the output head."""
    dense_parameters: int
    """Everything else, a tied output head counted once."""
    stored_bytes: int
    """Bytes a parameter in the weight files."""

    @property
    def parameters(self) -> int:
        return self.dense_parameters + sum(linear.parameters for linear in self.linear)

    @property
    def largest(self) -> int:
        """Elements of the largest linear layer."""
        return max((linear.parameters for linear in self.linear), default=0)


def read_shapes(source: "Source") -> Shapes:
    """The shapes of the model at `source`; no weight is read. Raises ValueError if its config.json can't be used."""
    from transformers import AutoConfig

    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        config = AutoConfig.from_pretrained(source.folder, **gguf)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"The config of {source.origin} can't be used: {error}.") from error
    return shapes_of(config)


def shapes_of(config: Any) -> Shapes:
    """The shapes of a model with that transformers config. Raises ValueError for one that is no causal LM."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = tuple(
        Linear(name, _layer(name), module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    text = config.get_text_config()
    stored = config.dtype.itemsize if isinstance(config.dtype, torch.dtype) else 2
    total = sum(parameter.numel() for parameter in model.parameters())  # each once, however often it is used
    return Shapes(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        linear=linear,
        dense_parameters=total - sum(layer.parameters for layer in linear),
        stored_bytes=stored,
    )


def _layer(name: str) -> int:
    """The first number in a layer's name: "model.layers.3.mlp.up_proj" is in layer 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
