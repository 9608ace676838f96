"""What a run is asked to do. The one home of every default; a field's docstring is its help on the page and in --help.

TOML by hand (`assets/presets/*.toml`), JSON as a run keeps it. Nothing here loads torch.
"""

import json
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PRESETS = ASSETS / "presets"


class Part(BaseModel):
    """A group of settings: frozen, and a misspelt key is an error, not a setting without effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


Settings = TypeVar("Settings", bound=BaseModel)


class Encoding(Part):
    """How a row becomes tokens."""

    template: Literal["auto", "dolly", "chat"] = "auto"
    """Prompt template: "chat" is the model's own, "dolly" the instruction headings; "auto" takes the model's own if it has one."""  # noqa: E501
    max_length: int | None = Field(default=None, ge=16)
    """Longest example in tokens. Empty: the 99th percentile of the rows, no more than the model takes."""
    loss_on: Literal["response", "all"] = "response"
    """Tokens that carry loss: the response and its end, or the prompt too."""


class Holdout(Part):
    """What is never trained on. By content, so a row keeps its side whatever subset is trained on."""

    test_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of the rows kept for the scores that are reported."""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the rows kept for watching the loss during training."""

    @model_validator(mode="after")
    def leave_something_to_train_on(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction and validation_fraction must leave rows to train on (sum below 1)")
        return self


class Lora(Part):
    """The adapter."""

    r: int = Field(default=16, ge=1, le=512)
    """Rank of the adapter's matrices: more can hold more, and costs more memory."""
    alpha: float = Field(default=32, gt=0)
    """Scale of the adapter; its output is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter. 0 is faster and takes much less memory."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Layers that get an adapter: all 4-bit linear layers, or names such as q_proj. Never the output head."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r, which keeps high ranks learning (rsLoRA)."""
    dora: bool = False
    """Learn the weights' magnitude apart from their direction (DoRA): slower, and it can't share a batch in a chat."""


class Training(Part):
    """The loop."""

    steps: int | None = Field(default=60, ge=1)
    """Optimizer steps. Empty: as many as `epochs` takes."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows, instead of a number of steps."""
    batching: Literal["packed", "padded"] = "packed"
    """Whole examples packed into a token budget, or examples of similar length padded to one."""
    tokens_per_batch: int = Field(default=1024, ge=16)
    """Token budget of a micro-batch, padding included. No example sees another."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches to a step."""
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak learning rate."""
    lora_plus_ratio: float = Field(default=1.0, ge=1)
    """Learning rate of the adapter's up matrices over that of its down matrices (LoRA+; its authors use 16)."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls after warm-up."""
    warmup_steps: int = Field(default=2, ge=0)
    """Steps in which the learning rate climbs to its peak."""
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = (
        "adamw_torch_fused"
    )
    """AdamW: torch's own, with its states in 8 bits, or those paged to main memory when the GPU is full."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    neftune_alpha: float | None = Field(default=None, gt=0)
    """Noise on the embeddings while training (NEFTune; 5 is usual). Empty: none."""
    checkpointing: Literal["off", "on", "auto"] = "off"
    """Compute activations again in the backward pass: less memory, about a third slower. "auto": where memory demands it."""  # noqa: E501
    compile: Literal["off", "on", "auto"] = "auto"
    """Compile the decoder layers on a GPU: a third faster after some 15 seconds. "auto": where a run is long enough."""
    validate_every_steps: int = Field(default=20, ge=1)
    """Steps between two looks at the validation loss."""
    validation_rows: int = Field(default=64, ge=1)
    """Rows that the validation loss is taken over, the categories in proportion."""
    evaluate_every_steps: int = Field(default=0, ge=0)
    """Steps between two evaluations of answers to validation rows; training waits meanwhile. 0: none."""
    sample_every_steps: int = Field(default=0, ge=0)
    """Steps between two looks at the answers of base and tuned to three held-out prompts. 0: none."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many looks without a lower validation loss. Empty: never."""
    keep_best: bool = True
    """End with the weights of the lowest validation loss, not with the last ones."""
    save_every_steps: int = Field(default=50, ge=1)
    """Steps between two checkpoints to resume from."""
    minutes: float | None = Field(default=None, gt=0)
    """Time for the whole run: a short measured pilot sets the steps. Empty: no limit."""

    @model_validator(mode="after")
    def end_somewhere(self) -> Self:
        if self.steps is None and self.epochs is None and self.minutes is None:
            raise ValueError("set steps, epochs or minutes: a run must end somewhere")
        if self.minutes is not None and self.batching == "padded":
            raise ValueError("minutes needs packed batches: set batching to packed, or give steps")
        return self


