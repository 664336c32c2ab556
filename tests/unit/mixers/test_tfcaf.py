"""The mixer that runs a credit-assignment function: its formula, its IGM gate, and what it refuses."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from qllm_exp.algorithms import make_algorithm
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.config.compose import compose_run
from qllm_exp.config.load import config_class, identity, run_name
from qllm_exp.credit.stored_function import bundled_path
from qllm_exp.envs import make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.errors import UserError
from qllm_exp.generation.sandbox import export_all
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.tfcaf import SMALLEST, Tfcaf, TrainableTfcaf, make_from_function
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.training.replay import EpisodeStorage
from qllm_exp.training.rollout import rollout
from qllm_exp.training.timer import Timer

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
    stored = SimpleNamespace(program=Signed(), check_fits=lambda env: None, check_values=lambda states: None)
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


WRITTEN = """
import torch

def credit_assignment(agents_q, global_state):
    scores = torch.stack([0.5 * global_state[:, 0], 1.5 - global_state[:, 1] / 4.0], dim=1)
    weights = 0.8 * torch.softmax(scores, dim=1) + torch.tensor([0.1, 0.2])
    return (weights * agents_q).sum(dim=1, keepdim=True) + 0.000001
"""


@pytest.fixture(scope="module")
def written():
    """A program with numbers of every kind: of products, a difference, a quotient, a tensor, and one too small to train."""
    env = make_env(MatrixConfig(), 2, 0)
    (exported,) = export_all([WRITTEN], env.n_agents, env.state_dim, 60, torch.zeros(4, env.state_dim))
    return exported.program


def test_numbers_as_constants_leave_the_values_as_they_are(written):
    lifted = written.with_literals_as_constants(SMALLEST)
    values = sorted(x for tensor in lifted.constants.values() for x in tensor.flatten().tolist())
    assert values == pytest.approx([0.1, 0.2, 0.5, 0.8, 1.5, 4.0])
    qs, states = torch.randn(64, 2), torch.randn(64, 2)
    assert torch.allclose(lifted(qs, states), written(qs, states), atol=1e-6)


@pytest.mark.parametrize("enforce", [True, False])
def test_trained_constants_have_the_gradient_of_the_formula_and_keep_their_sign_with_the_gate(written, enforce):
    mixer = TrainableTfcaf(written, affine=True, enforce=enforce)
    assert mixer.learns and all(torch.equal(theta, torch.zeros_like(theta)) for theta in mixer.parameters())
    qs, states = torch.randn(64, 2), torch.randn(64, 2)
    assert torch.allclose(mixer(qs, states), Tfcaf(written, affine=True, enforce=enforce)(qs, states), atol=1e-5)

    def q_tot(a, b, c, d, tensor):
        scores = torch.stack([a * states[:, 0], b - states[:, 1] / c], dim=1)
        weights = d * torch.softmax(scores, dim=1) + tensor
        return 2 * ((weights * qs).sum(1) + 1e-6)

    constants = [torch.tensor(x, requires_grad=True) for x in (0.5, 1.5, 4.0, 0.8, [0.1, 0.2])]
    q_tot(*constants).square().sum().backward()
    expected = sorted(g for c in constants for g in (c.grad * c if enforce else c.grad).flatten().tolist())
    mixer(qs, states).square().sum().backward()
    assert sorted(g for theta in mixer.parameters() for g in theta.grad.flatten().tolist()) == pytest.approx(
        expected, rel=1e-3
    )
    with torch.no_grad():
        for theta in mixer.parameters():
            theta.fill_(-5.0)
    trained = mixer.trained_program()
    signs = [bool((tensor > 0).all()) for tensor in trained.constants.values()]
    assert all(signs) if enforce else not any(signs)
    assert torch.allclose(Tfcaf(trained, affine=True, enforce=enforce)(qs, states), mixer(qs, states), atol=1e-4)


def test_a_function_without_numbers_has_nothing_to_train():
    env = make_env(MatrixConfig(), 2, 0)
    source = "def credit_assignment(agents_q, global_state):\n    return agents_q.mean(dim=1, keepdim=True)\n"
    (exported,) = export_all([source], env.n_agents, env.state_dim, 60, torch.zeros(4, env.state_dim))
    with pytest.raises(UserError, match="has no number to train"):
        TrainableTfcaf(exported.program, affine=True, enforce=True)


def test_target_copies_learn_apart_and_a_checkpoint_restores_the_constants():
    config = compose_run(
        ["env=lbf", "train=quick", "mixer.trainable_constants=true", "train.hidden=8", "env.num_envs=4"]
    )
    env = make_env(config.env, 4, 0)
    file = str(bundled_path("lbf", "8x8-2p-2f-coop-2s"))
    algorithm, restored = (
        make_algorithm(config, env, make_mixer(replace(config.mixer, file=file), env)) for _ in range(2)
    )
    storage = EpisodeStorage(env, 4)
    rollout(env, algorithm, storage, 0, torch.Generator().manual_seed(0), Timer(env.device))
    batch = EpisodeBatch(
        *(field.long() if index == 3 else field for index, field in enumerate(storage.fields)), storage.mask()
    )
    for _ in range(3):
        algorithm.learn(batch)
    thetas = torch.cat([theta.flatten() for theta in algorithm.mixer.parameters()])
    targets = torch.cat([theta.flatten() for theta in algorithm.target_mixer.parameters()])
    assert thetas.abs().max() > 1e-4 and 0 < targets.abs().max() < thetas.abs().max()
    restored.load_state_dict(copy.deepcopy(algorithm.state_dict()))
    for _ in range(3):
        assert algorithm.learn(batch)["loss"] == restored.learn(batch)["loss"]
    restored.load_policy_state_dict(algorithm.policy_state_dict())
    assert restored.mixer.trained_program() == algorithm.mixer.trained_program()
    assert algorithm.parameter_counts()["mixer"] == len(thetas) > 5


def test_runs_without_trainable_constants_keep_their_names():
    run = compose_run(["env=lbf", "mixer=tfcaf"])
    assert "trainable_constants" not in identity(run, "a")["mixer"]
    trained = compose_run(["env=lbf", "mixer=tfcaf", "mixer.trainable_constants=true"])
    assert identity(trained, "a")["mixer"]["trainable_constants"] and run_name(run, "a") != run_name(trained, "a")
