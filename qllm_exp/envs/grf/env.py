"""Google Research Football (Kurach et al., AAAI 2020, arXiv 1907.11180): academy scenarios in the real engine.

The engine runs in a worker process (process.py, worker.py); this file is the TeamEnv in front of it.

Agents: all of our players except the goalkeeper, who is an agent only under `goalkeeper=true`
(academy_3_vs_1_with_keeper has 4 agents with the goalkeeper and 3 without). The two counterattacks have eleven players a
side; there the agents are the four attackers, as in the published runs (Li et al., NeurIPS 2021), whatever `goalkeeper`
is. All other players are controlled by the engine's built-in AI. An agent controls the same player for the whole episode.

Observation of an agent: gfootball's simple115v2, 115 numbers. All agents see the whole pitch; their observations differ
only in columns 97-107, the controlled player. Global state: the contents of simple115v2 once, without the columns of
players that the scenario does not have.

Reward: gfootball rewards each agent separately. Every agent gets +1 for a goal of our team and -1 for a goal of the
opponents. With `rewards=scoring,checkpoints` the agent that has the ball also gets 0.1 for each of ten circles around
the opponents' goal that it enters for the first time, and a goal of our team pays every agent the circles that it has
not entered. An episode that ends with a goal of our team therefore pays each agent 2.0. `reward=sum` adds up the agents'
rewards, like the published GRF runs of QLLM: with n agents a goal is worth 2n. `reward=mean` divides that by n: a goal
is worth 2.
"""

import importlib.util
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step
from qllm_exp.envs.grf.process import WorkerError, WorkerProcess
from qllm_exp.envs.grf.worker import ACTIONS, ACTIVE, MODE, OBS_DIM, PLAYERS, ScenarioInfo
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription, numbered_field
from qllm_exp.envs.simulator import SimulatorEnv
from qllm_exp.errors import UserError, choose
from qllm_exp.runs.versions import library_version, source_hash


@dataclass
class Config(schema.EnvConfig):
    """Options of Google Research Football."""

    name: str = "grf"
    task: str = "academy_3_vs_1_with_keeper"
    episode_limit: int = schema.number(150, 1)
    workers: int = schema.number(0, 0, 1024, identity=False)
    goalkeeper: bool = True
    rewards: str = schema.one_of("scoring,checkpoints", "scoring")
    reward: str = schema.one_of("mean", "sum")
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 16, "cuda": 16}
    built_when_planned: ClassVar[bool] = False


ENGINE_VERSION = "2.10.2+headless.2"  # what launch/install_grf.sh installs; worker.py calls a function that it adds
# The academy scenarios of gfootball 2.10.2; the list to use when it is not installed.
_ACADEMY = (
    "academy_3_vs_1_with_keeper",
    "academy_corner",
    "academy_counterattack_easy",
    "academy_counterattack_hard",
    "academy_empty_goal",
    "academy_empty_goal_close",
    "academy_pass_and_shoot_with_keeper",
    "academy_run_pass_and_shoot_with_keeper",
    "academy_run_to_score",
    "academy_run_to_score_with_keeper",
    "academy_single_goal_versus_lazy",
)
_ATTACKERS = {"academy_counterattack_easy": 4, "academy_counterattack_hard": 4}
_ROLES = {
    "GK": "goalkeeper",
    "CB": "centre back",
    "LB": "left back",
    "RB": "right back",
    "DM": "defensive midfielder",
    "CM": "central midfielder",
    "LM": "left midfielder",
    "RM": "right midfielder",
    "AM": "attacking midfielder",
    "CF": "centre forward",
}
_ACTION_TEXTS = {
    "idle": "go on as before",
    "long_pass": "long pass towards where the player is heading",
    "high_pass": "high pass, over opponents",
    "short_pass": "short pass",
    "shot": "shoot at the opponents' goal",
    "sprint": "start sprinting; lasts until released",
    "release_direction": "stop running in the direction chosen before",
    "release_sprint": "stop sprinting",
    "sliding": "sliding tackle, without the ball",
    "dribble": "start dribbling, ball close to the foot; lasts until released",
    "release_dribble": "stop dribbling",
}
_RUN_TEXT = "run in this direction; lasts until another direction or release_direction"
_OWNERS = ("nobody", "our_team", "opponents")
_MODES = ("normal", "kick_off", "goal_kick", "free_kick", "corner", "throw_in", "penalty")
_PITCH_UNITS = "pitch units: x from -1, our goal line, to 1, the opponents'; y from -0.42, the top, to 0.42"
_SPEED_UNITS = "pitch units per step"


