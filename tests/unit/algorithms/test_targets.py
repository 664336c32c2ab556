"""Value targets against the slow, literal definition, one episode and one step at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qllm_exp.algorithms.targets import n_step, td_lambda
from qllm_exp.networks import gru_kernel


def episodes(seed: int, steps: int = 7, count: int = 5):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, steps + 1, (count,), generator=g)
    lengths[0] = steps
    mask = torch.arange(steps).unsqueeze(1) < lengths
    ends = torch.rand(count, generator=g) < 0.5  # terminated, else truncated
    terminated = torch.zeros(steps, count, dtype=torch.bool)
    terminated[lengths - 1, torch.arange(count)] = ends
    reward, value = torch.randn(steps, count, generator=g).double(), torch.randn(steps, count, generator=g).double()
    return reward, value, terminated, mask, lengths, ends


def literal_n_step(r, v, ends, length, gamma, n, t):
    m = min(n, length - t)
    total = sum(gamma**k * r[t + k] for k in range(m))
    last = t + m - 1
    return total + (0 if last == length - 1 and ends else gamma**m * v[last])


@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0, 1))
def test_n_step_is_its_definition(seed, n, gamma):
    reward, value, terminated, mask, lengths, ends = episodes(seed)
    target = n_step(reward, value, terminated, mask, gamma, n)
    for b, length in enumerate(lengths.tolist()):
        for t in range(length):
            expected = literal_n_step(reward[:, b].tolist(), value[:, b].tolist(), bool(ends[b]), length, gamma, n, t)
            assert abs(target[t, b].item() - expected) < 1e-9


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_td_lambda_is_the_weighted_sum_of_n_step_returns(seed, lam, gamma):
    """G^lambda_t = (1 - lam) sum_{n < m} lam^(n-1) G^(n)_t + lam^(m-1) G^(m)_t, with m the steps left (12.3 in Sutton & Barto)."""
    reward, value, terminated, mask, lengths, ends = episodes(seed)
    target = td_lambda(reward, value, terminated, mask, gamma, lam)
    for b, length in enumerate(lengths.tolist()):
        r, v = reward[:, b].tolist(), value[:, b].tolist()
        for t in range(length):
            left = length - t
            g = [literal_n_step(r, v, bool(ends[b]), length, gamma, n, t) for n in range(1, left + 1)]
            expected = (1 - lam) * sum(lam ** (n - 1) * g[n - 1] for n in range(1, left)) + lam ** (left - 1) * g[-1]
            assert abs(target[t, b].item() - expected) < 1e-9


@pytest.mark.parametrize("agents", [1, 3])
def test_the_compiled_returns_equal_those_of_torch(agents):
    for seed in range(5):
        reward, value, terminated, mask = (
            x.unsqueeze(-1).expand(*x.shape, agents) for x in episodes(seed, steps=23, count=6)[:4]
        )
        expected = td_lambda(reward, value, terminated, mask, 0.97, 0.6)
        compiled = gru_kernel.td_lambda(reward.float(), value.float(), terminated, mask, 0.97, 0.6)
        assert compiled is not None
        torch.testing.assert_close(compiled.double(), expected, rtol=0, atol=1e-5)


def test_tensors_that_the_compiled_returns_do_not_take_go_to_torch():
    reward, value, terminated, mask = (x.unsqueeze(-1) for x in episodes(0)[:4])
    reward, value = reward.float(), value.float()
    wide = value.expand(*value.shape[:2], 3)
    options = 0.97, 0.6
    target = td_lambda(reward, wide, terminated, mask, *options)
    expected = td_lambda(reward.double(), wide.double(), terminated, mask, *options)
    torch.testing.assert_close(target.double(), expected, rtol=0, atol=1e-5)
    learned = value.clone().requires_grad_()
    td_lambda(reward, learned, terminated, mask, *options).sum().backward()
    assert learned.grad is not None and learned.grad.any()
    with pytest.raises(TypeError):
        td_lambda(reward, value, terminated, mask.float(), *options)


def test_what_lies_in_the_padding_does_not_matter_and_its_targets_are_zero():
    reward, value, terminated, mask, _, _ = episodes(3)
    padded_reward, padded_value = (x.masked_fill(~mask, torch.nan) for x in (reward, value))
    for targets, *options in ((n_step, 0.9, 3), (td_lambda, 0.9, 0.7)):
        for dtype in (torch.float64, torch.float32):
            clean, padded = ([x.to(dtype) for x in xs] for xs in ((reward, value), (padded_reward, padded_value)))
            target = targets(*padded, terminated, mask, *options)
            assert torch.equal(target, targets(*clean, terminated, mask, *options))
            assert (target[~mask] == 0).all()


def test_truncation_bootstraps_and_termination_does_not():
    reward, value = torch.ones(1, 2), torch.full((1, 2), 10.0)
    mask, terminated = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[True, False]])
    assert n_step(reward, value, terminated, mask, 0.5, 1).tolist() == [[1.0, 6.0]]
    assert td_lambda(reward, value, terminated, mask, 0.5, 1.0).tolist() == [[1.0, 6.0]]
