"""env=mpe env.rules=pettingzoo: rewards and columns as described, the scripted sides, and options that are refused.

tests/parity/test_parity_mpe.py compares every step with mpe2.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from qllm_exp.envs import TeamEnv, make_env
from qllm_exp.envs.mpe import check
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.envs.mpe.particles import ParticleEnv
from qllm_exp.envs.pettingzoo.env import Config as PettingzooConfig
from qllm_exp.errors import UserError

TASKS = ["simple_spread", "simple_adversary", "simple_tag"]
NO_GOAL = torch.zeros(1, dtype=torch.int64)


def build(task: str, num_envs: int = 1, seed: int = 0, **settings: Any) -> ParticleEnv:
    env = make_env(MpeConfig(task=task, rules="pettingzoo", **settings), num_envs, seed)
    assert isinstance(env, ParticleEnv)
    return env


def build_state(task: str, options: dict[str, Any], num_envs: int = 1) -> TeamEnv:
    """The environment with all observations in a row as its global state."""
    return make_env(MpeConfig(task=task, rules="pettingzoo", state="observations", options=options), num_envs, 0)


def stay(env: ParticleEnv) -> Tensor:
    return torch.zeros(env.num_envs, env.n_agents, dtype=torch.int64)


def towards(offset: Tensor) -> Tensor:
    """The action that pushes along the longer axis of an offset [..., 2]."""
    axis = offset.abs().argmax(-1)
    return 1 + 2 * axis + (offset.take_along_dim(axis.unsqueeze(-1), -1).squeeze(-1) > 0)


@pytest.mark.parametrize("task", TASKS)
def test_the_global_state_has_the_columns_of_the_other_rules(task: str) -> None:
    ours, vmas = build(task), make_env(MpeConfig(task=task), 1, 0)
    assert [(field.label, field.components, field.start, field.unit) for field in ours.layout] == [
        (field.label, field.components, field.start, field.unit) for field in vmas.layout
    ]
    assert ours.n_agents == vmas.n_agents


def test_the_observations_in_a_row_have_the_names_that_the_package_itself_has() -> None:
    rows = build_state("simple_spread", {"N": 4})
    package = make_env(PettingzooConfig(options={"N": 4}), 1, 0)
    assert [(field.label, field.start) for field in rows.layout] == [
        (field.label, field.start) for field in package.layout
    ]


@pytest.mark.parametrize("task", TASKS)
def test_the_names_of_an_observation_say_what_is_in_its_columns(task: str) -> None:
    env, rows = build(task, 3), build_state(task, {}, 3)
    env.reset(), rows.reset()
    for _ in range(3):
        state, observed = env.step(stay(env) + 2).state, rows.step(stay(env) + 2).state

    def feature(entity: str, name: str) -> Tensor:
        kind, _, index = entity.rpartition("_")
        return state[:, env.layout.find(kind, name, int(index)).columns]

    for field in rows.layout:
        own = feature(f"agent_{field.index}", "position")
        if field.name.startswith("message"):
            expected = torch.zeros(3, 2)
        elif field.name == "offset_to_goal":
            flags = torch.stack([feature(f"landmark_{k}", "is_goal") for k in range(2)])
            expected = (flags * torch.stack([feature(f"landmark_{k}", "position") for k in range(2)])).sum(0) - own
        elif field.name.startswith("offset_to_"):
            expected = feature(field.name.removeprefix("offset_to_"), "position") - own
        elif field.name.startswith("velocity_of_"):
            expected = feature(field.name.removeprefix("velocity_of_"), "velocity")
        else:
            expected = feature(f"agent_{field.index}", field.name)
        torch.testing.assert_close(observed[:, field.columns], expected)


def test_the_columns_hold_what_their_names_say() -> None:
    env = build("simple_adversary", options={"N": 3})
    positions = torch.tensor([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [-0.1, -0.2]]])
    landmarks = torch.tensor([[[0.7, 0.8], [0.9, 1.0], [-0.3, -0.4]]])
    env.start(positions, landmarks, torch.tensor([2]))
    step = env.step(torch.tensor([[1, 2, 4]]))
    step = env.step(torch.tensor([[0, 0, 0]]))

    def read(entity: str, name: str, index: int) -> list[float]:
        return [round(value, 5) for value in step.state[0, env.layout.find(entity, name, index).columns].tolist()]

    assert [read("landmark", "position", k) for k in range(3)] == [[0.7, 0.8], [0.9, 1.0], [-0.3, -0.4]]
    assert [read("landmark", "is_goal", k) for k in range(3)] == [[0.0], [0.0], [1.0]]
    # A push of 5 for one step of 0.1 gives a speed of 0.5, which moves the body from the next step on and of which 0.75 is left.
    assert read("agent", "velocity", 0) == [-0.375, 0.0] and read("agent", "position", 0) == [0.05, 0.2]
    assert read("agent", "velocity", 2) == [0.0, 0.375] and read("agent", "position", 2) == [0.5, 0.65]
    assert read("opponent", "position", 0) != [-0.1, -0.2]


@pytest.mark.parametrize(("reward", "agents"), [("sum", 3), ("mean", 1)])
def test_the_reward_of_simple_spread_weighs_both_parts(reward: str, agents: int) -> None:
    env = build("simple_spread", reward=reward, options={"local_ratio": 0.25})
    positions = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]]])
    landmarks = torch.tensor([[[0.0, 1.0], [5.0, 2.0], [0.0, -3.0]]])
    env.start(positions, landmarks, NO_GOAL)
    # Two agents at the same place overlap, and no force acts between them: each gets -1 as its own part.
    expected = -0.75 * 3 * (1 + 2 + 3) - 0.25 * 2
    assert env.step(stay(env)).reward.item() == pytest.approx(expected * agents / 3)


def test_the_reward_of_simple_adversary_is_for_the_nearest_agent_and_the_distance_of_the_adversary() -> None:
    env = build("simple_adversary", reward="mean")
    positions = torch.tensor([[[0.0, 0.5], [0.0, 0.25], [0.0, 4.0]]])
    env.start(positions, torch.tensor([[[0.0, 0.0], [9.0, 9.0]]]), torch.tensor([0]))
    # In the first step nobody has moved yet: bodies move by the velocity from before a push.
    assert env.step(stay(env)).reward.item() == pytest.approx(4.0 - 0.25)


@pytest.mark.parametrize(("reward", "per_touch"), [("sum", 30.0), ("mean", 10.0)])
def test_only_the_chasers_reward_counts_in_simple_tag(reward: str, per_touch: float) -> None:
    env = build("simple_tag", 32, reward=reward)
    env.reset()
    prey, total = env.layout.find("opponent", "position", 0).columns, 0.0
    for _ in range(25):
        step = env.step(towards(env.positions[:, 3:] - env.positions[:, :3]))
        chasers = [step.state[:, env.layout.find("agent", "position", chaser).columns] for chaser in range(3)]
        touches = sum((position - step.state[:, prey]).norm(dim=-1) < 0.075 + 0.05 for position in chasers)
        torch.testing.assert_close(step.reward, per_touch * touches)
        total += float(step.reward.sum())
    assert total > 0


def chasers_return(prey_moves: bool) -> float:
    """Mean return of chasing a prey that runs, or one that stands still."""
    env = build("simple_tag", 64, episode_limit=50, reward="mean")
    env.reset()
    home, total = env.positions[:, 3:].clone(), 0.0
    for _ in range(50):
        step = env.step(towards(env.positions[:, 3:] - env.positions[:, :3]))
        if not prey_moves:
            env.positions[:, 3:], env.velocities[:, 3:] = home, 0.0
        total += float(step.reward.mean())
    return total


def test_the_prey_is_harder_to_catch_than_one_that_stands_still_but_can_be_caught() -> None:
    standing, running = chasers_return(prey_moves=False), chasers_return(prey_moves=True)
    assert 0 < running < 0.6 * standing


def test_the_prey_runs_from_a_chaser_and_stays_where_it_is_not_punished() -> None:
    env = build("simple_tag", episode_limit=200, options={"num_adversaries": 1, "num_obstacles": 0})
    env.start(torch.tensor([[[-0.3, 0.0], [0.0, 0.0]]]), torch.zeros(1, 0, 2), NO_GOAL)
    places = []
    for _ in range(100):
        env.step(towards(env.positions[:, 1:] - env.positions[:, :1]))
        places.append(env.positions[0, 1].clone())
    assert places[4][0] > 0.02, "it runs"
    assert torch.stack(places).abs().max() < 1.0, "it does not leave for good"
    assert torch.stack(places).abs().max() > 0.5


def test_the_adversary_goes_to_the_landmark_that_the_team_is_nearest_to_whatever_the_goal() -> None:
    env = build("simple_adversary", 2, episode_limit=60)
    positions = torch.tensor([[0.8, 0.7], [0.0, -0.4], [-0.8, 0.0]]).expand(2, 3, 2)
    landmarks = torch.tensor([[0.8, 0.8], [-0.8, -0.8]]).expand(2, 2, 2)
    env.start(positions, landmarks, torch.tensor([0, 1]))
    for _ in range(59):
        step = env.step(stay(env))
    adversary = step.state[:, env.layout.find("opponent", "position", 0).columns]
    assert (adversary - torch.tensor([0.8, 0.8])).abs().max() < 0.1
    assert step.state[:, env.layout.find("opponent", "velocity", 0).columns].abs().max() < 0.4


@pytest.mark.parametrize(
    ("label", "expected"),
    [("no push", (0, 0)), ("push left", (-1, 0)), ("push right", (1, 0)), ("push down", (0, -1)), ("push up", (0, 1))],
)
def test_actions_do_what_their_label_says(label: str, expected: tuple[int, int]) -> None:
    env = build("simple_spread", options={"N": 1})
    env.reset()
    step = env.step(torch.full((1, 1), env.task.actions.index(label)))
    assert step.state[0, 2:4].sign().tolist() == list(expected)


def test_the_description_has_the_numbers_of_the_task() -> None:
    env = build("simple_spread", reward="mean", episode_limit=30, options={"N": 4, "local_ratio": 0.25})
    assert "mean of what the 4 agents" in env.task.reward and "0.75 times the team's part" in env.task.reward
    assert env.task.episode == "After 30 steps."
    assert "VMAS" not in env.task.goal + env.task.reward
    assert "no border" in build("simple_tag").task.goal


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "navigation",
            {},
            "'navigation' is not a task of env.rules=pettingzoo. Allowed: simple_spread, simple_adversary, sim",
        ),
        ("simple_spred", {}, "Did you mean 'simple_spread'"),
        ("simple_spread", {"n_agents": 6}, "env.options.n_agents is not an option .*Allowed: N, local_ratio"),
        ("simple_spread", {"max_cycles": 50}, "Use env.episode_limit"),
        ("simple_spread", {"N": 0}, "env.options.N=0 is not allowed. Allowed: whole numbers from 1"),
        ("simple_spread", {"N": "three"}, "env.options.N='three' is not allowed"),
        ("simple_spread", {"N": True}, "env.options.N=True is not allowed"),
        (
            "simple_spread",
            {"local_ratio": 1.5},
            "env.options.local_ratio=1.5 is not allowed. Allowed: numbers from 0 to 1",
        ),
        ("simple_tag", {"num_obstacles": -1}, "Allowed: whole numbers from 0"),
        ("simple_tag", {"num_good": 1.5}, "env.options.num_good=1.5 is not allowed"),
    ],
)
def test_other_tasks_and_options_are_refused_in_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(MpeConfig(task=task, rules="pettingzoo", options=options))
    assert "\n" not in str(caught.value)