def tasks() -> list[str]:
    """The academy scenarios of the installed gfootball, or of 2.10.2 when none is installed."""
    folder = _gfootball_folder()
    if folder is None:
        return list(_ACADEMY)
    return sorted(file.stem for file in (folder / "scenarios").glob("academy_*.py"))


def check(config: Config) -> None:
    """Raise UserError if this build of gfootball is not installed or has no scenario `config.task`."""
    choose("env.task", config.task, tasks())
    if _gfootball_folder() is None or not _is_installed("gfootball_engine"):
        raise UserError(f"env=grf needs the football engine, which is not installed. {_how_to_install()}")
    if (installed := library_version("gfootball")) != ENGINE_VERSION:
        raise UserError(
            f"env=grf needs the football engine {ENGINE_VERSION}; {installed or 'another build'} is installed. "
            f"{_how_to_install()}"
        )


def make(config: Config, num_envs: int, seed: int, device: torch.device) -> "FootballEnv":
    """Build `num_envs` matches of the scenario `config.task`.

    Raises:
        UserError: see `check`; also if the engine does not load.
    """
    check(config)
    try:
        return FootballEnv(config, num_envs, seed, device)
    except WorkerError as error:
        if not error.loading:
            raise
        raise UserError(f"env=grf: the football engine does not load. {_how_to_install()}\n{error}") from error


def _how_to_install() -> str:
    """Return what to type to install the engine for this Python: from this checkout, or from the source of the package."""
    script = Path("launch", "install_grf.sh")
    checkout = Path(__file__).parents[3]
    python = shlex.quote(sys.executable)
    if not (checkout / script).exists():  # an installed package has neither the script nor the Makefile
        return f"It is compiled from the source of qllm_exp: download that, and in its folder type: {script} {python}"
    if Path(sys.prefix).resolve() == (checkout / ".venv").resolve():
        return "Type: make grf"
    return f"Type: {shlex.quote(str(checkout / script))} {python}"


def versions(config: Any) -> dict[str, str]:
    """The version of gfootball, and a hash of the compiled engine: builds of one version may differ in their rounding."""
    spec = importlib.util.find_spec("gfootball_engine") if _is_installed("gfootball_engine") else None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    engine = "".join(source_hash(folder.rglob("*.so"), folder) for folder in folders)
    return {"gfootball": library_version("gfootball"), "football_engine": engine}


