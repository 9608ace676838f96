import torch

from inference.sampling import Sampler, Sampling

CPU = torch.device("cpu")


def draws(logits: torch.Tensor, sampling: Sampling, count: int) -> torch.Tensor:
    sampler = Sampler(sampling, CPU)
    return torch.stack([sampler.next(logits) for _ in range(count)])  # [count, rows]


def test_greedy_takes_the_likeliest() -> None:
    assert draws(torch.tensor([[0.0, 3.0, 1.0]]), Sampling(), 5).unique().tolist() == [1]


def test_marginals_are_those_of_a_plain_multinomial() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    temperature, count = 1.3, 20_000
    seen = draws(logits, Sampling(temperature=temperature, seed=1), count)[:, 0].bincount(minlength=4)
    expected = (logits[0] / temperature).softmax(0) * count
    chi_square = ((seen - expected) ** 2 / expected).sum().item()
    assert chi_square < 16.27  # 99.9 % point at 3 degrees of freedom


def test_rows_share_the_noise_and_a_seed_repeats() -> None:
    logits = torch.randn(1, 500).repeat(2, 1)
    one = draws(logits, Sampling(temperature=1.0, seed=5), 50)
    assert torch.equal(one[:, 0], one[:, 1])
    assert torch.equal(one, draws(logits, Sampling(temperature=1.0, seed=5), 50))
    assert not torch.equal(one, draws(logits, Sampling(temperature=1.0, seed=6), 50))


def test_top_p_draws_from_the_likeliest_alone() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert draws(logits, Sampling(temperature=1.0, top_p=0.7), 400).unique().tolist() == [0, 1]
    assert draws(logits, Sampling(temperature=1.0, top_p=0.45), 400).unique().tolist() == [0]
