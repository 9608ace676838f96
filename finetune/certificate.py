"""How faithful a merged model is to what was trained: measured on held-out rows, against the 4-bit base with adapter.

The reference is the model as training and the chat know it. Every variant sees the same rows and ids: KL from the
reference at each supervised token, how often its likeliest token is the reference's, and the response loss.
"""

import gc
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import AutoModelForCausalLM

from finetune import data, room
from finetune.base import compute_dtype, context_limit, device, load_base
from finetune.config import from_mapping
from finetune.loss import headless, supervised_hidden
from finetune.merge import Onto, Parts
from finetune.model import Source
from finetune.packing import collate_padded

ROWS = 48
CHUNK = 256  # positions whose logits are held at once
VERSION = 1


class Variant(BaseModel):
    """A merged model's figures."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    onto: str
    """The weights that the adapter was added to: "bf16", as they are stored, or "nf4", dequantized."""
    precision: str
    """What it was measured in: "dense", in the precision of its files, or "nf4", quantized again."""
    loss: float
    """Response loss, nats a token."""
    mean_kl: float
    """KL(reference || variant), mean over supervised tokens, nats."""
    p99_kl: float
    """Its 99th percentile."""
    greedy_agreement: float
    """Share of supervised positions where the likeliest token is the reference's."""


class Certificate(BaseModel):
    """What `certificate.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: int = VERSION
    run: str
    base: str
    base_sha256: str
    template: str
    """Id of the prompt template, which the model carries as its chat template."""
    stop_strings: list[str]
    """What ends an answer beside its end tokens."""
    chosen: str
    """The weights that the adapter was added to in this model."""
    asked: str
    """What was asked for: "auto" takes the lowest dense loss."""
    rows: int
    tokens: int
    """Supervised tokens of those rows."""
    computed_in: str
    reference_loss: float
    base_loss: float
    """Of the 4-bit base without the adapter."""
    variants: list[Variant]

    def of(self, onto: str, precision: str) -> Variant:
        """The variant of that name."""
        return next(v for v in self.variants if (v.onto, v.precision) == (onto, precision))

    def sentence(self) -> str:
        """For people."""
        dense, four_bit = (self.of(self.chosen, precision) for precision in ("dense", "nf4"))
        return (
            f"Merged onto {NAMES[self.chosen]}. On {self.rows} held-out rows ({self.tokens} response tokens) its loss "
            f"is {dense.loss:.4f}; that of the 4-bit base with the adapter is {self.reference_loss:.4f}, and of the "
            f"base alone {self.base_loss:.4f}. Mean KL from the adapter {dense.mean_kl:.2g} nats (99th percentile "
            f"{dense.p99_kl:.2g}), the same likeliest token at {dense.greedy_agreement:.1%} of the positions. "
            f"Quantized to NF4 again: loss {four_bit.loss:.4f}, mean KL {four_bit.mean_kl:.2g}."
        )


NAMES = {"bf16": "the base's own weights", "nf4": "the dequantized 4-bit weights"}


class Reference(NamedTuple):
    """The examples, and what the 4-bit base with the adapter makes of them."""

    examples: list[data.Example]
    hidden: list[Tensor]
    """Final hidden states of the supervised positions of each example, [tokens, width]."""
    losses: tuple[float, float]
    """Response loss of the reference, and of the base alone."""
    head: Tensor
    pad_id: int


def reference(parts: Parts, rows: int = ROWS) -> Reference:
    """Look at `rows` held-out rows with the base in 4 bits and the adapter on it."""
    config = from_mapping(parts.run.config()["config"])
    split = data.split_rows(data.load_rows(config.data, config.columns).rows, config.holdout)
    held_out = data.take(split.test or split.validation or split.train, rows)
    limit = context_limit(parts.source)
    examples = data.encode_rows(held_out, parts.template, parts.run.facts()["max_length"], limit).examples
    pad_id = parts.template.tokenizer.pad_token_id or 0
    base = load_base(parts.source)
    base_loss = _Sums().add_all(_hidden(base, base, examples, pad_id), None).loss
    adapted = PeftModel.from_pretrained(base, parts.run.adapter).eval()
    seen = list(_hidden(base, adapted, examples, pad_id))
    sums = _Sums().add_all(seen, None)
    head = base.get_output_embeddings().weight.detach().clone()
    return Reference(examples, [hidden for hidden, _, _ in seen], (sums.loss, base_loss), head, pad_id)


def measure(folder: Path, onto: Onto, precision: str, seen: Reference) -> Variant:
    """A merged model's figures, loaded from its files: dense, or in NF4."""
    _free_what_is_gone()
    loaded = load_base(Source(folder, None, str(folder), "")) if precision == "nf4" else load_dense(folder)
    sums = _Sums().add_all(_hidden(loaded, loaded, seen.examples, seen.pad_id), seen)
    kl = torch.cat(sums.kl)
    return Variant(
        onto=onto,
        precision=precision,
        loss=sums.loss,
        mean_kl=kl.mean().item(),
        p99_kl=kl.quantile(0.99).item(),
        greedy_agreement=sums.agreed / sums.tokens,
    )


