"""Predicted memory: exact where it can be counted, and right in its direction where it can't."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from finetune import footprint, memory
from finetune.base import add_lora, load_base
from finetune.config import Lora, TrainConfig, with_settings
from finetune.footprint import predict
from finetune.memory import Device, plan
from finetune.shapes import Shapes, read_shapes, shapes_of

GIB = 2**30


@pytest.fixture(scope="module")
def tiny_shapes(tiny_source: Any) -> Shapes:
    return read_shapes(tiny_source)


@pytest.fixture(scope="module")
def seven_billion() -> Shapes:
    """Mistral-7B's, without a file of it."""
    from benchmarks.memory_cpu import architecture_of

    return shapes_of(architecture_of("mistral-7b"))


def settings(**values: Any) -> TrainConfig:
    return with_settings(TrainConfig(), values)


def test_the_base_is_counted_to_the_byte(tiny_source: Any, tiny_shapes: Shapes) -> None:
    base = load_base(tiny_source, dtype=torch.float32, trainable=True)
    states = [module.weight.quant_state for module in base.modules() if hasattr(module, "quant_state")]
    parts = [tensor for s in states for tensor in (s.absmax, s.state2.absmax, s.code, s.state2.code, s.offset)]
    buffers = sum(buffer.nbytes for buffer in base.buffers())
    loaded = base.get_memory_footprint() - buffers + sum(tensor.nbytes for tensor in parts)
    assert footprint.base_bytes(tiny_shapes, 4) == loaded


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
@pytest.mark.parametrize("dora", [False, True])
def test_the_adapter_is_counted_to_the_parameter(
    tiny_source: Any, tiny_shapes: Shapes, targets: Any, dora: bool
) -> None:
    adapted = add_lora(load_base(tiny_source), Lora(r=3, targets=targets, dora=dora))
    config = settings(r=3, targets=targets, dora=dora)
    assert footprint.adapter_parameters(config, tiny_shapes) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_8bit"])
