"""Every mixer keeps the contract of mixers/base.py, and each way to break it is noticed, with one line that says how."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import attentive
import pytest
import torch
from torch import nn

from qllm_exp.config import registry
from qllm_exp.config.load import config_class
from qllm_exp.credit.probe_states import task_states
from qllm_exp.credit.stored_function import bundled_path
from qllm_exp.envs import TeamEnv, make_env
from qllm_exp.errors import ContractError
from qllm_exp.mixers import Mixer, contract, make_mixer


@pytest.fixture(scope="module")
def env() -> TeamEnv:
    return make_env(config_class("env", "lbf")(), 4, 0)


def maker(env: TeamEnv, build: Callable[[], Any]) -> contract.MixerMaker:
    return contract.MixerMaker("mine", env, task_states(env, contract.STATES), build)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.choices("mixer"))
def test_every_mixer_keeps_the_contract(
    env: TeamEnv, name: str, check: Callable[[contract.MixerMaker], list[str]]
) -> None:
    config = config_class("mixer", name)()
    if name == "tfcaf":
        config = replace(config, file=str(bundled_path(env.task.env, env.task.task)))
    assert check(maker(env, lambda: make_mixer(config, env))) == []


def test_the_documented_example_keeps_the_contract(env: TeamEnv) -> None:
    subject = maker(env, lambda: attentive.make(attentive.Config(), env))
    assert all(check(subject) == [] for check in contract.CHECKS)


# Broken mixers: a working one with a single fault


class Weighted(Mixer):
    """A weighted sum of the Qs; the weights depend on the state."""

    monotone, learns = True, True

    def __init__(self, env: TeamEnv) -> None:
        super().__init__()
        self.weights = nn.Linear(env.state_dim, env.n_agents)

    def forward(self, agent_qs, state):
        return (self.weights(state).abs() * agent_qs).sum(-1)


class KeepsAnAxis(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs, state).unsqueeze(-1)


class KeepsTheAgents(Weighted):
    def forward(self, agent_qs, state):
        return self.weights(state).abs() * agent_qs


class WrongDtype(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs, state).double()


class NotANumber(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs, state) / 0 * 0


class FallsWhereAQRises(Weighted):
    def forward(self, agent_qs, state):
        return (self.weights(state) * agent_qs).sum(-1)


class NoGradient(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs.detach(), state).detach()


class MixesRows(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs, state - state.mean(0, keepdim=True))


class MixesSteps(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs, state - state.mean(1, keepdim=True) if state.dim() > 2 else state)


class IsRandom(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs, state) * torch.rand(())


class WritesIntoTheQs(Weighted):
    def forward(self, agent_qs, state):
        return super().forward(agent_qs.clamp_(min=-1) if not agent_qs.requires_grad else agent_qs, state)


class DeclaresNothing(Weighted):
    monotone = None


class ClaimsNotToLearn(Weighted):
    learns = False


class HidesAWeight(Weighted):
    """Its random scale is neither a parameter nor a buffer."""

    def __init__(self, env):
        super().__init__(env)
        self.scale = torch.rand(())

    def forward(self, agent_qs, state):
        return self.scale * super().forward(agent_qs, state)


class HasNoWeightOfErrors(Weighted):
    def __init__(self, env):
        super().__init__(env)
        self.unrestricted = Weighted(env)


class WrongLoss(Weighted):
    def auxiliary_loss(self, joint, state, q_tot):
        return q_tot.square().mean()


FAULTS = [
    (KeepsAnAxis, "forward() returned shape [5, 1], expected [5], i.e. [B]"),
    (KeepsTheAgents, "forward() returned shape [5, 2], expected [5], i.e. [B]"),
    (WrongDtype, "forward() returned dtype float64, expected float32"),
    (NotANumber, "forward() returned NaN or infinite values in states of the task"),
    (FallsWhereAQRises, "monotone=True, but dQ_tot/dQ_i is -"),
    (NoGradient, "forward() gives no gradient for the individual Qs: do not detach them"),
    (MixesRows, "Q_tot of a time step must not depend on the others"),
    (MixesSteps, "forward() gives other values for all steps in one row, [1, B * T, n]"),
    (IsRandom, "forward() gives other values the second time"),
    (WritesIntoTheQs, "forward() writes into its arguments"),
    (DeclaresNothing, "it does not declare monotone=True or monotone=False"),
    (ClaimsNotToLearn, "learns=False, but it has trainable parameters"),
    (
        HidesAWeight,
        "with the parameters of another, it gives other values: register what is random as parameter or buffer",
    ),
    (HasNoWeightOfErrors, "it has an unrestricted mixer, but does not implement td_weight()"),
    (WrongLoss, "auxiliary_loss() returned shape [], expected [5], i.e. [B]"),
]


def first_fault(env: TeamEnv, build: Callable[[], Any]) -> str:
    """The message of the first check that the mixer does not pass."""
    for check in contract.CHECKS:
        try:
            check(maker(env, build))
        except ContractError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(("mixer_class", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_one_line_that_says_what_is_wrong(
    env: TeamEnv, mixer_class: type[Weighted], message: str
) -> None:
    text = first_fault(env, lambda: mixer_class(env))
    assert message in text and text.startswith("mixer=mine: ") and "\n" not in text, text


def test_a_mixer_without_a_fault_passes(env: TeamEnv) -> None:
    assert first_fault(env, lambda: Weighted(env)) == ""


def test_what_is_not_a_mixer_is_named(env: TeamEnv) -> None:
    assert "make() returned Linear, expected a Mixer" in first_fault(env, lambda: nn.Linear(2, 1))
