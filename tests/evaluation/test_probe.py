"""The forgetting probe: text that is no instruction, under base and tuned."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.batches import Hooks
from evaluation.columns import Side
from evaluation.passes import Pass
from evaluation.probe import PASSAGE_TOKENS, Reading, departure, pieces, probe, report_on
from evaluation.probe_text import KIND, OWN, OWN_TEXT, Passage, read_text
from evaluation.verdict import probe_sentence
from inference.lora import Placed, load_adapter, placed


def test_it_is_a_plain_kl_and_exactly_nothing_at_strength_0(
    tiny_base: Any, tiny_tokenizer: Any, tiny_adapter: Path
) -> None:
    text = read_text(OWN)
    read = pieces([*text.passages[:3], Passage("code", "x = 1\n" * 700)], tiny_tokenizer)
    adapter = load_adapter(tiny_adapter, tiny_base)
    sides = [Side(None, 0.0), Side(adapter, 0.0), Side(adapter, 1.0)]
    told: list[int] = []
    found = probe([Pass([0, 1, 2], sides, partial(nullcontext, tiny_base))], read, Hooks(told.append))
    assert found is not None and told[-1] == len(read) and max(len(piece.ids) for piece in read) == PASSAGE_TOKENS + 1
    for piece, none, tuned in zip(read, found[1], found[2], strict=True):
        assert none.kl.abs().max() == 0 and torch.equal(none.loss, none.loss_first)
        logs = []
        for strength in (0.0, 1.0):
            with torch.no_grad(), placed(tiny_base, [Placed(adapter, [strength])]):
                ids = torch.tensor([piece.ids], device=tiny_base.device)
                logs.append(tiny_base(ids).logits[0, :-1].cpu().double().log_softmax(-1))
        kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        assert (tuned.kl.cpu() - kl).abs().max() < 1e-5 and tuned.kl.mean() > 1e-4
        loss = -logs[1].gather(1, torch.tensor(piece.ids[1:])[:, None])[:, 0]
        assert (tuned.loss.cpu() - loss).abs().max() < 1e-5
    report = report_on(text, read, found, ["base", "0", "tuned"])
    whole, *kinds = [d for d in report.departures if d.column == "tuned"]
    assert whole.kl_low < whole.kl < whole.kl_high < whole.kl_p99
    assert whole.tokens == sum(d.tokens for d in kinds) == sum(len(piece.ids) - 1 for piece in read)
    assert whole.kl == pytest.approx(sum(d.kl * d.tokens for d in kinds) / whole.tokens)
    assert [d.kl for d in report.departures if d.column == "0"] == [0.0] * 3
    asked = iter([False, False, True])
    halfway = Hooks(cancelled=lambda: next(asked))
    assert probe([Pass([0], sides[:1], partial(nullcontext, tiny_base))], read, halfway) is None


def test_means_are_over_tokens_and_said_in_words() -> None:
    def reading(kl: float, loss: float, tokens: int) -> Reading:
        kls, ones = torch.full((tokens,), kl).double(), torch.ones(tokens).double()
        return Reading(kls, 2 * ones, loss * ones)

    d = departure("tuned", "all", [reading(0.1, 2.5, 10), reading(0.3, 2.5, 30), *[reading(0.2, 2.5, 20)] * 8])
    assert d.kl == pytest.approx(0.21) and (d.loss_base, d.loss_column, d.tokens) == (2.0, 2.5, 200)
    assert "tuned departs from base by 0.210 nats a token" in probe_sentence(d, "base")
    assert "its loss there rose by 0.500 (2.000 → 2.500" in probe_sentence(d, "base")
    same = departure("tuned", "all", [reading(0.1, 2 + (-1) ** i / 10, 10) for i in range(10)])
    assert "did not change detectably" in probe_sentence(same, "base")


def test_the_text_is_ours_or_a_file(tmp_path: Path) -> None:
    own = read_text(OWN)
    assert 30 <= len(own.passages) <= 40 and not any(KIND.search(passage.text) for passage in own.passages)
    assert {passage.kind for passage in own.passages} == {"encyclopedic", "prose", "code", "dialogue", "news"}
    assert OWN_TEXT.read_text().isascii()
    file = tmp_path / "text.md"
    file.write_text("# A heading\n\nOne paragraph\nof two lines.\n\n---\n\n\nAnother.\n")
    assert [p.text for p in read_text(str(file)).passages] == [
        "# A heading",
        "One paragraph\nof two lines.",
        "---",
        "Another.",
    ]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="can't be read as UTF-8"):
        read_text(str(file))
    file.write_text("\n\n")
    with pytest.raises(ValueError, match="There is no text"):
        read_text(str(file))
