"""env=pettingzoo: parity with a plain loop over PettingZoo, and the handling of masks, dead agents and endings."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from qllm_exp.envs import Observation, Step, make_env
from qllm_exp.envs.pettingzoo.env import Config as PettingzooConfig
from qllm_exp.envs.pettingzoo.env import PettingzooEnv, tasks
from qllm_exp.envs.simulator import episode_seed
from qllm_exp.errors import UserError


@pytest.mark.parametrize("task", tasks())
@pytest.mark.parametrize("reward", ["sum", "mean"])
def test_equals_a_plain_loop_with_the_same_seeds_and_actions(task: str, reward: str) -> None:
    env = make_env(PettingzooConfig(task=task, reward=reward, options={"max_cycles": 12}), 2, 4)
    plain = importlib.import_module(task).parallel_env(max_cycles=12)
    rng = np.random.default_rng(0)
    for episode in range(2):
        start = env.reset()
        n_available = start.available_actions.sum(-1)
        length = 12
        draws = [torch.tensor(rng.integers(0, 10**6, (2, env.n_agents))) for _ in range(length)]
        steps = [env.step(draw % n_available) for draw in draws]
        for copy in range(2):
            obs, _ = plain.reset(seed=episode_seed(4, copy, episode))
            current: Observation | Step = start
            for index, step in enumerate(steps):
                for agent, name in enumerate(plain.possible_agents):
                    width = obs[name].size
                    assert np.array_equal(current.obs[copy, agent, :width].numpy(), obs[name])
                    assert not current.obs[copy, agent, width:].any()
                    assert current.available_actions[copy, agent].sum() == plain.action_space(name).n
                assert np.array_equal(current.state[copy].numpy(), plain.state())
                actions = {
                    name: int(draws[index][copy, agent]) % int(plain.action_space(name).n)
                    for agent, name in enumerate(plain.possible_agents)
                }
                obs, rewards, _, truncations, _ = plain.step(actions)
                total = sum(rewards.values()) / (len(rewards) if reward == "mean" else 1)
                assert step.reward[copy].item() == pytest.approx(total, rel=1e-6)
                assert step.truncated[copy].item() == all(truncations.values()) == (index == length - 1)
                assert not step.terminated[copy]
                current = step


def test_the_columns_of_simple_spread_hold_what_their_names_say() -> None:
    env = make_env(PettingzooConfig(options={"N": 4}), 1, 0)
    assert isinstance(env, PettingzooEnv)
    plain = importlib.import_module("mpe2.simple_spread_v3").parallel_env(N=4)
    plain.reset(seed=0)
    world = plain.unwrapped.world
    rng = np.random.default_rng(1)
    for entity in [*world.agents, *world.landmarks]:
        entity.state.p_pos, entity.state.p_vel = rng.normal(size=2), rng.normal(size=2)
    state: np.ndarray = plain.state()

    def read(agent: int, name: str) -> np.ndarray:
        return state[env.layout.find("agent", name, agent).columns]

    for index, agent in enumerate(world.agents):
        position = agent.state.p_pos
        np.testing.assert_allclose(read(index, "position"), position, rtol=1e-6)
        np.testing.assert_allclose(read(index, "velocity"), agent.state.p_vel, rtol=1e-6)
        for number, landmark in enumerate(world.landmarks):
            offset = landmark.state.p_pos - position
            np.testing.assert_allclose(read(index, f"offset_to_landmark_{number}"), offset, rtol=1e-6)
        for number, other in enumerate(world.agents):
            if other is not agent:
                offset = other.state.p_pos - position
                np.testing.assert_allclose(read(index, f"offset_to_agent_{number}"), offset, rtol=1e-6)
    assert env.layout.size == state.size


def test_with_limited_sight_the_columns_are_only_numbered() -> None:
    env = make_env(PettingzooConfig(options={"num_agent_neighbors": 1}), 1, 0)
    assert [field.label for field in env.layout] == [f"agent {agent} observation" for agent in range(3)]
    assert env.layout.size == env.reset().state.shape[1]


TOY = '''
"""A toy: agent b dies after its second step; the first agent's mask forbids action 1."""
import gymnasium.spaces as spaces
import numpy as np


