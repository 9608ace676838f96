"""The forgetting probe: how far each column departs from the first one on text that is no instruction.

Fine-tuning on instructions should leave the rest of the language alone. KL(first‖column) of the next-token
distributions says how far it moved, the change of the loss on the text whether that was for the worse.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.batches import Hooks
from evaluation.columns import Side, strengths
from evaluation.findings import Departure, ProbeReport
from evaluation.passes import Pass
from evaluation.probe_text import Passage, Text
from evaluation.report import OVERALL
from evaluation.stats import paired_difference
from finetune.loss import CHUNK_LOGITS, headless
from inference.lora import Placed, placed

PASSAGE_TOKENS = 512  # a longer passage is read in pieces
MOST_TOKENS = 16384  # of a text; the rest is left out


class Piece(NamedTuple):
    """Tokens of a passage; the first one is there for the second to follow on, and is not scored."""

    kind: str
    ids: list[int]


class Reading(NamedTuple):
    """A piece under one column against the first one, each [tokens]: KL, and both losses, in nats."""

    kl: Tensor
    loss_first: Tensor
    loss: Tensor


def pieces(passages: Sequence[Passage], tokenizer: Any) -> list[Piece]:
    """The passages as the model reads plain text, without a template, up to MOST_TOKENS in all."""
    found, room = [], MOST_TOKENS
    for passage in passages:
        ids: list[int] = tokenizer(passage.text).input_ids[:room]
        ids = ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
        for start in range(0, len(ids) - 1, PASSAGE_TOKENS):
            found.append(Piece(passage.kind, ids[start : start + PASSAGE_TOKENS + 1]))
        room -= len(ids)
    return found


def probe(all_passes: Sequence[Pass], read: Sequence[Piece], hooks: Hooks) -> dict[int, list[Reading]] | None:
    """What every column but the first makes of every piece; None where it was asked to stop.

    Each column reads each piece in a batch of its own, so that all see the same shape, and no difference comes from
    that. Hidden states are kept (not logits, which are some hundred times larger) until both columns are known.

    Raises:
        ValueError: a model changes its logits after the head.
    """
    hidden: dict[int, list[Tensor]] = {}
    heads: dict[int, Tensor] = {}
    columns, done = sum(len(one.columns) for one in all_passes), 0
    for places, sides, open_model in all_passes:
        with open_model() as model, headless(model) as head:
            for column, side in zip(places, sides, strict=True):
                heads[column], hidden[column] = head, []
                for piece in read:
                    if hooks.cancelled():
                        return None
                    hidden[column].append(_hidden(model, piece, side))
                    done += 1
                    hooks.on_done(done // columns)
    return {
        column: [
            _reading(piece, hidden[0][i], heads[0], hidden[column][i], heads[column]) for i, piece in enumerate(read)
        ]
        for column in range(1, columns)
    }


@torch.inference_mode()
def _hidden(model: Any, piece: Piece, side: Side) -> Tensor:
    """Last hidden states that predict the piece's tokens, [tokens, width], on the CPU."""
    ids = torch.tensor([piece.ids], device=next(model.parameters()).device)
    with placed(model, [Placed(*pair) for pair in strengths([side])]):
        states: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return states.cpu()


@torch.inference_mode()
def _reading(piece: Piece, first: Tensor, first_head: Tensor, other: Tensor, other_head: Tensor) -> Reading:
    """KL and losses of a piece, a few positions' logits at a time."""
    positions = max(1, CHUNK_LOGITS // (2 * first_head.shape[0]))
    targets = torch.tensor(piece.ids[1:], device=first_head.device)
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(first), positions):
        part = slice(start, start + positions)
        log_p = (first[part].to(first_head) @ first_head.T).float().log_softmax(-1)  # [positions, vocabulary]
        log_q = (other[part].to(other_head) @ other_head.T).float().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
        at = targets[part, None]
        parts.append((kl, -log_p.gather(1, at)[:, 0], -log_q.gather(1, at)[:, 0]))
    return Reading(*(torch.cat(column).double().cpu() for column in zip(*parts, strict=True)))


def report_on(text: Text, read: Sequence[Piece], found: dict[int, list[Reading]], labels: Sequence[str]) -> ProbeReport:
    """The departures of every column, over the whole text first, then by kind of text where there are several."""
    kinds = list(dict.fromkeys(piece.kind for piece in read))
    tokens = sum(len(piece.ids) - 1 for piece in read)
    about = f"{len(text.passages)} passages of {text.about}, {tokens} tokens"
    about += f" (the first {MOST_TOKENS})" if tokens >= MOST_TOKENS - PASSAGE_TOKENS else ""
    return ProbeReport(text=about, text_sha256=text.sha256, departures=list(_departures(read, found, labels, kinds)))


def _departures(
    read: Sequence[Piece], found: dict[int, list[Reading]], labels: Sequence[str], kinds: Sequence[str]
) -> Iterator[Departure]:
    for column, readings in found.items():
        yield departure(labels[column], OVERALL, readings)
        for kind in kinds if len(kinds) > 1 else []:
            chosen = [one for piece, one in zip(read, readings, strict=True) if piece.kind == kind]
            yield departure(labels[column], kind, chosen)


def departure(column: str, kind: str, readings: Sequence[Reading]) -> Departure:
    """Means over tokens, with intervals over the passages: the tokens of one passage lean on each other."""
    tokens = np.array([len(one.kl) for one in readings], dtype=np.float64)
    kl, first, other = (np.array([getattr(one, name).mean().item() for one in readings]) for name in Reading._fields)
    far = paired_difference(np.zeros_like(kl), kl, tokens)
    change = paired_difference(first, other, tokens)
    return Departure(
        column=column,
        kind=kind,
        passages=len(readings),
        tokens=int(tokens.sum()),
        kl=far.mean,
        kl_low=far.low,
        kl_high=far.high,
        kl_p99=float(torch.cat([one.kl for one in readings]).quantile(0.99)),
        loss_base=float(np.average(first, weights=tokens)),
        loss_column=float(np.average(other, weights=tokens)),
        loss_low=change.low,
        loss_high=change.high,
    )
