"""A judge on this machine. It does not write a reply: of the three that are allowed, it gives the likeliest.

So a small model, which would not keep to the format, still says something, and nothing it says is malformed.
"""

from typing import Any

import torch

from evaluation.cache import Value
from evaluation.findings import Counts
from evaluation.judge_prompt import LINES, SYSTEM, Question, user_text
from finetune.base import context_limit, load_base, load_tokenizer
from finetune.loss import headless
from finetune.model import Source
from finetune.prompt import Turn, template


class LocalJudge:
    """One model, one question at a time."""

    address = ""

    def __init__(self, name: str, source: Source, base: Any = None) -> None:
        """`base`: the model, if it is in memory already. Raises ValueError where its tokenizer can't tell A from B."""
        self.model = name
        self.source = source
        self.counts = Counts()
        self.trouble = ""
        self.has_given_up = False
        tokenizer = load_tokenizer(source)
        self._template = template(tokenizer)
        self._limit = context_limit(source)
        lines = [tokenizer(line, add_special_tokens=False).input_ids for line in LINES.values()]
        same = next(i for i, at in enumerate(zip(*lines, strict=False)) if len(set(at)) > 1)
        self._before, self._next = lines[0][:same], [line[same] for line in lines]
        if len(set(self._next)) < len(lines):
            raise ValueError(
                f"{self.model} can't be a judge: its tokenizer splits the verdicts in no way that is clear."
            )
        self._base = base if base is not None else load_base(source)

    def close(self) -> None:
        """Let the model go."""
        self._base = None

    @torch.inference_mode()
    def ask(self, question: Question) -> Value | None:
        """Its choice, or None where the question is too long for it."""
        ids = [*self._template.encode_prompt([Turn(user_text(question))], SYSTEM), *self._before]
        self.counts.calls += 1
        self.counts.prompt_tokens += len(ids)
        if len(ids) > self._limit:
            self.trouble = f"a question of {len(ids)} tokens is longer than the {self._limit} that it takes"
            return None
        batch = torch.tensor([ids], device=next(self._base.parameters()).device)
        with headless(self._base) as head:
            hidden = self._base(input_ids=batch, use_cache=False).logits[0, -1]
        logits = (head[self._next] @ hidden).tolist()
        choice, _ = max(zip(LINES, logits, strict=True), key=lambda pair: pair[1])
        return {"choice": choice, "reason": ""}
