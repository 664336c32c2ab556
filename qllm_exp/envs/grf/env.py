"""Google Research Football (Kurach et al., AAAI 2020, arXiv 1907.11180): academy scenarios in the real engine.

The engine plays in worker processes (_grf_pool.py, _grf_worker.py); this file is the TeamEnv in front of them.

Agents. All of our players but the goalkeeper, who is an agent too under `goalkeeper=true` (then 4 agents in
academy_3_vs_1_with_keeper, 3 without). The two counterattacks have eleven players a side; there the agents are the four
attackers, as in the published runs (Li et al., NeurIPS 2021), whatever `goalkeeper` says. Everybody else is played by
the engine's built-in AI. An agent controls the same player for the whole episode.

Observation of an agent: gfootball's simple115v2, 115 numbers. All agents see the whole pitch; only columns 97-107, who
is controlled, differ. Global state: the facts of simple115v2 once, for the players that the scenario has.

Reward. gfootball rewards each agent by itself: +1 / -1 for a goal of ours / of the opponents, to every agent; with
`rewards=scoring,checkpoints` also 0.1 to the agent that has the ball, for each of ten circles around the opponents'
goal that it enters for the first time, and a goal of ours pays every agent the circles that it has not entered. So an
episode that ends with a goal of ours pays each agent 2.0. `reward=sum` adds the agents' rewards up, as the published
GRF runs of QLLM do: a goal of n agents is worth 2n. `reward=mean` divides that by n: a goal is worth 2.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.grf.pool import WorkerError, WorkerPool
from qllm_exp.envs.grf.worker import ACTIONS, ACTIVE, MODE, OBS_DIM, PLAYERS, Facts
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.errors import UserError, choose


@dataclass
class Config(schema.EnvConfig):
    name: str = "grf"
    task: str = "academy_3_vs_1_with_keeper"
    episode_limit: int = schema.number(150, 1)
    workers: int = schema.number(0, 0, 1024, identity=False)
    goalkeeper: bool = True
    rewards: str = schema.one_of("scoring,checkpoints", "scoring")
    reward: str = schema.one_of("mean", "sum")
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 16, "cuda": 16}


# The academy scenarios of gfootball 2.10.2, for when it is not installed.
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
_ACTION_WORDS = {
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
_RUN = "run in this direction; lasts until another direction or release_direction"
_MODES = ("normal", "kick_off", "goal_kick", "free_kick", "corner", "throw_in", "penalty")
_PITCH = "pitch units: x from -1, our goal line, to 1, the opponents'; y from -0.42, the top, to 0.42"
_MOTION = "pitch units per step"


def tasks() -> list[str]:
    """The academy scenarios of the installed gfootball, or of 2.10.2 when none is installed."""
    folder = _gfootball_folder()
    if folder is None:
        return list(_ACADEMY)
    return sorted(file.stem for file in (folder / "scenarios").glob("academy_*.py"))


def check(config: Config) -> None:
    """UserError when gfootball is not installed or has no such scenario."""
    choose("env.task", config.task, tasks())
    if _gfootball_folder() is None or not _found("gfootball_engine"):
        raise UserError("env=grf needs the football engine, which is not installed. Type: make grf")


def make(config: Config, num_envs: int, seed: int, device: torch.device) -> "FootballEnv":
    """`num_envs` matches of the scenario `config.task`. UserError as in `check`, and when the engine does not load."""
    check(config)
    try:
        return FootballEnv(config, num_envs, seed, device)
    except WorkerError as error:
        if not error.loading:
            raise
        raise UserError(f"env=grf: the football engine does not load. Type: make grf\n{error}") from error


class FootballEnv(TeamEnv):
    """N football matches, played by worker processes.

    The engine's seed of match i in episode e is a function of (seed, i, e) alone, so results do not depend on the
    number of workers.

    Raises:
        WorkerError: (`reset`, `step`) a worker process died; names it, its matches and the cause. The environment is closed then.
    """

    def __init__(self, config: Config, num_envs: int, seed: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self._mean = config.reward == "mean"
        self.pool = WorkerPool(
            num_envs,
            config.workers or len(os.sched_getaffinity(0)),
            scenario=config.task,
            goalkeeper=config.goalkeeper,
            attackers=_ATTACKERS.get(config.task),
            checkpoints="checkpoints" in config.rewards,
            limit=config.episode_limit,
        )
        facts = self.pool.facts
        self.n_agents, self.n_actions, self.obs_dim = len(facts.agents), len(ACTIONS), OBS_DIM
        self.episode_limit = min(config.episode_limit, facts.duration)
        columns, fields = zip(*_state_fields(facts), strict=True)
        self.layout = StateLayout.of(fields)
        self._columns = np.concatenate([np.atleast_1d(one) for one in columns])
        self.task = _describe(config, facts, self.episode_limit)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self._seed, self._episode = seed, 0

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "episode": self._episode}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._seed, self._episode = saved["seed"], saved["episode"]

    def reset(self) -> Observation:
        self.pool.reset(np.array([engine_seed(self._seed, i, self._episode) for i in range(self.num_envs)]))
        self._episode += 1
        return Observation(*self._seen())

    def step(self, actions: Tensor) -> Step:
        self.pool.step(actions.cpu().numpy())
        arrays = self.pool.arrays
        rewards = arrays.rewards.mean(1) if self._mean else arrays.rewards.sum(1)
        return Step(*self._seen(), *map(self._tensor, (rewards, arrays.terminated, arrays.truncated)))

    def episode_metrics(self) -> dict[str, Tensor]:
        """'win': 1 where our team scored more goals than the opponents; 'score': the difference."""
        ours, theirs = self._tensor(self.pool.arrays.goals.T).float()
        return {"win": (ours > theirs).float(), "score": ours - theirs}

    def close(self) -> None:
        self.pool.close()

    def _seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """obs [N, n, 115], state [N, S] and available actions [N, n, 19] at this moment."""
        obs = self.pool.arrays.obs
        available = torch.ones(self.num_envs, self.n_agents, self.n_actions, dtype=torch.bool, device=self.device)
        return self._tensor(obs), self._tensor(obs[:, 0, self._columns]), available

    def _tensor(self, array: Any) -> Tensor:
        """A copy on the device: the array may be the workers' memory."""
        return torch.tensor(array, device=self.device)


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _gfootball_folder() -> Path | None:
    """Where gfootball lies, found without importing it (which would load gym, OpenCV and the engine)."""
    if not _found("gfootball"):
        return None
    spec = importlib.util.find_spec("gfootball")
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def engine_seed(seed: int, match: int, episode: int) -> int:
    """31 bits, well mixed, for the engine's random numbers. Its lowest bit is also the order in which the teams move."""
    entropy = (seed % 2**64, match, episode)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1


