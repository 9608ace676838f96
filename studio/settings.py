"""Every setting of a run as something to show: its group, kind, label and help come from its field; and back again.

Nothing here touches a component: studio/tabs/train_form.py makes them.
"""

import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from finetune.config import Part, TrainConfig, preset, with_settings

Kind = Literal["integer", "number", "choice", "switch", "text", "names"]

EVERYDAY = ("model", "rows", "steps")
OWN_ROWS = ("data", "columns")  # by upload or hub id, with columns chosen in lists
PARTS = {"encoding": "Prompt and lengths", "holdout": "Held-out rows", "lora": "LoRA", "training": "Training"}
TRAINING = {  # a setting that is not named here stands under "Training"
    "Length, batches and memory": {
        "epochs",
        "minutes",
        "batching",
        "tokens_per_batch",
        "accumulation",
        "checkpointing",
        "compile",
    },
    "Learning rate and optimizer": {
        "learning_rate",
        "lora_plus_ratio",
        "schedule",
        "warmup_steps",
        "optimizer",
        "weight_decay",
        "max_grad_norm",
        "neftune_alpha",
    },
    "Validation, samples and checkpoints": {
        "validate_every_steps",
        "validation_rows",
        "evaluate_every_steps",
        "sample_every_steps",
        "patience",
        "keep_best",
        "save_every_steps",
    },
}
GENERAL = "Model revision and seed"
LABELS = {
    "r": "Rank (r)",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "lora_plus_ratio": "LoRA+ ratio",
    "neftune_alpha": "NEFTune alpha",
}
HELP = {"model": "An alias, or a model's hub id (owner/name)."}  # a page takes no paths


class Setting(NamedTuple):
    """One setting of a run."""

    name: str
    group: str
    kind: Kind
    label: str
    help: str
    choices: tuple[str, ...]
    """Of a choice."""


def settings() -> list[Setting]:
    """Every setting that a form offers, the everyday ones first."""
    found = []
    for top, info in TrainConfig.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Part):
            found += [_setting(name, field, _group(top, name)) for name, field in annotation.model_fields.items()]
        elif top not in OWN_ROWS:
            found.append(_setting(top, info, GENERAL))
    return sorted(found, key=lambda setting: setting.name not in EVERYDAY)


def groups() -> dict[str, list[Setting]]:
    """What is folded away, by the groups' titles, in the order of the fields."""
    found: dict[str, list[Setting]] = {}
    for setting in settings():
        if setting.name not in EVERYDAY:
            found.setdefault(setting.group, []).append(setting)
    return {title: found[title] for title in sorted(found, key=lambda title: title == GENERAL)}


def shown(config: TrainConfig) -> dict[str, Any]:
    """Each setting's value as its component shows it."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {setting.name: _shown(setting, flat[setting.name]) for setting in settings()}


def config_from(preset_name: str, values: Mapping[str, Any]) -> TrainConfig:
    """The preset with what its form says. Raises ValueError with one sentence that names every setting that is off."""
    kinds = {setting.name: setting for setting in settings()}
    given = {name: _given(kinds[name], value) if name in kinds else value for name, value in values.items()}
    return with_settings(preset(preset_name), given)


def _setting(name: str, info: Any, group: str) -> Setting:
    options = _options(info.annotation)
    literal = next((option for option in options if get_origin(option) is Literal), None)
    if any(get_origin(option) is tuple for option in options):
        kind: Kind = "names"
    elif literal is not None:
        kind = "choice"
    else:
        kinds: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number", str: "text"}
        kind = kinds[options[0]]
    if type(None) in get_args(info.annotation) and name not in EVERYDAY:
        kind = "text"  # a number's component that begins empty turns into 0 once it is unfolded (Gradio 6.31)
    words = name.replace("_", " ")
    help_text = HELP.get(name) or f"{info.description}{_bounds(info.metadata)}"
    choices = get_args(literal) if kind == "choice" else ()
    return Setting(name, group, kind, LABELS.get(name, words[:1].upper() + words[1:]), help_text, choices)


def _options(annotation: Any) -> list[Any]:
    """What a setting's type may be, None left out."""
    union = get_origin(annotation) in (Union, types.UnionType)
    return [option for option in (get_args(annotation) if union else (annotation,)) if option is not type(None)]


def _bounds(metadata: list[Any]) -> str:
    """A field's bounds in words: the check itself is the config's, whose sentence names the setting."""
    said = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    found = [
        words.format(f"{getattr(bound, name):g}")
        for bound in metadata
        for name, words in said.items()
        if getattr(bound, name, None) is not None
    ]
    text = ", ".join(found)
    return f" {text[:1].upper()}{text[1:]}." if found else ""


def _group(part: str, name: str) -> str:
    if part == "training":
        return next((title for title, names in TRAINING.items() if name in names), PARTS[part])
    return PARTS[part]


def _shown(setting: Setting, value: Any) -> Any:
    if setting.kind == "names" and not isinstance(value, str):
        return ", ".join(value)
    if setting.kind == "text":
        return "" if value is None else str(value).removesuffix(".0")
    return value


def _given(setting: Setting, value: Any) -> Any:
    """What a component holds as the config takes it."""
    if setting.kind == "text":
        return (value or "").strip() or None
    if setting.kind == "names":
        names = [name.strip() for name in (value or "").split(",") if name.strip()]
        return names[0] if names == ["all-linear"] else names
    return value
