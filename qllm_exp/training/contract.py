"""Checks of the contract of algorithms/base.py, for any algorithm. `qllm-exp check algorithm=NAME` and the tests run them.

Each check raises ContractError with one line: what is wrong, what the contract says, and usually what to change.
Shapes: N environment copies, n agents, A actions.
"""

import copy
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import ContractError
from qllm_exp.training.replay import EpisodeStorage, Experience, ReplayBuffer
from qllm_exp.training.rollout import rollout
from qllm_exp.training.timer import Timer

CONTRACT = "the contract of Algorithm in qllm_exp/algorithms/base.py"
_ROLLOUTS = 4  # before an update


@dataclass(frozen=True)
class AlgorithmMaker:
    """Builds algorithms of one configuration.

    Attributes:
        name: name of the algorithm, for messages.
        env: the environment that they play in.
        build: builds an algorithm, whose parameters are drawn from torch's global generator.
    """

    name: str
    env: TeamEnv
    build: Callable[[], Any]

    def make(self, seed: int = 0) -> Algorithm:
        """Return a new algorithm with the parameters of a seed."""
        torch.manual_seed(seed)
        algorithm = self.build()
        if not isinstance(algorithm, Algorithm):
            raise self.broken(f"make() returned {type(algorithm).__name__}, expected an Algorithm")
        return algorithm

    def learn(self, algorithm: Algorithm, seed: int = 0) -> dict[str, Any]:
        """Play a few rollouts, perform an update, and return its metrics.

        Args:
            algorithm: acts and learns.
            seed: determines the episodes.
        """
        self.env.seed(seed)
        storage = EpisodeStorage(self.env, self.env.num_envs)
        buffer = ReplayBuffer(self.env, _ROLLOUTS * self.env.num_envs)
        generator = torch.Generator(self.env.device).manual_seed(seed)
        for _ in range(_ROLLOUTS):
            rollout(self.env, algorithm, storage, 0, generator, Timer(self.env.device))
            algorithm.observe(storage.reward, storage.mask())
            buffer.add(storage)
        torch.manual_seed(seed)
        return algorithm.update(Experience(buffer, self.env.num_envs, torch.Generator().manual_seed(seed)))

    def actions(self, algorithm: Algorithm, env_step: int | None) -> list[Tensor]:
        """Return the joint actions of three steps of an episode, and check them.

        Args:
            algorithm: acts.
            env_step: environment steps so far; None for evaluation.
        """
        env = self.env
        env.seed(1)
        generator = torch.Generator(env.device).manual_seed(0)
        observation = env.reset()
        obs, available = observation.obs, observation.available_actions
        memory = algorithm.initial_memory(env.num_envs)
        chosen = []
        for _ in range(min(3, env.episode_limit)):
            actions, memory = algorithm.act(obs, available, memory, env_step, generator)
            shape = (env.num_envs, env.n_agents)
            if not isinstance(actions, Tensor) or tuple(actions.shape) != shape or actions.dtype != torch.int64:
                kind = type(actions).__name__
                if isinstance(actions, Tensor):
                    kind = f"{str(actions.dtype).removeprefix('torch.')} of shape {list(actions.shape)}"
                raise self.broken(f"act() returned actions {kind}, expected int64 of shape {list(shape)}, i.e. [N, n]")
            inside = (actions >= 0) & (actions < env.n_actions)
            if not inside.all() or not available.gather(-1, actions.unsqueeze(-1)).all():
                raise self.broken("act() chose an action that is not available: mask it with available_actions")
            chosen.append(actions.clone())
            step = env.step(actions)
            obs, available = step.obs, step.available_actions
        return chosen

    def broken(self, problem: str) -> ContractError:
        """Return the error of an algorithm that breaks the contract."""
        return ContractError(f"algorithm={self.name}: {problem} ({CONTRACT}).")


def check_actions(maker: AlgorithmMaker) -> list[str]:
    """Actions: available, int64, determined by the generator"""
    algorithm = maker.make()
    for env_step in (0, 10**9, None):
        first, second = maker.actions(algorithm, env_step), maker.actions(algorithm, env_step)
        if any(not torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            problem = "act() chose other actions with an equal generator: draw every random number from its `generator`"
            raise maker.broken(problem)
    return []


def check_update(maker: AlgorithmMaker) -> list[str]:
    """An update: metrics, and parameters that stay finite"""
    algorithm = maker.make()
    before = algorithm.policy_state_dict()
    metrics = maker.learn(algorithm)
    for name, value in metrics.items():
        if not isinstance(value, Tensor) or value.dim() or value.requires_grad:
            raise maker.broken(
                f"update() returned metric {name!r} that is not a scalar tensor without gradient; call .detach()"
            )
        if not math.isfinite(float(value)):
            raise maker.broken(f"update() returned metric {name!r} = {float(value)}, expected a finite number")
    after = algorithm.policy_state_dict()
    if any(not torch.isfinite(parameter).all() for parameter in after.values()):
        raise maker.broken("after an update, a parameter of policy_state_dict() is NaN or infinite")
    for kind, values in (("exploration", algorithm.exploration(0)), ("parameter_counts", algorithm.parameter_counts())):
        if any(not isinstance(value, int | float) for value in values.values()):
            raise maker.broken(f"{kind}() returned {values}, expected numbers")
    if all(torch.equal(before[name], after[name]) for name in before):
        return ["an update changed no parameter of policy_state_dict()"]
    return []


def check_resume(maker: AlgorithmMaker) -> list[str]:
    """A restored state_dict continues bit for bit"""
    algorithm, restored = maker.make(0), maker.make(1)
    maker.learn(algorithm, 1)
    saved = algorithm.state_dict()
    try:
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        stored = torch.load(file, weights_only=True)
    except Exception as error:  # torch raises several kinds
        reason = str(error).strip().partition("\n")[0]
        raise maker.broken(
            f"state_dict() returned something that a checkpoint cannot hold ({reason}), expected tensors, numbers, strings, and "
            "lists and dicts of them"
        ) from None
    restored.load_state_dict(stored)
    maker.learn(algorithm, 2)
    maker.learn(restored, 2)
    expected, values = algorithm.policy_state_dict(), restored.policy_state_dict()
    different = [name for name in expected if not torch.equal(expected[name], values[name])]
    if different:
        raise maker.broken(
            f"a restored algorithm learns something else: {different[0]} differs after the next update. state_dict() must hold "
            "networks, target networks, optimisers and statistics"
        )
    return []


def check_policy(maker: AlgorithmMaker) -> list[str]:
    """A restored policy acts in the same way"""
    algorithm, other = maker.make(0), maker.make(1)
    saved = algorithm.policy_state_dict()
    copies = copy.deepcopy(saved)
    other.load_policy_state_dict(saved)
    if any(
        not torch.equal(a, b) for a, b in zip(maker.actions(algorithm, None), maker.actions(other, None), strict=True)
    ):
        raise maker.broken(
            "with the policy_state_dict() of another, it chooses other actions: it must hold all parameters of act()"
        )
    maker.learn(algorithm)
    if any(not torch.equal(saved[name], copies[name]) for name in saved):
        raise maker.broken("policy_state_dict() returned tensors that an update changes later. Return copies")
    return []


CHECKS: tuple[Callable[[AlgorithmMaker], list[str]], ...] = (check_actions, check_update, check_resume, check_policy)
