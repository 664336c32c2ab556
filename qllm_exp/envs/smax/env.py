"""SMAX (Rutherford et al., 2023) with the rules of jaxmarl 0.2.0: allies that learn against its scripted ("heuristic") enemy.

Units on a plane move and shoot, as in the StarCraft Multi-Agent Challenge and in SMACv2. Rules, maps, starts, observations and
rewards are jaxmarl's. There are four deviations:

1. jaxmarl reports every end of an episode as "done". Here the time limit truncates.
2. The limit is 100 steps. jaxmarl compares its limit of 100 with the number of the step before it counts it, which makes 101.
3. In the global state, jaxmarl's positions are raw (0 to 32), and cooldowns fall below zero without end. Both are scaled here as
   in the observations, positions by the size of the map, cooldowns to 0 to 1: with raw ones gradients of mixers explode.
4. Copies whose episode has ended wait for the next `reset`.

jaxmarl discards the types that it draws for more enemies than allies (those enemies are marines). No map here has both drawn
types and unequal sides.

Shapes: N copies (num_envs), n allies (n_agents), E enemies, U = n + E units, A = 5 + E actions (n_actions).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.episode_generator import EpisodeGenerator
from qllm_exp.envs.layout import StateField
from qllm_exp.envs.smax import kernel
from qllm_exp.envs.smax.battle import OWN_FEATURES, UNIT_FEATURES, Battle
from qllm_exp.envs.smax.maps import FIRST_ATTACK, MAPS, MAX_STEPS
from qllm_exp.envs.smax.starts import sample_start
from qllm_exp.envs.smax.texts import describe, observation_fields, state_layout
from qllm_exp.errors import choose


@dataclass
class Config(schema.EnvConfig):
    """Options of `env=smax`; conf/env/smax.yaml explains them."""

    name: str = "smax"
    task: str = "3m"
    episode_limit: int = schema.number(MAX_STEPS, 1)
    reward: str = schema.one_of("mean", "sum")


def tasks() -> list[str]:
    """All maps, default first."""
    return list(MAPS)


def check(config: Any) -> None:
    """Raise UserError if `config.task` is not a map."""
    choose("env.task", config.task, tasks())


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """Build `num_envs` copies of the map `config.task`.

    Raises:
        UserError: see `check`.
    """
    check(config)
    return SmaxEnv(config, num_envs, seed, device)


class SmaxEnv(TeamEnv):
    """N battles on one map. The rules run through the compiled kernel on the CPU, else in torch.

    Args:
        config: the options, with a task that `check` accepts.
        num_envs: number of parallel copies.
        seed: seed of all random numbers.
        device: device of all tensors.
    """

    def __init__(self, config: Any, num_envs: int, seed: int, device: torch.device) -> None:
        self._map = MAPS[config.task]
        self.num_envs, self.device = num_envs, device
        self.episode_limit = config.episode_limit
        self.n_agents, self._n_enemies = len(self._map.allies), len(self._map.enemies)
        self.n_actions = FIRST_ATTACK + self._n_enemies
        self.obs_dim = UNIT_FEATURES * (self._map.size - 1) + OWN_FEATURES
        self.layout = state_layout(self._map)
        self.task = describe(config, self._map)
        # Each ally gets the same reward, so that the sum is a multiple of the mean.
        self._reward_scale = self.n_agents if config.reward == "sum" else 1
        compiled = device.type == "cpu" and kernel.SOURCE.available()
        self.battle = (kernel.CompiledBattle if compiled else Battle)(self._map, num_envs, device)
        self._generator = EpisodeGenerator(device)
        self._elapsed = 0
        self.seed(seed)

    def reset(self) -> Observation:
        """Start a new episode in every copy."""
        self._elapsed = 0
        return self.battle.start(*sample_start(self._map, self.num_envs, self._generator.start()))

    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n]. A unit shoots its target as soon as it is in range during the step."""
        follow = self._generator.random(self.num_envs, self._n_enemies)
        draws = self._generator.random(self.num_envs, self._map.size)
        was_playing = self.battle.playing.clone()
        observation, reward = self.battle.step(actions, follow, draws)
        self._elapsed += 1
        terminated = was_playing & ~self.battle.playing
        truncated = torch.zeros_like(terminated)
        if self._elapsed >= self.episode_limit:
            truncated = self.battle.playing.clone()
            self.battle.playing.zero_()
        return Step(*observation, reward * self._reward_scale, terminated, truncated)

    def seed(self, seed: int) -> None:
        """Seed the starts and the random numbers in battles."""
        self._generator.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return self._generator.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the generator from a `state_dict`."""
        self._generator.load_state_dict(saved)

    def episode_metrics(self) -> dict[str, Tensor]:
        """'win': [N] float32, 1 where all enemies are dead and an ally lives."""
        return {"win": self.battle.won().float()}

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """All columns of each other unit, then those of the agent's own unit."""
        return list(observation_fields(self._map, agent))
