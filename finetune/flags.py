"""Flags of the commands that take a run's settings: every setting is one, with its help from the field."""

import argparse
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from finetune import config


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--preset or --config to start from, and a flag for each setting."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", help=f"start from one of: {', '.join(config.preset_names())}")
    start.add_argument("--config", type=Path, help="start from a TOML file, or a run's config.json")
    for name, info in config.fields().items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, metavar="X", default=argparse.SUPPRESS, help=info.description)


def chosen(args: argparse.Namespace) -> config.TrainConfig:
    """What the flags say, over the preset or the file. Raises ValueError with a sentence."""
    start = config.TrainConfig()
    if args.preset:
        start = config.preset(args.preset)
    elif args.config:
        start = config.read(args.config)
    given = {name: _value(name, getattr(args, name)) for name in config.fields() if hasattr(args, name)}
    return config.with_settings(start, given)


def _value(name: str, text: str) -> Any:
    """A flag's text as the setting's kind: "none" for empty where that is allowed, commas for a list of names."""
    annotation = config.fields()[name].annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if text.lower() == "none" and type(None) in options:
        return None
    if any(get_origin(option) is tuple for option in options) and text != "all-linear":
        return [part.strip() for part in text.split(",")]
    return text
