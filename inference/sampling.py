"""The next token of every row, with noise that the rows share: differences come from the models, not the dice."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class Sampling(BaseModel):
    """How a token is chosen. Temperature 0 is greedy, and then only the repetition penalty does anything.

    The order is that of transformers: penalty, temperature, top-k, top-p, min-p.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    temperature: float = Field(default=0.0, ge=0, le=5)
    """0 always takes the likeliest token; higher is more surprising."""
    top_k: int = Field(default=0, ge=0)
    """Only this many of the likeliest tokens are drawn from. 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens that together reach this probability are drawn from."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Only tokens with at least this share of the likeliest token's probability are drawn from."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    """Above 1, tokens that the prompt or the answer already has become less likely."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Same seed, same answers."""


class Sampler:
    """Chooses tokens step by step; owns the random stream of one answer.

    Args:
        sampling: how.
        device: where the logits are.
        prompts: token ids of each row, for the repetition penalty.
    """

    def __init__(self, sampling: Sampling, device: torch.device, prompts: Sequence[Sequence[int]] = ()) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device).manual_seed(sampling.seed)
        self.prompts = prompts
        self.seen: Tensor | None = None  # [rows, vocabulary], true for tokens that a row has

    def next(self, logits: Tensor) -> Tensor:
        """Token ids [rows] for logits [rows, vocabulary].

        Drawing is by the Gumbel-max trick: argmax(log p + g) with g = -log(-log u) follows p (Gumbel 1954; Maddison
        et al. 2014, arXiv:1411.0030). One g of [vocabulary] serves all rows.
        """
        if self.sampling.repetition_penalty == 1:
            return self._choose(logits)
        if self.seen is None:
            self.seen = torch.zeros_like(logits, dtype=torch.bool)
            for row, ids in zip(self.seen, self.prompts, strict=False):
                row[torch.tensor(ids, device=logits.device, dtype=torch.long)] = True
        tokens = self._choose(penalised(logits, self.seen, self.sampling.repetition_penalty))
        self.seen.scatter_(1, tokens[:, None], True)
        return tokens

    def _choose(self, logits: Tensor) -> Tensor:
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        log_p = truncated((logits.float() / self.sampling.temperature).log_softmax(-1), self.sampling)
        uniform = torch.rand(logits.shape[-1], generator=self.generator, device=logits.device)
        return (log_p - (-uniform.log()).log()).argmax(-1)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of seen tokens divided by the penalty where positive, multiplied where negative (CTRL, Keskar et al.
    2019, arXiv:1909.05858, with the sign's case as in transformers)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def truncated(log_p: Tensor, sampling: Sampling) -> Tensor:
    """log_p [rows, vocabulary] with -inf where a token is not to be drawn; what is left is not normalised again,
    which the Gumbel-max trick does not need."""
    if 0 < sampling.top_k < log_p.shape[-1]:
        log_p = _top_k(log_p, sampling.top_k).log_softmax(-1)  # top-p is a share of what top-k left
    if sampling.top_p < 1:
        log_p = _nucleus(log_p, sampling.top_p)
    if sampling.min_p > 0:
        log_p = _min_p(log_p, sampling.min_p)
    return log_p


def _top_k(log_p: Tensor, top_k: int) -> Tensor:
    """-inf outside the top_k likeliest tokens (Fan et al. 2018, arXiv:1805.04833); ties with the last one stay."""
    return log_p.masked_fill(log_p < log_p.topk(top_k, -1).values[..., -1:], -torch.inf)


def _nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """-inf outside the smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    ordered, index = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of all that is likelier; 0 for the first
    return log_p.scatter(-1, index, ordered.masked_fill(before >= top_p, -torch.inf))


def _min_p(log_p: Tensor, min_p: float) -> Tensor:
    """-inf where p < min_p · max p (Nguyen et al. 2024, arXiv:2407.01082)."""
    return log_p.masked_fill(log_p < log_p.amax(-1, keepdim=True) + torch.tensor(min_p).log().item(), -torch.inf)
