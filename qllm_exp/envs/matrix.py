"""Repeated matrix games: one state, one payoff for the whole team, and a best joint action guarded by penalties.

Climbing and penalty are the games of Claus and Boutilier (1998), in the form in which Papoudakis et al. (2021) repeat
them for 25 steps: climbing with the two agents exchanged, penalty with the second agent's actions in reverse order
(the original has its penalty k = -K at (a0, a2) and (a2, a0), the best payoff 10 at (a0, a0) and (a2, a2)).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.errors import choose


@dataclass
class Config(schema.EnvConfig):
    name: str = "matrix"
    task: str = "climbing"
    reward: str = schema.one_of("mean", "sum")


_N_AGENTS = 2
_N_ACTIONS = 3


def _penalty(size: int) -> list[list[int]]:
    return [[-size, 0, 10], [0, 2, 0], [10, 0, -size]]


# payoff[action of agent 0][action of agent 1]
PAYOFFS = {
    "climbing": [[11, -30, 0], [-30, 7, 0], [0, 6, 5]],
    **{f"penalty-{size}": _penalty(size) for size in (0, 25, 50, 75, 100)},
}


def tasks() -> list[str]:
    """climbing, and penalty-K with K in 0, 25, 50, 75, 100."""
    return list(PAYOFFS)


def check(config: Any) -> None:
    """UserError when there is no such task."""
    choose("env.task", config.task, tasks())


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """`num_envs` copies of the game `config.task`; nothing in it is random, so the seed changes nothing."""
    check(config)
    return MatrixEnv(config, num_envs, device)


class MatrixEnv(TeamEnv):
    """The game `config.task`, repeated `episode_limit` times.

    State: the last joint action, -1 for each agent at first. Observation: the constant 1, as in Papoudakis et al.:
    the payoff never depends on the past, so that the agents have nothing to see.
    Reward: the payoff, under `reward=mean`; the two agents' payoffs added, so twice that, under `reward=sum`.
    """

    n_agents = _N_AGENTS
    n_actions = _N_ACTIONS
    obs_dim = 1

    def __init__(self, config: Any, num_envs: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self.episode_limit = config.episode_limit
        scale = _N_AGENTS if config.reward == "sum" else 1
        self._payoff = scale * torch.tensor(PAYOFFS[config.task], dtype=torch.float32, device=device)
        self._steps = 0
        self.layout = StateLayout.of(
            StateField(
                "agent",
                agent,
                "last_action",
                ("index",),
                -1.0,
                _N_ACTIONS - 1.0,
                unit="action index",
                special={-1.0: "no action yet"},
            )
            for agent in range(_N_AGENTS)
        )
        worth = "both agents' payoffs added, so twice the payoff" if scale > 1 else "the payoff"
        self.task = TaskDescription(
            env="matrix",
            task=config.task,
            goal=(
                "Two agents choose one of three actions each, at the same time, and both get the same payoff, which "
                "depends on the joint action alone. They are to find the joint action with the highest payoff; other "
                "joint actions next to it are punished when only one of the two agents plays its part."
            ),
            reward=f"Each step: {worth}. Payoff[action of agent 0][action of agent 1] = {PAYOFFS[config.task]}.",
            actions=tuple(f"choose action {action}" for action in range(_N_ACTIONS)),
            episode=f"After {self.episode_limit} steps; the game is the same at each of them.",
            n_agents=_N_AGENTS,
            monotonic=False,
        )

    def reset(self) -> Observation:
        self._steps = 0
        state = torch.full((self.num_envs, _N_AGENTS), -1.0, device=self.device)
        return Observation(self._obs(), state, self._all_available())

    def step(self, actions: Tensor) -> Step:
        self._steps += 1
        payoff = self._payoff[actions[:, 0], actions[:, 1]]
        if self._steps > self.episode_limit:
            payoff = torch.zeros_like(payoff)
        terminated = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        truncated = torch.full_like(terminated, self._steps == self.episode_limit)
        return Step(self._obs(), actions.to(torch.float32), self._all_available(), payoff, terminated, truncated)

    def seed(self, seed: int) -> None:
        """Nothing is random."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Every episode starts alike: there is nothing to restore."""

    def _obs(self) -> Tensor:
        return torch.ones(self.num_envs, _N_AGENTS, 1, device=self.device)

    def _all_available(self) -> Tensor:
        return torch.ones(self.num_envs, _N_AGENTS, _N_ACTIONS, dtype=torch.bool, device=self.device)
