"""Merging: the right weights, a certificate that a fresh process confirms, and nothing half-made."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, read_json, tandem, tiny_run_settings, wait_for
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from finetune import merge as merging
from finetune.__main__ import main
from finetune.certificate import Certificate, reference
from finetune.config import TrainConfig, with_settings
from finetune.job import create_run
from finetune.merge import dequantized, read_updates
from finetune.merged import merge
from finetune.prompt import Turn, template
from finetune.run import Reporter, Run
from finetune.train import train
from finetune.whole import is_whole, seal

FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text, dtype = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
asked = [{"role": "user", "content": text}]
ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids
said = model.generate(ids, max_new_tokens=8)
model, nll, tokens = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), 0.0, 0
for ids_of_row, prompt_length in json.load(sys.stdin):
    row = torch.tensor([ids_of_row])
    labels = row.clone()
    labels[:, :prompt_length] = -100
    count = len(ids_of_row) - prompt_length
    with torch.no_grad():
        nll, tokens = nll + model(row, labels=labels).loss.item() * count, tokens + count
said = said[0, ids.shape[1]:].tolist()
print(json.dumps({"ids": ids[0].tolist(), "said": said, "loss": nll / tokens, "tokens": tokens}))
"""


def trained(tiny_model: Path, **changed: Any) -> Run:
    run, lock = create_run(with_settings(TrainConfig(), tiny_run_settings(tiny_model) | changed), "test")
    reporter = Reporter(run)
    train(run, reporter)
    reporter.end()
    os.close(lock)
    return run


@pytest.fixture
def run(tiny_model: Path, runs: Path) -> Run:
    return trained(tiny_model)


@pytest.mark.parametrize(
    "changed", [{}, {"rslora": True, "r": 8}, {"dora": True, "targets": ["q_proj", "up_proj"]}], ids=str
)
def test_the_weights_are_those_of_peft(tiny_model: Path, runs: Path, changed: dict[str, Any]) -> None:
    """Onto the base's own weights and onto dequantized ones, against PEFT's own merge into the same dense weights."""
    run = trained(tiny_model, **changed)
    parts = merging.gather(run, print)
    for onto in merging.ONTO:
        dense = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        if onto == "nf4":
            for name, parameter in dense.named_parameters():
                if name in parts.four_bit:
                    parameter.data = dequantized(parameter.data)
        theirs = PeftModel.from_pretrained(dense, run.adapter).merge_and_unload().state_dict()
        folder = run.path / f"test-{onto}"
        merging.write_merged(parts, onto, folder)
        ours = load_file(folder / "model.safetensors")
        assert ours.keys() == load_file(tiny_model / "model.safetensors").keys()
        for name, tensor in ours.items():
            assert torch.allclose(tensor, theirs[name], atol=1e-5), (onto, name)


