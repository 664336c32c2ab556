"""Mixers: their published formulas, and the sign of dQ_tot/dQ_i."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_exp.mixers.none import Independent
from qllm_exp.mixers.qmix import Qmix
from qllm_exp.mixers.vdn import Vdn


def gradient(mixer, qs, state):
    qs = qs.clone().requires_grad_()
    return torch.autograd.grad(mixer(qs, state).sum(), qs)[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), st.sampled_from([0, 5, 64]), st.floats(0.1, 1000))
def test_qmix_is_monotone_in_every_agent(seed, n, s, hypernet, scale):
    torch.manual_seed(seed)
    mixer = Qmix(n, s, embed=7, hypernet=hypernet)
    for p in mixer.parameters():
        p.data *= 3
    assert (gradient(mixer, scale * torch.randn(4, 3, n), scale * torch.randn(4, 3, s)) >= 0).all()


def test_qmix_is_its_formula():
    torch.manual_seed(0)
    n, s, e, h = 3, 5, 4, 6
    mixer = Qmix(n, s, e, h)
    qs, state = torch.randn(n), torch.randn(s)
    first = mixer.from_state.weight @ state + mixer.from_state.bias
    h1, h2, b1, hb = first[:h], first[h : 2 * h], first[2 * h : 2 * h + e], first[2 * h + e :]
    w1 = (mixer.weights1.weight @ h1.clamp(min=0) + mixer.weights1.bias).abs().view(n, e)
    w2 = (mixer.weights2.weight @ h2.clamp(min=0) + mixer.weights2.bias).abs()
    hidden = qs @ w1 + b1
    hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
    expected = hidden @ w2 + (mixer.bias2.weight @ hb.clamp(min=0) + mixer.bias2.bias)[0]
    assert torch.allclose(mixer(qs.expand(2, 7, n), state.expand(2, 7, s)), expected.expand(2, 7), atol=1e-6)


def test_vdn_adds_and_none_hands_on():
    qs, state = torch.randn(4, 5, 3), torch.randn(4, 5, 2)
    assert torch.equal(Vdn()(qs, state), qs.sum(-1))
    assert torch.equal(Independent()(qs, state), qs) and Independent.per_agent


def test_the_state_changes_the_credit_of_qmix_only():
    torch.manual_seed(0)
    qs, first, second = torch.randn(1, 3), torch.randn(1, 4), torch.randn(1, 4)
    assert not torch.allclose(gradient(Qmix(3, 4), qs, first), gradient(Qmix(3, 4), qs, second))
    assert torch.equal(gradient(Vdn(), qs, first), torch.ones(1, 3))
