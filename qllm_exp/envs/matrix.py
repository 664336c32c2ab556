"""Repeated matrix games: one state, one payoff for the whole team, and a best joint action guarded by penalties.

Climbing and penalty are the games of Claus and Boutilier (1998) in the form of Papoudakis et al. (2021), who repeat
them for 25 steps. Their climbing game exchanges the two agents; their penalty game reverses the order of the second
agent's actions (the original has the penalty k = -K at (a0, a2) and (a2, a0), and the best payoff 10 at (a0, a0) and
(a2, a2)).
"""

from collections.abc import Sequence
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
    """Options of the matrix games."""

    name: str = "matrix"
    task: str = "climbing"
    reward: str = schema.one_of("mean", "sum")


_N_AGENTS = 2
_N_ACTIONS = 3


def _penalty_game(penalty: int) -> list[list[int]]:
    """Payoffs of the penalty game with k = -penalty."""
    return [[-penalty, 0, 10], [0, 2, 0], [10, 0, -penalty]]


# payoff[action of agent 0][action of agent 1]
PAYOFFS = {
    "climbing": [[11, -30, 0], [-30, 7, 0], [0, 6, 5]],
    "penalty-0": _penalty_game(0),
    "penalty-25": _penalty_game(25),
    "penalty-50": _penalty_game(50),
    "penalty-75": _penalty_game(75),
    "penalty-100": _penalty_game(100),
}


def tasks() -> list[str]:
    """All games: 'climbing', and 'penalty-K' with K in 0, 25, 50, 75, 100."""
    return list(PAYOFFS)


def check(config: Any) -> None:
    """Raise UserError if `config.task` is not a game of this module."""
    choose("env.task", config.task, tasks())


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """Build `num_envs` copies of the game `config.task`. The game is deterministic, so `seed` has no effect.

    Raises:
        UserError: see `check`.
    """
    check(config)
    return MatrixEnv(config, num_envs, device)


class MatrixEnv(TeamEnv):
    """The game `config.task`, repeated `episode_limit` times.

    State: the last joint action; -1 for each agent at the start of an episode.
    Observation: the constant 1, as in Papoudakis et al. The payoff never depends on the past, so there is nothing to
    observe.
    Reward: the payoff under `reward=mean`; the sum of both agents' payoffs, twice as much, under `reward=sum`.

    Args:
        config: the options, with a task that `check` accepts.
        num_envs: number of parallel copies.
        device: device of all tensors.
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
        self.layout = StateLayout.from_fields(
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
        reward_text = "both agents' payoffs added, so twice the payoff" if scale > 1 else "the payoff"
        self.task = TaskDescription(
            env="matrix",
            task=config.task,
            goal=(
                "Two agents choose one of three actions each, at the same time, and both get the same payoff, which "
                "depends on the joint action alone. They are to find the joint action with the highest payoff; other "
                "joint actions next to it are punished when only one of the two agents plays its part."
            ),
            reward=f"Each step: {reward_text}. Payoff[action of agent 0][action of agent 1] = {PAYOFFS[config.task]}.",
            actions=tuple(f"choose action {action}" for action in range(_N_ACTIONS)),
            episode=f"After {self.episode_limit} steps; the game is the same at each of them.",
            n_agents=_N_AGENTS,
            monotonic=False,
        )

    def reset(self) -> Observation:
        """Start a new episode in every copy."""
        self._steps = 0
        state = torch.full((self.num_envs, _N_AGENTS), -1.0, device=self.device)
        return Observation(self._obs(), state, self._all_available())

    def step(self, actions: Tensor) -> Step:
        """Play the joint actions [N, 2]."""
        self._steps += 1
        payoff = self._payoff[actions[:, 0], actions[:, 1]]
        if self._steps > self.episode_limit:
            payoff = torch.zeros_like(payoff)
        terminated = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        truncated = torch.full_like(terminated, self._steps == self.episode_limit)
        return Step(self._obs(), actions.to(torch.float32), self._all_available(), payoff, terminated, truncated)

    def seed(self, seed: int) -> None:
        """Do nothing: the game is deterministic."""

    def state_dict(self) -> dict[str, Any]:
        """An empty dict: all episodes are alike."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Do nothing: all episodes are alike."""

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """The constant."""
        return [StateField("agent", agent, "constant", ("constant",), 1.0, 1.0)]

    def _obs(self) -> Tensor:
        """The constant observations, [N, n, 1]."""
        return torch.ones(self.num_envs, _N_AGENTS, 1, device=self.device)

    def _all_available(self) -> Tensor:
        """Mask of available actions, [N, n, A]: all of them, always."""
        return torch.ones(self.num_envs, _N_AGENTS, _N_ACTIONS, dtype=torch.bool, device=self.device)