class TrainConfig(Part):
    """Everything a run is asked to do."""

    model: str = "smollm2-135m"
    """Base model: an alias (smollm2-135m, mistral-7b, llama-2-7b), a hub id, a folder, or a .gguf file."""
    revision: str | None = None
    """Revision of a hub model. Empty: the one pinned for an alias, else the newest, which the run then records."""
    data: str | None = None
    """Rows to train on: a .jsonl, .json, .csv or .parquet file, or a hub id. Empty: Dolly, or our sample where no hub is reachable."""  # noqa: E501
    columns: str | None = None
    """Which column is which, such as "instruction=question, response=answer". Empty: found by their usual names."""
    rows: int | None = Field(default=1000, ge=1)
    """How many training rows to take, the categories in proportion. Empty: all."""
    seed: int = Field(default=0, ge=0)
    """Seed of the adapter's start and of the order of the rows."""
    encoding: Encoding = Encoding()
    holdout: Holdout = Holdout()
    lora: Lora = Lora()
    training: Training = Training()


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in PRESETS.rglob("*.toml"))


def preset_help(name: str) -> str:
    """What a shipped preset is for: the comment at its top, in one paragraph."""
    lines = (PRESETS / f"{name}.toml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


def preset(name: str) -> TrainConfig:
    """The shipped preset of that name. Raises ValueError with the known names."""
    if name not in preset_names():
        raise ValueError(f"There is no preset {name!r}; there are: {', '.join(preset_names())}.")
    return from_mapping(tomllib.loads((PRESETS / f"{name}.toml").read_text()))


def read(path: Path) -> TrainConfig:
    """A config from a TOML file, or from the `config.json` that a run keeps. Raises ValueError with a sentence."""
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"The config {path} can't be read: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"The config {path} must be a table of settings.")
    return from_mapping(values.get("config", values))


def from_mapping(values: dict[str, Any]) -> TrainConfig:
    """A checked TrainConfig. Raises ValueError with one sentence that names every setting that is off."""
    return parse(TrainConfig, values)


def parse(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Checked settings of that kind. Raises ValueError with one sentence that names every setting that is off."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(_sentence(dict(e)) for e in error.errors()) + ".") from error


def with_settings(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """`config` with settings named by their leaf ("steps", "r", …) replaced. Raises ValueError for a bad value."""
    values = config.model_dump()
    parts = {leaf: part for part in TrainConfig.model_fields for leaf in _leaves(part)}
    for name, value in settings.items():
        if name in parts:
            values[parts[name]][name] = value
        else:
            values[name] = value
    return from_mapping(values)


def _leaves(part: str) -> list[str]:
    annotation = TrainConfig.model_fields[part].annotation
    is_part = isinstance(annotation, type) and issubclass(annotation, Part)
    return list(annotation.model_fields) if is_part else []  # type: ignore[union-attr]


def fields() -> dict[str, Any]:
    """Every setting by its leaf name, with pydantic's FieldInfo (annotation, default, bounds, description)."""
    found: dict[str, Any] = {}
    for name, info in TrainConfig.model_fields.items():
        leaves = _leaves(name)
        if leaves:
            found.update(info.annotation.model_fields)  # type: ignore[union-attr]
        else:
            found[name] = info
    return found


def _sentence(error: dict[str, Any]) -> str:
    """pydantic's error as a clause: "steps: input should be greater than or equal to 1 (given: 0)"."""
    where = str(error["loc"][-1]) if error["loc"] else "config"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such setting"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: {message} (given: {error['input']!r})"
