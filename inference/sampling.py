"""The next token of every row, with noise that the rows share: differences come from the models, not the dice."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class Sampling(BaseModel):
    """How a token is chosen. Temperature 0 is greedy, and then the rest does nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    temperature: float = Field(default=0.0, ge=0, le=5)
    """0 always takes the likeliest token; higher is more surprising."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens that together reach this probability are drawn from."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Same seed, same answers."""


class Sampler:
    """Chooses tokens step by step; owns the random stream of one answer."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def next(self, logits: Tensor) -> Tensor:
        """Token ids [rows] for logits [rows, vocabulary].

        Drawing is by the Gumbel-max trick: argmax(log p + g) with g = -log(-log u) follows p (Gumbel 1954; Maddison
        et al. 2014, arXiv:1411.0030). One g of [vocabulary] serves all rows.
        """
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        log_p = (logits.float() / self.sampling.temperature).log_softmax(-1)
        if self.sampling.top_p < 1:
            log_p = _nucleus(log_p, self.sampling.top_p)
        uniform = torch.rand(logits.shape[-1], generator=self.generator, device=logits.device)
        return (log_p - (-uniform.log()).log()).argmax(-1)


def _nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """-inf outside the smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    ordered, index = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of all that is likelier; 0 for the first
    return log_p.scatter(-1, index, ordered.masked_fill(before >= top_p, -torch.inf))