def test_a_merged_model_keeps_its_certificate_in_plain_transformers(tiny_model: Path, run: Run) -> None:
    folder, certificate = merge(run, "auto", None, 8, print)
    assert folder == run.path / "merged" and is_whole(folder)
    assert Certificate.model_validate(read_json(folder / "certificate.json")) == certificate
    assert {(v.onto, v.precision) for v in certificate.variants} == {
        (onto, precision) for onto in ("bf16", "nf4") for precision in ("dense", "nf4")
    }
    dense = {v.onto: v for v in certificate.variants if v.precision == "dense"}
    assert certificate.chosen == min(dense.values(), key=lambda v: v.loss).onto
    # What it was trained against, dequantized, is the reference but for rounding; in fp32 that is next to nothing.
    assert dense["nf4"].mean_kl < 1e-6 < dense["bf16"].mean_kl
    assert dense["nf4"].loss == pytest.approx(certificate.reference_loss, abs=1e-4)
    assert dense["nf4"].greedy_agreement == 1.0
    assert certificate.reference_loss < certificate.base_loss
    assert f"{dense[certificate.chosen].loss:.4f}" in (folder / "README.md").read_text()
    assert [path.name for path in run.path.glob(".merging-*")] == []

    text, parts = "Name a bird.", merging.gather(run, print)
    rows = json.dumps([(example.ids, example.prompt_length) for example in reference(parts, 8).examples])
    command = [sys.executable, "-c", FRESH, str(folder), text, certificate.computed_in]
    done = subprocess.run(command, input=rows, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    fresh = json.loads(done.stdout.splitlines()[-1])
    assert fresh["tokens"] == certificate.tokens
    assert fresh["loss"] == pytest.approx(dense[certificate.chosen].loss, abs=1e-3)
    assert fresh["ids"] == parts.template.encode_prompt([Turn(text)])
    assert fresh["said"]


def test_a_killed_merge_leaves_nothing_that_looks_whole(run: Run) -> None:
    command = [sys.executable, "-m", "finetune", "merge", run.id, "--rows", "8"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: any(run.path.glob(".merging-*/*/model.safetensors")))
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert not (run.path / "merged").exists()
    done = tandem("finetune", "merge", run.id, "--rows", "8", "--onto", "bf16")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["onto"] == "bf16"
    assert is_whole(run.path / "merged") and not any(run.path.glob(".merging-*"))


def test_bad_input_is_one_sentence_and_nothing_is_lost(
    run: Run, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(sentence: str, *arguments: str) -> None:
        before = {path.name for path in run.path.iterdir()}
        capsys.readouterr()
        assert main(["merge", run.id, *arguments]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence in said
        assert {path.name for path in run.path.iterdir()} == before

    refused("exists and holds something else", "--to", str(tmp_path))
    refused("There is no folder", "--to", str(tmp_path / "no" / "such"))
    refused("--rows must be at least 1", "--rows", "0")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1000})())
        refused("make room, or name another folder with --to")
    facts = read_json(run.path / "facts.json")
    (run.path / "facts.json").write_text(json.dumps(facts | {"model_sha256": "0" * 64}))
    refused("a merge with them would be no model")
    (run.path / "facts.json").write_text(json.dumps(facts))
    weights = run.adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused("has no whole adapter")
    sealed_again(run.adapter)
    refused("is broken")
    foreign = {name.replace("layers.1", "layers.7"): t for name, t in load_file_bytes(whole, tmp_path).items()}
    save_file(foreign, weights)
    sealed_again(run.adapter)
    refused("it has no weight model.layers.7")


def sealed_again(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    seal(folder)


def load_file_bytes(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter.safetensors"
    file.write_bytes(content)
    return load_file(file)


@pytest.mark.parametrize("choice", ["dolly", "chat"])
@pytest.mark.parametrize("with_bos", [False, True])
def test_the_exported_template_gives_the_ids_of_training(tiny_source: Any, choice: Any, with_bos: bool) -> None:
    from finetune.base import load_tokenizer

    tokenizer = load_tokenizer(tiny_source)
    if with_bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    chosen = template(tokenizer, choice)
    ours = chosen.encode_prompt([Turn("Hi, you", "", "Good day"), Turn("  Name a bird.  ", "A list: gull, tern.")])
    context = "A list: gull, tern." if choice == "chat" else "Input:\nA list: gull, tern."
    messages = [
        {"role": "user", "content": "Hi, you"},
        {"role": "assistant", "content": "Good day"},
        {"role": "user", "content": f"Name a bird.\n\n{context}"},
    ]
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=chosen.as_jinja(), add_generation_prompt=True, tokenize=False
    )
    assert tokenizer(theirs, add_special_tokens=False).input_ids == ours


def test_an_adapter_of_another_kind_is_refused(run: Run) -> None:
    config = run.adapter / "adapter_config.json"
    config.write_text(json.dumps(read_json(config) | {"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="is no LoRA"):
        read_updates(run.adapter)