class Toy:
    possible_agents = ["a", "b"]
    metadata = {"name": "toy"}

    def __init__(self, ending="truncate", with_state=False, continuous=False):
        self.ending, self.continuous = ending, continuous
        if with_state:
            self.state = lambda: np.array([[self.steps, 40.0], [41.0, 42.0]])

    @property
    def unwrapped(self):
        return self

    def observation_space(self, agent):
        box = spaces.Box(0.0, 9.0, (1, 3) if agent == "a" else (2,))
        return spaces.Dict(observation=box, action_mask=spaces.MultiBinary(3)) if agent == "a" else box

    def action_space(self, agent):
        if self.continuous:
            return spaces.Box(0.0, 1.0, (2,))
        return spaces.Discrete(3, start=5) if agent == "a" else spaces.Discrete(2)

    def observe(self):
        views = {"a": {"observation": np.full((1, 3), self.steps), "action_mask": np.array([1, 0, 1], np.int8)}}
        return views | {"b": np.full(2, 8.0)}

    def reset(self, seed=None, options=None):
        self.steps, self.agents = 0, ["a", "b"]
        return self.observe(), {"a": {}, "b": {"action_mask": np.array([0, 1])}}

    def step(self, actions):
        assert set(actions) == set(self.agents) and 5 <= actions["a"] <= 7
        self.steps += 1
        obs = {name: view for name, view in self.observe().items() if name in self.agents}
        rewards = {name: float(actions[name]) for name in self.agents}
        last = self.steps == 4
        over = {"a": last, "b": self.steps == 2}
        ended = {"terminate": (over, {}), "truncate": ({"b": over["b"]}, {"a": last})}[self.ending]
        terminated, truncated = ({name: flags.get(name, False) for name in self.agents} for flags in ended)
        self.agents = [name for name in self.agents if not (terminated[name] or truncated[name])]
        return obs, rewards, terminated, truncated, {}

    def close(self):
        pass


def parallel_env(**options):
    return Toy(**options)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "toy_games"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "toy_v0.py").write_text(TOY, encoding="utf-8")
    (folder / "turns_v0.py").write_text("env = None\n", encoding="utf-8")
    (folder / "needs_v0.py").write_text("import surely_not_installed.part\nparallel_env = None\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "toy_games.toy_v0"


def test_masks_dead_agents_and_the_endings_of_an_episode(toy: str) -> None:
    for ending in ("truncate", "terminate"):
        env = make_env(PettingzooConfig(task=toy, options={"ending": ending}), 1, 0)
        start = env.reset()
        assert start.available_actions[0].tolist() == [[True, False, True], [False, True, False]]
        assert start.obs[0].tolist() == [[0.0, 0.0, 0.0], [8.0, 8.0, 0.0]]
        first = env.step(torch.tensor([[2, 1]]))
        assert first.reward.item() == 7 + 1
        assert first.available_actions[0, 1].tolist() == [True, True, False]
        second = env.step(torch.tensor([[0, 1]]))
        assert second.reward.item() == 5 + 1
        assert second.obs[0, 1].tolist() == [0.0, 0.0, 0.0]
        assert second.available_actions[0, 1].tolist() == [True, False, False]
        third = env.step(torch.tensor([[0, 0]]))
        assert third.reward.item() == 5
        assert not (third.terminated | third.truncated).item()
        fourth = env.step(torch.tensor([[0, 0]]))
        assert fourth.terminated.item() == (ending == "terminate")
        assert fourth.truncated.item() == (ending == "truncate")
        assert fourth.obs[0, 0].tolist() == [4.0, 4.0, 4.0]
        assert env.step(torch.tensor([[0, 0]])).reward.item() == 0


def test_the_state_is_the_environments_own_or_else_all_observations(toy: str) -> None:
    without_state = make_env(PettingzooConfig(task=toy), 1, 0)
    assert without_state.reset().state.tolist() == [[0.0, 0.0, 0.0, 8.0, 8.0]]
    assert [(field.label, len(field.components), field.high) for field in without_state.layout] == [
        ("agent 0 observation", 3, 9.0),
        ("agent 1 observation", 2, 9.0),
    ]
    with_state = make_env(PettingzooConfig(task=toy, options={"with_state": True}), 1, 0)
    with_state.reset()
    assert with_state.step(torch.tensor([[0, 1]])).state.tolist() == [[1.0, 40.0, 41.0, 42.0]]
    assert [field.label for field in with_state.layout] == ["environment state"]
    assert "agent b dies after its second step" in with_state.task.goal


def test_every_copy_and_episode_has_a_seed_of_its_own() -> None:
    seeds = {episode_seed(seed, copy, episode) for seed in range(5) for copy in range(5) for episode in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("simple_spread_v3", {}, "not of the form PACKAGE.MODULE"),
        ("surely_not_there.game_v1", {}, "pip install surely_not_there"),
        ("pettingzoo.mpe.simple_spread_v3", {}, "MPE2.* env.task=mpe2.simple_spread_v3"),
        ("mpe2.simple_spred_v3", {}, "Did you mean 'simple_spread_v3'"),
        ("toy_games.needs_v0", {}, "pip install surely_not_installed"),
        ("toy_games.turns_v0", {}, "no parallel_env"),
        ("toy_games.toy_v0", {"continuous": True}, "Only Discrete action spaces"),
        ("mpe2.simple_spread_v3", {"continuous_actions": True}, "continuous_actions=false"),
        ("mpe2.simple_spread_v3", {"n_agents": 3}, "n_agents"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_unsupported_environments_and_options_are_refused(task: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env(PettingzooConfig(task=task, options=options), 1, 0)
