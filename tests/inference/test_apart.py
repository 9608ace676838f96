"""DoRA: a pass a column through PEFT, and the base is the bare base again after it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.base import add_lora, load_base
from finetune.config import Lora
from finetune.prompt import Turn, template
from inference import apart
from inference.columns import BASE, Column
from inference.engine import Engine
from inference.sampling import Sampling


@pytest.fixture
def dora(tiny_source: Any, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    adapted = add_lora(load_base(tiny_source), Lora(r=4, alpha=8, dora=True))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "dora")
    return tmp_path / "dora"


def test_dora_answers_in_a_pass_of_its_own_and_says_so(tiny_model: Path, tiny_source: Any, dora: Path) -> None:
    from peft import PeftModel

    engine, columns = Engine(), [BASE, Column("tuned", dora), BASE]
    updates = list(engine.compare(str(tiny_model), None, "auto", columns, [[Turn("Name a bird.")]] * 3, Sampling(), 16))
    assert updates[-1].message == apart.NOTICE
    base, tuned, again = updates[-1].answers
    assert base.text == again.text != tuned.text and base.stop and tuned.stop and again.stop
    assert engine._loaded is not None
    chosen = template(engine._loaded.tokenizer)
    prompt = chosen.encode_prompt([Turn("Name a bird.")])
    peft = PeftModel.from_pretrained(load_base(tiny_source), dora).eval()
    said = peft.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=sorted(chosen.stop_ids)
    )
    assert tuned.text == engine._loaded.tokenizer.decode(said[0, len(prompt) :], skip_special_tokens=True).strip()


def test_the_base_is_bare_again_whatever_is_raised(tiny_base: Any, dora: Path) -> None:
    ids = torch.arange(3, 30).reshape(1, -1)
    names = [name for name, _ in tiny_base.named_modules()]
    with torch.no_grad():
        bare = tiny_base(ids).logits
        with pytest.raises(RuntimeError), apart.through_peft(tiny_base, Column("tuned", dora)):
            assert not torch.equal(tiny_base(ids).logits, bare)
            raise RuntimeError
        assert torch.equal(tiny_base(ids).logits, bare)
    weights = dora / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="can't be put on this base"), apart.through_peft(tiny_base, Column("t", dora)):
        pass
    with torch.no_grad():
        assert torch.equal(tiny_base(ids).logits, bare)
    assert [name for name, _ in tiny_base.named_modules()] == names


def test_dora_has_no_strength_between(tiny_model: Path, dora: Path) -> None:
    columns = [Column("half", dora, 0.5)]
    with pytest.raises(ValueError, match="no strength between"):
        list(Engine().compare(str(tiny_model), None, "auto", columns, [[Turn("Hi")]], Sampling(), 4))