def _free_what_is_gone() -> None:
    """A model and its modules know each other, so that it does not go with its last name."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_dense(folder: Path) -> Any:
    """A merged model as plain transformers loads it, in the precision that is computed in here."""
    where = {"": _roomy_device(folder)}
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=compute_dtype(), device_map=where, use_safetensors=True
    ).eval()


def certify(
    parts: Parts, asked: str, folders: dict[Onto, Path], seen: Reference, say: Callable[[str], None]
) -> Certificate:
    """Measure every merged model twice, dense and in 4 bits again, and choose: by loss where "auto" was asked."""
    variants = []
    for onto, folder in folders.items():
        for precision in ("dense", "nf4"):
            say(f"Measuring the merge onto {NAMES[onto]} ({'dense' if precision == 'dense' else '4 bits again'})")
            with room.claimed(lambda: room.base_fits(parts.source), lambda: False, lambda _: None):
                variants.append(measure(folder, onto, precision, seen))
    dense = [variant for variant in variants if variant.precision == "dense"]
    chosen = min(dense, key=lambda variant: variant.loss).onto if asked == "auto" else asked
    return Certificate(
        run=parts.run.id,
        base=parts.source.origin,
        base_sha256=parts.source.sha256,
        template=parts.template.id,
        stop_strings=list(parts.template.stop_strings),
        chosen=chosen,
        asked=asked,
        rows=len(seen.examples),
        tokens=sum(example.supervised for example in seen.examples),
        computed_in=str(compute_dtype()).removeprefix("torch."),
        reference_loss=seen.losses[0],
        base_loss=seen.losses[1],
        variants=variants,
    )


def read(folder: Path) -> Certificate:
    """The certificate of a merged model. Raises ValueError where there is none."""
    try:
        return Certificate.model_validate(json.loads((folder / "certificate.json").read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no merged model with a certificate: {error}.") from error


class _Sums:
    """Loss, KL and agreement over examples."""

    def __init__(self) -> None:
        self.nll, self.tokens, self.agreed = 0.0, 0, 0
        self.kl: list[Tensor] = []

    def add_all(self, seen: Any, against: Reference | None) -> "_Sums":
        for number, (hidden, targets, head) in enumerate(seen):
            for start in range(0, len(targets), CHUNK):
                part = slice(start, start + CHUNK)
                log_p = _log_p(hidden[part], head)
                self.nll -= log_p.gather(1, targets[part, None]).sum().item()
                self.tokens += len(targets[part])
                if against is not None:
                    log_q = _log_p(against.hidden[number][part].to(head.device), against.head.to(head.device))
                    self.kl.append((log_q.exp() * (log_q - log_p)).sum(-1).clamp(min=0).cpu())
                    self.agreed += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
        return self

    @property
    def loss(self) -> float:
        return self.nll / self.tokens


def _log_p(hidden: Tensor, head: Tensor) -> Tensor:
    return (hidden.to(head.dtype) @ head.T).float().log_softmax(-1)  # [positions, vocabulary]


@torch.no_grad()
def _hidden(base: Any, model: Any, examples: Sequence[data.Example], pad_id: int) -> Any:
    """(hidden states, targets, head) of each example's supervised positions."""
    with ExitStack() as stack:
        head = stack.enter_context(headless(base)).detach()
        for example in examples:
            batch = {name: tensor.to(head.device) for name, tensor in collate_padded([[example]], pad_id).items()}
            hidden, targets = supervised_hidden(model, batch)
            yield hidden, targets, head


def _roomy_device(folder: Path) -> str:
    """The GPU if the dense model fits there beside what it computes with, else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return device() if torch.cuda.mem_get_info()[0] > 1.2 * size else "cpu"
