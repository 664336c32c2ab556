"""env=mpe env.rules=pettingzoo: parity with mpe2 in every step, and the same distribution of starts."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare, ks_2samp
from torch import Tensor

from qllm_exp.envs import make_env
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.envs.mpe.particles import ParticleEnv

EPISODES = 60  # of each case
STEPS = 25
MODULES = {
    "simple_spread": "simple_spread_v3",
    "simple_adversary": "simple_adversary_v3",
    "simple_tag": "simple_tag_v3",
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("simple_spread", {}),
    ("simple_spread", {"N": 6, "local_ratio": 0.2}),
    ("simple_spread", {"N": 1}),
    ("simple_adversary", {}),
    ("simple_adversary", {"N": 4}),
    ("simple_tag", {}),
    ("simple_tag", {"num_good": 2, "num_adversaries": 4, "num_obstacles": 3}),
    ("simple_tag", {"num_obstacles": 0}),
]


def build(task: str, options: dict[str, Any], num_envs: int = EPISODES) -> ParticleEnv:
    env = make_env(MpeConfig(task=task, rules="pettingzoo", options=options), num_envs, 0)
    assert isinstance(env, ParticleEnv)
    return env


def package_env(task: str, options: dict[str, Any]) -> Any:
    return importlib.import_module(f"mpe2.{MODULES[task]}").parallel_env(max_cycles=STEPS, **options)


class Package:
    """A task of mpe2, with its agents in the order of this package: the team first.

    Attributes:
        env: the environment.
        world: its world.
        team: names of the team's agents.
        opponents: names of the others.
    """

    def __init__(self, task: str, options: dict[str, Any]) -> None:
        self.env = package_env(task, options)
        self.world = self.env.unwrapped.world
        adversaries = [agent.name for agent in self.world.agents if getattr(agent, "adversary", False)]
        others = [agent.name for agent in self.world.agents if agent.name not in adversaries]
        self.team, self.opponents = (adversaries, others) if task == "simple_tag" else (others, adversaries)
        self.bodies = {agent.name: agent for agent in self.world.agents}

    def places(self) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """Positions of the agents [M, 2] and landmarks [L, 2], and the index of the goal."""
        names = [*self.team, *self.opponents]
        agents = np.array([self.bodies[name].state.p_pos for name in names])
        landmarks = np.array([landmark.state.p_pos for landmark in self.world.landmarks]).reshape(-1, 2)
        goal = getattr(self.world.agents[0], "_goal_a", None)
        return agents, landmarks, self.world.landmarks.index(goal) if goal is not None else 0


def towards(offset: Tensor) -> Tensor:
    """The action that pushes along the longer axis of an offset [..., 2]."""
    axis = offset.abs().argmax(-1)
    sign = offset.take_along_dim(axis.unsqueeze(-1), -1).squeeze(-1) > 0
    return 1 + 2 * axis + sign


def targets(env: ParticleEnv) -> Tensor:
    """Where the agents of the team go, [N, n, 2]: the first opponent, or where there is none, a landmark that is shared by two."""
    if env.vectors.n_moving > env.n_agents and env.vectors.n_landmarks != env.n_agents:
        return env.positions[:, env.n_agents :][:, :1].expand(-1, env.n_agents, -1)
    return env.landmark_positions()[:, torch.arange(env.n_agents) // 2]


@pytest.mark.parametrize(("task", "options"), CASES)
def test_same_starts_and_actions_lead_to_the_same_steps(task: str, options: dict[str, Any]) -> None:
    env, package = build(task, options), Package(task, options)
    starts = []
    for seed in range(EPISODES):
        package.env.reset(seed=seed)
        starts.append(package.places())
    agents, landmarks, goals = (np.array(part) for part in zip(*starts, strict=True))
    start = env.start(torch.tensor(agents), torch.tensor(landmarks), torch.tensor(goals))
    generator = torch.Generator().manual_seed(1)
    joint_actions, steps = [], []
    for _ in range(STEPS):
        purposeful = towards(targets(env) - env.positions[:, : env.n_agents])
        random = torch.randint(5, purposeful.shape, generator=generator)
        actions = torch.where(torch.rand(purposeful.shape, generator=generator) < 0.7, purposeful, random)
        joint_actions.append(torch.cat((actions, env.opponent_actions()), 1))
        steps.append(env.step(actions))

    names = [*package.team, *package.opponents]
    touches = 0
    for episode in range(EPISODES):
        views, _ = package.env.reset(seed=episode)
        np.testing.assert_array_equal(start.obs[episode], [views[name] for name in package.team])
        for number, (actions, step) in enumerate(zip(joint_actions, steps, strict=True), 1):
            chosen = dict(zip(names, actions[episode].tolist(), strict=True))
            views, rewards, terminations, truncations, _ = package.env.step(chosen)
            np.testing.assert_allclose(step.obs[episode], [views[name] for name in package.team], rtol=1e-6, atol=1e-6)
            team_reward = sum(rewards[name] for name in package.team)
            assert step.reward[episode].item() == pytest.approx(team_reward, rel=1e-6, abs=1e-6)
            assert step.terminated[episode].item() == any(terminations.values()) is False
            assert step.truncated[episode].item() == all(truncations.values()) == (number == STEPS)
            state = step.state[episode, : 4 * len(names)].view(-1, 4)
            bodies = [
                np.concatenate((body.p_pos, body.p_vel)) for body in (package.bodies[name].state for name in names)
            ]
            np.testing.assert_allclose(state, bodies, rtol=1e-6, atol=1e-6)
            touches += touching(package, task)
    # The comparison is meaningful only if bodies touch, where they can.
    assert touches > EPISODES // 2 or env.n_agents == 1 or task == "simple_adversary"


def touching(package: Package, task: str) -> int:
    """Number of pairs of bodies that touch, of those that the reward counts."""
    scenario = package.env.unwrapped.scenario
    others = package.opponents if task == "simple_tag" else package.team
    return sum(
        scenario.is_collision(package.bodies[first], package.bodies[second])
        for first in package.team
        for second in others
        if first != second and hasattr(scenario, "is_collision")
    )


@pytest.mark.parametrize(("task", "options"), [("simple_spread", {}), ("simple_adversary", {}), ("simple_tag", {})])
def test_starts_have_the_distribution_of_the_package(task: str, options: dict[str, Any]) -> None:
    count = 2000
    env, package = build(task, options, count), Package(task, options)
    starts = []
    for seed in range(count):
        package.env.reset(seed=seed)
        starts.append(package.places())
    agents, landmarks, goals = (np.array(part) for part in zip(*starts, strict=True))
    env.reset()
    ours = torch.cat((env.positions, env.landmark_positions()), 1).numpy()
    theirs = np.concatenate((agents, landmarks), 1)
    assert not env.velocities.any()
    p_values = [
        ks_2samp(ours[:, body, axis], theirs[:, body, axis]).pvalue
        for body in range(ours.shape[1])
        for axis in range(2)
    ]
    distances = [np.linalg.norm(places[:, 0] - places[:, -1], axis=1) for places in (ours, theirs)]
    p_values.append(ks_2samp(*distances).pvalue)
    if env.has_goal:
        flags = torch.cat(
            [env.reset().state[:, env.layout.find("landmark", "is_goal", k).columns] for k in range(2)], 1
        )
        p_values.append(chisquare(flags.sum(0)).pvalue)
        assert 0.45 < goals.mean() < 0.55
    assert min(p_values) > 0.001, p_values


@pytest.mark.parametrize(("task", "options"), CASES)
def test_every_option_of_the_task_is_one_of_the_package(task: str, options: dict[str, Any]) -> None:
    env, package = build(task, options, 1), Package(task, options)
    assert env.n_agents == len(package.team)
    assert env.vectors.n_moving == len(package.world.agents)
    assert env.vectors.n_landmarks == len(package.world.landmarks)
    assert env.obs_dim == package.env.observation_space(package.team[0]).shape[0]
    assert env.n_actions == package.env.action_space(package.team[0]).n
