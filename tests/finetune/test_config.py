import json
from pathlib import Path

import pytest

from finetune.config import PRESETS, TrainConfig, fields, from_mapping, preset, preset_names, read, with_settings


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.rglob("*.toml")))
def test_every_preset_is_valid_and_survives_being_kept(name: str, tmp_path: Path) -> None:
    config = preset(name)
    kept = tmp_path / "config.json"
    kept.write_text(json.dumps({"config": config.model_dump()}))
    assert read(kept) == config


def test_every_setting_is_explained_and_has_a_name_of_its_own() -> None:
    leaves = [
        leaf
        for name, info in TrainConfig.model_fields.items()
        for leaf in (getattr(info.annotation, "model_fields", None) or [name])
    ]
    assert len(leaves) == len(set(leaves)) == len(fields())
    assert all(info.description for info in fields().values())


def test_a_setting_is_found_by_its_leaf() -> None:
    config = with_settings(preset("quick-demo"), {"steps": 7, "r": 8, "model": "mistral-7b"})
    assert (config.training.steps, config.lora.r, config.model) == (7, 8, "mistral-7b")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"training": {"steps": 0}}, "steps: input should be greater than or equal to 1 (given: 0)."),
        ({"trainning": {}}, "trainning: there is no such setting."),
        ({"rows": "many"}, "rows: input should be a valid integer"),
        ({"holdout": {"test_fraction": 0.6, "validation_fraction": 0.5}}, "must leave rows to train on"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        from_mapping(values)
    assert "\n" not in str(error.value)
    assert sentence in str(error.value)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError) as error:
        preset("slow-demo")
    assert all(name in str(error.value) for name in preset_names())
