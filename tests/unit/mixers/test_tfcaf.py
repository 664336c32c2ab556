"""The mixer that runs a credit-assignment function: its formula, its IGM gate, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch

from qllm_exp.config.load import config_class
from qllm_exp.credit.stored_function import bundled_path
from qllm_exp.envs import make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.errors import UserError
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.mixers.tfcaf import Tfcaf, make_from_function

IGM = ("auto", "enforce", "relax")


class Signed:
    """f = s_0 q_0 - q_1 / 2 + s_1: one weight has the sign of the state, the other is negative."""

    def is_affine(self, states):
        return True

    def __call__(self, q, s):
        return (s[:, 0] * q[:, 0] - 0.5 * q[:, 1] + s[:, 1]).unsqueeze(1)

    def weights_and_bias(self, s):
        return torch.stack([s[:, 0], torch.full_like(s[:, 0], -0.5)], 1), s[:, 1:2]


class Product:
    """f = q_0 q_1: not affine."""

    def __call__(self, q, s):
        return (q[:, 0] * q[:, 1]).unsqueeze(1)


def gradient(mixer, qs, state):
    qs = qs.clone().requires_grad_()
    return torch.autograd.grad(mixer(qs, state).sum(), qs)[0]


def test_q_tot_is_n_times_the_function():
    qs, state = torch.randn(4, 5, 2), torch.randn(4, 5, 2)
    expected = 2 * Signed()(qs.view(-1, 2), state.view(-1, 2)).view(4, 5)
    assert torch.allclose(Tfcaf(Signed(), affine=True, enforce=False)(qs, state), expected, atol=1e-6)
    product = Tfcaf(Product(), affine=False, enforce=False)
    assert torch.allclose(product(qs, state), 2 * qs[..., 0] * qs[..., 1])
    assert torch.allclose(gradient(product, qs, state), 2 * qs.flip(-1))


def test_the_gate_mutes_negative_contributions_and_keeps_the_others():
    qs, state = torch.randn(50, 2), torch.randn(50, 2)
    free = gradient(Tfcaf(Signed(), affine=True, enforce=False), qs, state)
    gated = gradient(Tfcaf(Signed(), affine=True, enforce=True), qs, state)
    assert (free < 0).any() and torch.equal(gated, free.clamp(min=0))
    assert Tfcaf(Signed(), affine=True, enforce=True).monotone


def test_the_gate_refuses_what_has_no_weights():
    with pytest.raises(UserError, match=r"mixer\.igm=relax"):
        Tfcaf(Product(), affine=False, enforce=True)


@pytest.mark.parametrize("env_name", ["lbf", "mpe", "pettingzoo"])
def test_bundled_functions_are_affine_and_monotone_on_states_of_their_task(env_name):
    env = make_env(config_class("env", env_name)(), 8, 0)
    mixer = make_mixer(TfcafConfig(file=str(bundled_path(env.task.env, env.task.task))), env)
    assert mixer.affine and mixer.enforce and not list(mixer.parameters())
    state = env.reset().state
    assert (gradient(mixer, torch.randn(8, env.n_agents), state) >= 0).all()


def test_auto_takes_what_the_task_declares():
    stored = SimpleNamespace(program=Signed(), check_fits=lambda env: None)
    matrix, lbf = make_env(MatrixConfig(), 2, 0), make_env(LbfConfig(), 2, 0)
    gates = {(env.task.env, igm): make_from_function(stored, igm, env).enforce for env in (matrix, lbf) for igm in IGM}
    assert gates == {
        ("matrix", "auto"): False,
        ("matrix", "enforce"): True,
        ("matrix", "relax"): False,
        ("lbf", "auto"): True,
        ("lbf", "enforce"): True,
        ("lbf", "relax"): False,
    }


def test_a_function_for_another_task_or_none_at_all_is_refused():
    env = make_env(MatrixConfig(), 2, 0)
    with pytest.raises(UserError, match="has 2 agents and a state of 2 columns"):
        make_mixer(TfcafConfig(file=str(bundled_path("lbf", "8x8-2p-2f-coop-2s"))), env)
    with pytest.raises(UserError, match=r"llm=bundled, or mixer\.file"):
        make_mixer(TfcafConfig(), env)
