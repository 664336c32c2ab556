"""The stochastic policy against torch's own distribution over the available actions alone."""

import pytest
import torch

from qllm_exp.algorithms.masked_categorical import MaskedCategorical


@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0])
def test_it_is_the_distribution_over_the_available_actions(floor):
    g = torch.Generator().manual_seed(0)
    logits, available = 3 * torch.randn(200, 5, generator=g), torch.rand(200, 5, generator=g) < 0.5
    available[:, 2] = True
    policy = MaskedCategorical(logits, available, floor)
    for row, which in enumerate(available):
        allowed = which.nonzero().squeeze(-1)
        probs = (1 - floor) * logits[row, allowed].double().softmax(-1) + floor / len(allowed)
        reference = torch.distributions.Categorical(probs=probs)
        torch.testing.assert_close(policy.probs[row, allowed].double(), reference.probs, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(policy.entropy[row].double(), reference.entropy(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(policy.log_probs[row, allowed].double(), reference.logits, atol=1e-6, rtol=1e-5)
        assert not policy.probs[row, ~which].any() and policy.best[row] == allowed[reference.probs.argmax()]


def test_the_gradient_goes_through_the_share_above_the_floor():
    """d log pi(a) / d z_b = (1 - floor) p_a (1[a = b] - p_b) / pi(a), p the softmax over the available actions."""
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, generator=g)).double().requires_grad_()
    available = torch.tensor([True, False, True, True, False])
    p = torch.where(available, logits.detach(), -torch.inf).softmax(-1)
    for a in (0, 2, 3):
        policy = MaskedCategorical(logits, available, 0.4)
        (slope,) = torch.autograd.grad(policy.log_prob(torch.tensor(a)), logits)
        expected = 0.6 * p[a] * (torch.eye(5)[a] - p) / (0.6 * p[a] + 0.4 / 3)
        torch.testing.assert_close(slope, expected.double())


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_figures_and_gradients_are_finite_whatever_is_available_and_however_large_the_logits(floor):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [5.0, 1.0, 2.0]], requires_grad=True)
    available = torch.tensor([[False, True, False], [True, True, True], [False, False, False]])
    policy = MaskedCategorical(logits, available, floor)
    assert policy.log_prob(torch.tensor([0, 1, 2])).isfinite().all() and policy.probs[0].tolist() == [0, 1, 0]
    torch.testing.assert_close(policy.probs[2], torch.full((3,), 1 / 3))
    (1e6 * policy.entropy.sum() + policy.log_prob(torch.tensor([1, 2, 0])).sum()).backward()
    assert logits.grad.isfinite().all() and not logits.grad[0].any()
    large = torch.autograd.grad(1e6 * MaskedCategorical(logits, available).entropy.sum(), logits)[0]
    assert large.isfinite().all()


def test_samples_come_as_often_as_they_are_probable_and_from_the_generator_alone():
    logits, available = torch.tensor([0.5, 3.0, -1.0, 1.0]), torch.tensor([True, False, True, True])
    policy = MaskedCategorical(logits.expand(40_000, 4), available.expand(40_000, 4))
    drawn = policy.sample(torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / 40_000
    expected = torch.tensor([0.5, -torch.inf, -1.0, 1.0]).softmax(-1)
    assert shares[1] == 0 and (shares - expected).abs().max() < 0.01
    assert torch.equal(drawn, policy.sample(torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, policy.sample(torch.Generator().manual_seed(1)))


def test_drawing_actions_takes_no_gradient_away():
    """d H / d z_a = -p_a (log p_a + H), and d p_b / d z_a = p_b (1[a = b] - p_a)."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=g, requires_grad=True)
    policy = MaskedCategorical(logits, torch.ones(4, 5, dtype=torch.bool))
    policy.sample(g)
    p = logits.detach().softmax(-1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    of_entropy, of_first = (
        torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (policy.entropy.sum(), policy.probs[:, 0].sum())
    )
    torch.testing.assert_close(of_entropy, -p * (p.log() + entropy))
    torch.testing.assert_close(of_first, p[:, :1] * (torch.eye(5)[0] - p))