def test_optimizer_states_are_counted_to_the_byte(tiny_source: Any, tiny_shapes: Shapes, name: str) -> None:
    import bitsandbytes

    adapted = add_lora(load_base(tiny_source), Lora(r=64))  # some tensors above 4,096 elements, some below
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    kinds = {"adamw_torch_fused": torch.optim.AdamW, "adamw_8bit": bitsandbytes.optim.AdamW8bit}
    optimizer = kinds[name](parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {"exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2"}
    found = sum(t.nbytes for p in parameters for key, t in optimizer.state[p].items() if key in kept)
    assert footprint.optimizer_bytes(settings(r=64, optimizer=name), tiny_shapes, "cpu") == found


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_saved_tensors_of_a_layer_are_counted_to_the_byte(tiny_source: Any, tiny_shapes: Shapes, targets: Any) -> None:
    base = load_base(tiny_source, dtype=torch.float32, trainable=True)
    adapted = add_lora(base, Lora(r=4, targets=targets)).train()
    tokens, saved = 96, Saved(base.model.layers[1])
    with saved.hooks():
        adapted(
            input_ids=torch.arange(tokens)[None] % 90 + 3,
            position_ids=torch.arange(tokens // 2).repeat(2)[None],
            cu_seq_lens_q=torch.tensor([0, tokens // 2, tokens], dtype=torch.int32),
            max_length_q=tokens,
        )
    a_token = footprint.saved_bytes_a_token(settings(r=4, targets=targets), tiny_shapes, torch.float32, "cpu")
    parameters = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    assert saved.bytes_besides(parameters) == tokens * a_token


class Saved:
    """Storages that autograd keeps while one layer runs."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.on, self.found, self.given = False, {}, set[int]()  # type: ignore[var-annotated]
        layer.register_forward_pre_hook(self._begin, with_kwargs=True)
        layer.register_forward_hook(self._end)

    def _begin(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        self.on = True
        self.given = {t.untyped_storage().data_ptr() for t in given["position_embeddings"]}

    def _end(self, *_: Any) -> None:
        self.on = False

    def hooks(self) -> Any:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if self.on:
                storage = tensor.untyped_storage()
                self.found[storage.data_ptr()] = storage.nbytes()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)

    def bytes_besides(self, others: set[int]) -> int:
        return sum(size for address, size in self.found.items() if address not in others | self.given)


def test_seven_billion_parameters_are_seen_without_a_weight(seven_billion: Shapes) -> None:
    assert seven_billion.parameters == 7_241_732_096
    assert footprint.adapter_parameters(settings(r=16), seven_billion) == 41_943_040
    assert footprint.base_bytes(seven_billion, 2) / GIB == pytest.approx(3.84, abs=0.01)


def test_published_peaks_of_seven_billion_parameters_are_met(seven_billion: Shapes) -> None:
    """One H100, packs of 4,096 tokens, r 16: 28.3 GiB without checkpointing and 6.6 GiB with it were measured.

    That was with a kernel that takes grouped key heads as they are; ours repeats them, and keeps more.
    """
    for checkpointing, measured in (("off", 28.3), ("on", 6.6)):
        config = settings(tokens_per_batch=4096, checkpointing=checkpointing)
        predicted = predict(config, seven_billion, torch.bfloat16, "cuda").total / GIB
        assert measured * 0.9 < predicted < measured * 1.2, checkpointing


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"tokens_per_batch": 512}, {"tokens_per_batch": 1024}),
        ({"r": 8}, {"r": 64}),
        ({"targets": ("q_proj",)}, {"targets": "all-linear"}),
        ({"checkpointing": "on"}, {"checkpointing": "off"}),
        ({"optimizer": "adamw_8bit"}, {"optimizer": "adamw_torch_fused"}),
        ({"optimizer": "paged_adamw_32bit"}, {"optimizer": "adamw_torch_fused"}),
        ({"dropout": 0.0}, {"dropout": 0.1}),
        ({"accumulation": 1}, {"accumulation": 4}),
    ],
)
def test_more_asked_is_more_needed(seven_billion: Shapes, less: dict[str, Any], more: dict[str, Any]) -> None:
    one, other = (predict(settings(**v), seven_billion, torch.bfloat16, "cuda").total for v in (less, more))
    assert one < other


def test_auto_checkpointing_is_on_only_where_memory_demands_it(seven_billion: Shapes) -> None:
    config = settings(tokens_per_batch=4096, checkpointing="auto")
    roomy = plan(config, seven_billion, torch.bfloat16, Device("cuda", 80 * GIB, 79 * GIB))
    tight = plan(config, seven_billion, torch.bfloat16, Device("cuda", 24 * GIB, 23 * GIB))
    assert (roomy.fits, roomy.checkpointing) == (True, False)
    assert (tight.fits, tight.checkpointing) == (True, True)
    assert tight.sentence.endswith("23.0 GiB are free: it fits with checkpointing.")


def test_what_does_not_fit_says_what_would(seven_billion: Shapes) -> None:
    def sentence(free: int, **values: Any) -> str:
        made = plan(settings(**values), seven_billion, torch.bfloat16, Device("cuda", free, free))
        assert not made.fits
        return made.sentence

    assert sentence(24 * GIB, tokens_per_batch=4096).endswith("set checkpointing on.")
    assert sentence(8 * GIB, tokens_per_batch=16384).endswith(("2048.", "4096."))
    assert sentence(4 * GIB).endswith("choose a smaller model, or a machine with more memory.")


def test_the_trainer_asks_for_auto(tiny_source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(checkpointing="auto")
    assert not memory.needs_checkpointing(config, tiny_source)
    monkeypatch.setattr(memory, "device", lambda: Device("cpu", GIB, 2**20))
    assert memory.needs_checkpointing(config, tiny_source)


def test_a_run_asks_for_large_pages_before_torch_is_loaded() -> None:
    look = "print('torch' in sys.modules, os.environ['THP_MEM_ALLOC_ENABLE'])"
    code = f"import os, sys; from finetune.memory import use_large_pages; use_large_pages(); {look}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "1"]


def test_a_plan_survives_json(tiny_shapes: Shapes) -> None:
    made = plan(settings(), tiny_shapes, torch.float32, Device("cpu", 8 * GIB, 8 * GIB))
    kept = json.loads(json.dumps(made.as_dict()))
    assert kept["need"]["total"] == made.need.total and kept["fits"] is True


def test_a_broken_config_is_a_sentence(tmp_path: Path) -> None:
    from finetune.model import Source

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="can't be used"):
        read_shapes(Source(tmp_path, None, "folder", ""))


def test_random_weights_train_without_files_or_a_network() -> None:
    """What the benchmark runs on a GPU, in the smallest size, on the CPU."""
    from transformers import AutoConfig

    from benchmarks.memory_cpu import random_base, train_two_steps

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 200}
    architecture = AutoConfig.for_model("llama", **sizes, num_attention_heads=4, num_key_value_heads=2)
    base = random_base(architecture, torch.float32, "cpu", packed=True)
    expected = footprint.base_bytes(shapes_of(architecture), 4)
    assert base.get_memory_footprint() == pytest.approx(expected, rel=0.15)
    config = settings(r=4, tokens_per_batch=256, steps=2)
    train_two_steps(config, base, add_lora(base, config.lora))
