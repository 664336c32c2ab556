"""The contract of an environment: N copies of one cooperative task, stepped together, tensors in and out.

Shapes: N parallel copies (num_envs), n agents (n_agents), A actions (n_actions).
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qllm_exp.envs.layout import StateLayout, TaskDescription


class Observation(NamedTuple):
    """What is seen at the start of an episode."""

    obs: Tensor  # [N, n, obs_dim] float32, each agent's own view
    state: Tensor  # [N, state_dim] float32, the global state
    available_actions: Tensor  # [N, n, A] bool, at least one True per agent


class Step(NamedTuple):
    """What one joint action leads to. Terminated and truncated are never merged."""

    obs: Tensor  # [N, n, obs_dim] float32
    state: Tensor  # [N, state_dim] float32
    available_actions: Tensor  # [N, n, A] bool
    reward: Tensor  # [N] float32, one reward for the team
    terminated: Tensor  # [N] bool, the task itself ended: no value beyond this step
    truncated: Tensor  # [N] bool, a time limit cut the episode: value targets bootstrap through it


class TeamEnv(ABC):
    """N copies of a cooperative task that start their episodes together.

    `reset` starts an episode in all copies. A copy whose episode has ended (terminated or truncated) is out of play
    until the next `reset`: what `step` returns for it is finite, has reward 0 and is not to be used.
    All tensors are on `device`; returned tensors are the caller's and are not written to afterwards.
    """

    num_envs: int
    n_agents: int
    n_actions: int
    obs_dim: int
    episode_limit: int  # steps after which an episode is truncated
    device: torch.device
    layout: StateLayout
    task: TaskDescription

    @property
    def state_dim(self) -> int:
        return self.layout.size

    @abstractmethod
    def reset(self) -> Observation:
        """Start a new episode in every copy."""

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n] int64, each of them available."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Restart the environment's own randomness: equal seeds give equal episodes from the next `reset` on."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the episodes after the next `reset`: tensors, numbers, strings, and dicts of them."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict`, as if never interrupted. Only valid before a `reset`."""

    def episode_metrics(self) -> dict[str, Tensor]:
        """AuxiliaryUpdate figures of the episodes just ended, [N] each, e.g. {'win': ...}; read before the next `reset`."""
        return {}

    def close(self) -> None:  # noqa: B027 - most environments hold nothing that needs closing
        """Free processes and files. Safe to call twice."""
