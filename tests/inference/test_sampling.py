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


def test_top_k_draws_from_the_k_likeliest() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    assert draws(logits, Sampling(temperature=1.0, top_k=2), 400).unique().tolist() == [1, 2]
    assert draws(logits, Sampling(temperature=1.0, top_k=1), 50).unique().tolist() == [1]
    assert draws(logits, Sampling(temperature=2.0, top_k=9), 400).unique().tolist() == [0, 1, 2, 3]


def test_min_p_draws_from_what_is_not_much_less_likely() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert draws(logits, Sampling(temperature=1.0, min_p=0.25), 600).unique().tolist() == [0, 1, 2]
    assert draws(logits, Sampling(temperature=1.0, min_p=0.61), 100).unique().tolist() == [0]


def test_marginals_after_the_cuts_are_those_of_a_plain_multinomial_over_what_is_left() -> None:
    """top-k 4 leaves 0.4, 0.3, 0.2, 0.08; top-p 0.9 of those leaves three; min-p 0.6 of 0.4 two: 4 to 3."""
    logits = torch.tensor([[0.02, 0.2, 0.4, 0.3, 0.08]]).log()
    count = 20_000
    three = draws(logits, Sampling(temperature=1.0, top_k=4, top_p=0.9, seed=2), count)[:, 0].bincount(minlength=5)
    expected = torch.tensor([0.2, 0.4, 0.3]) / 0.9 * count
    assert three[[0, 4]].sum() == 0
    assert ((three[1:4] - expected) ** 2 / expected).sum().item() < 13.82  # 99.9 % point at 2 degrees of freedom
    two = draws(logits, Sampling(temperature=1.0, top_k=4, min_p=0.6, seed=2), count)[:, 0].bincount(minlength=5)
    expected = torch.tensor([4 / 7, 3 / 7]) * count
    assert two[[0, 1, 4]].sum() == 0
    assert ((two[2:4] - expected) ** 2 / expected).sum().item() < 10.83  # 1 degree of freedom


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, prompts = torch.randn(2, 50), [[3, 7, 7], [9, 1, 4]]
    sampler = Sampler(Sampling(repetition_penalty=1.7), CPU, prompts)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)
    ids = torch.tensor(prompts)
    for _ in range(20):
        expected = theirs(ids, logits.clone()).argmax(-1)
        assert torch.equal(sampler.next(logits), expected)
        ids = torch.cat([ids, expected[:, None]], 1)
    assert len(set(ids[0].tolist())) > 5  # a fixed set of logits, and yet it goes on to other tokens