class FootballEnv(SimulatorEnv):
    """N football matches, played by the threads of a worker process.

    A match does not depend on the thread that plays a step of it, so results do not depend on their number. The lowest bit
    of the engine's seed also decides which team moves first.

    Args:
        config: the options, with a task that `check` accepts.
        num_envs: number of matches.
        seed: seed of the engines.
        device: device of all tensors.

    Raises:
        WorkerError: the worker process died; names it and the cause. Also raised by `reset` and `step`, which then close
            the environment.
    """

    def __init__(self, config: Config, num_envs: int, seed: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self._mean_reward = config.reward == "mean"
        self.worker = WorkerProcess(
            num_envs,
            config.workers or len(os.sched_getaffinity(0)),
            scenario=config.task,
            goalkeeper=config.goalkeeper,
            attackers=_ATTACKERS.get(config.task),
            checkpoints="checkpoints" in config.rewards,
            limit=config.episode_limit,
        )
        scenario = self._scenario = self.worker.scenario_info
        self.n_agents, self.n_actions, self.obs_dim = len(scenario.agents), len(ACTIONS), OBS_DIM
        self.episode_limit = min(config.episode_limit, scenario.duration)
        columns, fields = zip(*_state_fields(scenario), strict=True)
        self.layout = StateLayout.from_fields(fields)
        self._columns = np.concatenate([np.atleast_1d(field_columns) for field_columns in columns])
        self.task = _describe(config, scenario, self.episode_limit)
        self.seed(seed)

    def reset(self) -> Observation:
        """Start a new episode in every match."""
        self.worker.reset(np.array(self._next_seeds()))
        return Observation(*self._observe())

    def step(self, actions: Tensor) -> Step:
        """Play the joint actions [N, n] in the matches whose episode has not ended."""
        self.worker.step(actions.cpu().numpy())
        arrays = self.worker.arrays
        reward = arrays.rewards.mean(1) if self._mean_reward else arrays.rewards.sum(1)
        obs, state, available = self._observe()
        terminated, truncated = self._tensor(arrays.terminated), self._tensor(arrays.truncated)
        return Step(obs, state, available, self._tensor(reward), terminated, truncated)

    def episode_metrics(self) -> dict[str, Tensor]:
        """'win': [N], 1 where our team scored more goals than the opponents; 'score': [N], the difference."""
        scored, conceded = self._tensor(self.worker.arrays.goals.T).float()
        return {"win": (scored > conceded).float(), "score": scored - conceded}

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """The columns of simple115v2."""
        return list(_observation_fields(self._scenario, agent))

    def close(self) -> None:
        """Stop the worker process."""
        self.worker.close()

    def _observe(self) -> tuple[Tensor, Tensor, Tensor]:
        """Current obs [N, n, 115], state [N, state_dim] and available actions [N, n, 19]."""
        obs = self.worker.arrays.obs
        available = torch.ones(self.num_envs, self.n_agents, self.n_actions, dtype=torch.bool, device=self.device)
        return self._tensor(obs), self._tensor(obs[:, 0, self._columns]), available


def _is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _gfootball_folder() -> Path | None:
    """The folder of gfootball, without importing it (which would load gym, OpenCV and the engine); None if missing."""
    if not _is_installed("gfootball"):
        return None
    spec = importlib.util.find_spec("gfootball")
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _state_fields(scenario: ScenarioInfo) -> Iterator[tuple[Any, StateField]]:
    """Yield the fields of the state, each preceded by its columns in simple115v2."""
    for entity, index, player, team_start in _players(scenario):
        position = team_start + 2 * player
        direction = position + 2 * PLAYERS
        yield np.r_[position : position + 2], _position(entity, index, "position")
        yield np.r_[direction : direction + 2], _direction(entity, index, "direction")
    ball = 8 * PLAYERS
    columns = (np.r_[ball : ball + 2], ball + 2, np.r_[ball + 3 : ball + 5], ball + 5)
    yield from zip(columns, _ball_fields("ball", None, ""), strict=True)
    yield np.r_[ball + 6 : ACTIVE.start], _one_of("match", None, "ball_owner", _OWNERS)
    yield np.r_[MODE], _one_of("match", None, "mode", _MODES)


def _observation_fields(scenario: ScenarioInfo, agent: int) -> Iterator[StateField]:
    """Yield the fields of simple115v2, as an agent observes it.

    Args:
        scenario: whose players have names; the columns of further ones are -1.
        agent: index of the agent.
    """
    nobody = {-1.0: "the scenario has no further players"}
    for team_start in (0, 4 * PLAYERS):
        names = [
            f"{entity}_{index}"
            for entity, index, _, start in sorted(_players(scenario), key=lambda row: row[2])
            if start == team_start
        ]
        side = "our" if team_start == 0 else "their"
        for quantity, field_of in (("position", _position), ("direction", _direction)):
            for name in names:
                yield field_of("agent", agent, f"sees_{name}_{quantity}")
            missing = 2 * (PLAYERS - len(names))
            if missing:
                field = numbered_field("agent", agent, f"missing_{side}_{quantity}s", missing, -1.0, -1.0)
                yield replace(field, special=nobody)
    yield from _ball_fields("agent", agent, "sees_ball_")
    yield _one_of("agent", agent, "sees_ball_owner", _OWNERS)
    controlled = tuple(f"player_{player}" for player in range(PLAYERS))
    yield _one_of("agent", agent, "controls", controlled)
    yield _one_of("agent", agent, "sees_mode", _MODES)


def _players(scenario: ScenarioInfo) -> Iterator[tuple[str, int, int, int]]:
    """Yield kind, index, the engine's number in its team and the team's first column in simple115v2, for each player."""
    teammates = [player for player in range(len(scenario.roles)) if player not in scenario.agents]
    groups = (
        ("agent", scenario.agents, 0),
        ("teammate", teammates, 0),
        ("opponent", range(scenario.opponents), 4 * PLAYERS),
    )
    for entity, players, team_start in groups:
        for index, player in enumerate(players):
            yield entity, index, player, team_start


def _position(entity: str, index: int | None, name: str) -> StateField:
    return StateField(entity, index, name, ("x", "y"), -math.inf, math.inf, _PITCH_UNITS)


def _direction(entity: str, index: int | None, name: str) -> StateField:
    return StateField(entity, index, name, ("x", "y"), -math.inf, math.inf, _SPEED_UNITS)


def _ball_fields(entity: str, index: int | None, prefix: str) -> Iterator[StateField]:
    """Yield the fields of the ball: position, height, direction, climb."""
    yield _position(entity, index, f"{prefix}position")
    yield StateField(entity, index, f"{prefix}height", ("z",), 0.0, math.inf, "metres above the ground")
    yield _direction(entity, index, f"{prefix}direction")
    yield StateField(entity, index, f"{prefix}climb", ("z",), -math.inf, math.inf, "metres per step")


def _one_of(entity: str, index: int | None, name: str, choices: tuple[str, ...]) -> StateField:
    """A field of which one column is 1."""
    return StateField(entity, index, name, choices, 0.0, 1.0, special={0.0: "no", 1.0: "yes"}, one_hot=True)


def _describe(config: Config, scenario: ScenarioInfo, episode_limit: int) -> TaskDescription:
    """Describe the task in words."""
    roles = [_ROLES[scenario.roles[player]] for player in scenario.agents]
    agents = "; ".join(f"agent {i} is our {role}" for i, role in enumerate(roles))
    teammates = len(scenario.roles) - len(scenario.agents)
    goal = (
        f"Football on a pitch seen from above: our team attacks to the right, towards the goal at x = 1, y = 0 (between "
        f"y = -0.044 and 0.044). Score a goal before the episode ends. Our team has {len(scenario.roles)} players, the "
        f"opponents have {scenario.opponents}; opponent 0 is their goalkeeper. {agents[0].upper()}{agents[1:]}. "
    )
    if teammates:
        goal += f"The game itself plays the other {teammates} of our team (teammates) and the opponents."
    else:
        goal += "The game itself plays the opponents."
    reward = "Every agent gets +1 when our team scores and -1 when the opponents do."
    if "checkpoints" in config.rewards:
        reward += (
            " The agent that has the ball also gets 0.1 for each of ten circles around the opponents' goal (radius 0.99, "
            "0.90, ..., 0.19) that it carries the ball into for the first time in the episode, at most 1 in all; when "
            "our team scores, every agent gets what it has not collected of that 1."
        )
    reward += f" The team reward is the {config.reward} of the agents' rewards."
    ends = ["a goal"]
    if scenario.ends_out_of_play:
        ends.append("the ball out of play or a foul")
    if scenario.ends_on_turnover:
        ends.append("the opponents winning the ball")
    episode = f"Ends with {', or '.join(ends)}. Cut off after {episode_limit} steps of 0.1 s."
    return TaskDescription(
        env="grf",
        task=config.task,
        goal=goal,
        reward=reward,
        actions=tuple(f"{name}: {_ACTION_TEXTS.get(name, _RUN_TEXT)}" for name in ACTIONS),
        episode=episode,
        n_agents=len(scenario.agents),
    )
