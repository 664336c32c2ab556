"""Every algorithm keeps the contract of algorithms/base.py, and each way to break it is noticed, with one line that says how."""

from collections.abc import Callable
from typing import Any

import calm
import pytest
import torch
from meeting import Config as Meeting

from qllm_exp.algorithms import make_algorithm
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.config import registry
from qllm_exp.config.load import config_class, load_run
from qllm_exp.config.schema import RunConfig
from qllm_exp.envs import TeamEnv, make_env
from qllm_exp.errors import ContractError
from qllm_exp.mixers import make_mixer
from qllm_exp.training import contract


@pytest.fixture(scope="module")
def env() -> TeamEnv:
    return make_env(config_class("env", "lbf")(episode_limit=10), 4, 0)


def config(algorithm: str) -> RunConfig:
    module = registry.find("algorithm", algorithm)
    mixer = "vdn" if module.ACCEPTS is None else module.ACCEPTS[0]
    train = {"name": "fair", "hidden": 8, "batch_episodes": 4}
    return load_run({"algorithm": {"name": algorithm}, "mixer": {"name": mixer}, "train": train})


def maker(env: TeamEnv, build: Callable[[], Any]) -> contract.AlgorithmMaker:
    return contract.AlgorithmMaker("mine", env, build)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [*registry.choices("algorithm"), "calm"])
def test_every_algorithm_keeps_the_contract(
    env: TeamEnv, name: str, check: Callable[[contract.AlgorithmMaker], list[str]]
) -> None:
    run = config(name)
    assert check(maker(env, lambda: make_algorithm(run, env, make_mixer(run.mixer, env)))) == []


class IgnoresTheMask(QLearning):
    def act(self, obs, available_actions, memory, env_step, generator):
        _, memory = super().act(obs, available_actions, memory, env_step, generator)
        return (~available_actions).long().argmax(-1), memory


class UsesGlobalRandomness(QLearning):
    def act(self, obs, available_actions, memory, env_step, generator):
        _, memory = super().act(obs, available_actions, memory, env_step, generator)
        return torch.multinomial(available_actions.flatten(0, 1).float(), 1).view(available_actions.shape[:2]), memory


class FloatActions(QLearning):
    def act(self, obs, available_actions, memory, env_step, generator):
        actions, memory = super().act(obs, available_actions, memory, env_step, generator)
        return actions.float(), memory


class MetricWithGradient(QLearning):
    def update(self, experience):
        return super().update(experience) | {"loss_again": torch.zeros((), requires_grad=True)}


class InfiniteMetric(QLearning):
    def update(self, experience):
        return super().update(experience) | {"ratio": torch.tensor(torch.inf)}


class ForgetsTheTargetNetwork(QLearning):
    def load_state_dict(self, saved):
        target = self.target.values.clone()
        super().load_state_dict(saved)
        self.target.values.copy_(target)


class LivePolicy(QLearning):
    def policy_state_dict(self):
        return {name: parameter.detach() for name, parameter in self.agents.named_parameters()}

    def load_policy_state_dict(self, saved):
        self.agents.load_state_dict(saved)


FAULTS = [
    (IgnoresTheMask, "act() chose an action that is not available: mask it with available_actions"),
    (UsesGlobalRandomness, "act() chose other actions with an equal generator"),
    (FloatActions, "act() returned actions float32 of shape [4, 3], expected int64 of shape [4, 3], i.e. [N, n]"),
    (MetricWithGradient, "update() returned metric 'loss_again' that is not a scalar tensor without gradient"),
    (InfiniteMetric, "update() returned metric 'ratio' = inf, expected a finite number"),
    (ForgetsTheTargetNetwork, "a restored algorithm learns something else: "),
    (LivePolicy, "policy_state_dict() returned tensors that an update changes later. Return copies"),
]


@pytest.mark.parametrize(("algorithm_class", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_one_line_that_says_what_is_wrong(algorithm_class: type[QLearning], message: str) -> None:
    run, env = (
        config("calm"),
        make_env(Meeting(task="3p", cells=2), 4, 0),
    )  # in two cells, one move of each agent is not available
    text = ""
    for check in contract.CHECKS:
        try:
            check(maker(env, lambda: algorithm_class(run.algorithm, run.train, env, make_mixer(run.mixer, env))))
        except ContractError as error:
            text = str(error)
            break
    assert message in text and text.startswith("algorithm=mine: ") and "\n" not in text, text


def test_the_example_is_built_by_its_module(env: TeamEnv) -> None:
    run = config("calm")
    assert isinstance(maker(env, lambda: calm.make(run, env, make_mixer(run.mixer, env))).make(), calm.Calm)