def _state_fields(facts: Facts) -> Iterator[tuple[Any, StateField]]:
    """The state's fields, each with its columns in simple115v2."""
    inf = float("inf")
    teammates = [i for i in range(len(facts.roles)) if i not in facts.agents]
    groups = (("agent", facts.agents, 0), ("teammate", teammates, 0), ("opponent", range(facts.opponents), 4 * PLAYERS))
    for entity, players, start in groups:
        for index, player in enumerate(players):
            place = start + 2 * player
            motion = place + 2 * PLAYERS
            yield np.r_[place : place + 2], StateField(entity, index, "position", ("x", "y"), -inf, inf, _PITCH)
            yield np.r_[motion : motion + 2], StateField(entity, index, "direction", ("x", "y"), -inf, inf, _MOTION)
    ball = 8 * PLAYERS
    yield np.r_[ball : ball + 2], StateField("ball", None, "position", ("x", "y"), -inf, inf, _PITCH)
    yield ball + 2, StateField("ball", None, "height", ("z",), 0.0, inf, "metres above the ground")
    yield np.r_[ball + 3 : ball + 5], StateField("ball", None, "direction", ("x", "y"), -inf, inf, _MOTION)
    yield ball + 5, StateField("ball", None, "climb", ("z",), -inf, inf, "metres per step")
    owners = ("nobody", "our_team", "opponents")
    one_hot = {0.0: "no", 1.0: "yes"}
    yield np.r_[ball + 6 : ACTIVE.start], StateField("match", None, "ball_owner", owners, 0.0, 1.0, special=one_hot)
    yield np.r_[MODE], StateField("match", None, "mode", _MODES, 0.0, 1.0, special=one_hot)


def _describe(config: Config, facts: Facts, episode_limit: int) -> TaskDescription:
    who = "; ".join(f"agent {i} is our {_ROLES[facts.roles[player]]}" for i, player in enumerate(facts.agents))
    others = len(facts.roles) - len(facts.agents)
    goal = (
        f"Football on a pitch seen from above: our team attacks to the right, towards the goal at x = 1, y = 0 (between "
        f"y = -0.044 and 0.044). Score a goal before the episode ends. Our team has {len(facts.roles)} players, the "
        f"opponents have {facts.opponents}; opponent 0 is their goalkeeper. {who[0].upper()}{who[1:]}. "
    )
    if others:
        goal += f"The game itself plays the other {others} of our team (teammates) and the opponents."
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
    if facts.ends_out_of_play:
        ends.append("the ball out of play or a foul")
    if facts.ends_on_turnover:
        ends.append("the opponents winning the ball")
    episode = f"Ends with {', or '.join(ends)}. Cut off after {episode_limit} steps of 0.1 s."
    return TaskDescription(
        env="grf",
        task=config.task,
        goal=goal,
        reward=reward,
        actions=tuple(f"{name}: {_ACTION_WORDS.get(name, _RUN)}" for name in ACTIONS),
        episode=episode,
        n_agents=len(facts.agents),
    )
