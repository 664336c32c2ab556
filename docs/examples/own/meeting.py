"""An environment from outside the package: agents on a row of cells have to meet.

An environment is a module with `Config`, `tasks`, `check` and `make`. The contract of what `make` returns is
qllm_exp/envs/base.py.
"""

import re
from dataclasses import dataclass

import torch

from qllm_exp.config.schema import EnvConfig, number
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.errors import choose

_MOVES = ("go one cell to the left", "stay", "go one cell to the right")


@dataclass
class Config(EnvConfig):
    """Options with their types and bounds; conf/env/meeting.yaml has the defaults and documents them."""

    name: str = "meeting"
    task: str = "2p"
    episode_limit: int = number(20, 1)
    cells: int = number(7, 2, 100)


def tasks() -> list[str]:
    """Names of the tasks: the number of agents."""
    return ["2p", "3p", "4p"]


def check(config: Config) -> None:
    """Raise UserError for an unknown task. Called for every run of a sweep, before anything is built."""
    choose("env.task", config.task, tasks())


def make(config: Config, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """Build `num_envs` copies of the task on a device."""
    check(config)
    return Meeting(config, num_envs, seed, device)


class Meeting(TeamEnv):
    """Each agent starts in a random cell. When all agents are in the same cell, the team is rewarded and the episode ends.

    State: the cell of each agent, [N, n]. Observation: the agent's own cell, and for each other agent, in the order of their
    indices, whether it is to the left (-1), here (0) or to the right (1), [N, n, n]. A move out of the row is not available.
    """

    n_actions = len(_MOVES)

    def __init__(self, config: Config, num_envs: int, seed: int, device: torch.device) -> None:
        players = re.match(r"\d+", config.task)
        assert players is not None, "check() has been passed"
        self.num_envs, self.device, self.n_agents = num_envs, device, int(players[0])
        self.obs_dim, self.cells, self.episode_limit = self.n_agents, config.cells, config.episode_limit
        self.reward = float(self.n_agents if config.reward == "sum" else 1)
        self.layout = StateLayout.from_fields(
            StateField("agent", agent, "cell", ("index",), 0.0, config.cells - 1.0, unit="cells")
            for agent in range(self.n_agents)
        )
        self.task = TaskDescription(
            env="meeting",
            task=config.task,
            goal=f"{self.n_agents} agents on a row of {config.cells} cells are to come together in one cell, any cell.",
            reward=f"{self.reward:g} for the team in the step in which all are in the same cell; else 0.",
            actions=_MOVES,
            episode=f"When the agents have met, or after {config.episode_limit} steps.",
            n_agents=self.n_agents,
        )
        self.generator = torch.Generator(device)
        self.seed(seed)

    def reset(self) -> Observation:
        shape = (self.num_envs, self.n_agents)
        self.steps = 0
        self.cell = torch.randint(self.cells, shape, generator=self.generator, device=self.device)
        self.over = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return Observation(*self._seen())

    def step(self, actions: torch.Tensor) -> Step:
        self.steps += 1
        self.cell = torch.where(self.over.unsqueeze(-1), self.cell, (self.cell + actions - 1).clamp(0, self.cells - 1))
        met = (self.cell == self.cell[:, :1]).all(-1) & ~self.over
        late = ~met & ~self.over & (self.steps == self.episode_limit)
        self.over = self.over | met | late
        return Step(*self._seen(), self.reward * met.float(), terminated=met, truncated=late)

    def _seen(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Observations [N, n, n], state [N, n] and available actions [N, n, 3]."""
        state = self.cell.float()
        others = [torch.cat([state[:, :i], state[:, i + 1 :]], 1) for i in range(self.n_agents)]
        side = torch.stack([(other - state[:, i : i + 1]).sign() for i, other in enumerate(others)], 1)
        available = torch.stack([self.cell > 0, self.cell >= 0, self.cell < self.cells - 1], -1)
        return torch.cat([state.unsqueeze(-1), side], -1), state, available

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, torch.Tensor]) -> None:
        self.generator.set_state(saved["generator"].cpu())
