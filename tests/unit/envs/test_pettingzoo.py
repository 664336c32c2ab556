"""env=pettingzoo: what wrappers add to the dictionaries, and one clear line for what cannot be trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qllm_exp.envs import TeamEnv, make_env
from qllm_exp.envs.pettingzoo.env import Config
from qllm_exp.errors import UserError

GAME = '''
import gymnasium.spaces as spaces
import numpy as np


class Game:
    """Two agents with their own spaces; the episode ends after three steps, as `fault` says."""
    metadata = {"name": "game"}

    def __init__(self, fault="", names=("a", "b"), shape=(3,)):
        self.fault, self.shape = fault, shape
        if fault != "no agents":
            self.possible_agents = list(names)

    @property
    def unwrapped(self):
        return self

    def observation_space(self, agent):
        return spaces.Box(0.0, 9.0, self.shape if agent == self.possible_agents[0] else (2,))

    def action_space(self, agent):
        return spaces.Discrete(3 if agent == self.possible_agents[0] else 2)

    def _views(self):
        first, second = self.possible_agents
        views = {first: np.full(self.shape, self.steps), second: np.full(2, 8.0)}
        if self.fault == "wide":
            views[second] = np.zeros(5)
        if self.fault == "text":
            views[second] = "north"
        if self.fault == "stranger":
            views["c"] = np.zeros(2)
        return views

    def reset(self, seed=None, options=None):
        self.steps = 0
        return self._views() if self.fault == "old reset" else (self._views(), None)

    def step(self, actions):
        self.steps += 1
        first, second = self.possible_agents
        over = self.steps == 3
        rewards = {first: 1.0, second: -1.0 if self.fault == "opposed" else 0.5, "__all__": 100.0}
        flags = {first: False, second: False}
        ended, running = flags | {"__all__": over}, flags | {"__all__": False}
        terminated, truncated = (running, ended) if self.fault == "truncate" else (ended, running)
        if self.fault == "masks":
            return self._views(), rewards, terminated, truncated, {first: None, second: {"action_mask": np.ones(7)}}
        result = self._views(), rewards, terminated, truncated, None
        return result[:4] if self.fault == "old step" else result

    def close(self):
        pass


def parallel_env(**options):
    return Game(**options)
'''


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "some_games"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "game_v0.py").write_text(GAME, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "some_games.game_v0"


def build(task: str, **options: Any) -> TeamEnv:
    return make_env(Config(task=task, options=options), 2, 0)


@pytest.mark.parametrize("ending", ["terminate", "truncate"])
def test_entries_of_all_agents_and_infos_that_are_none_are_read(game: str, ending: str) -> None:
    env = build(game, fault=ending)
    start = env.reset()
    assert start.obs[0].tolist() == [[0.0, 0.0, 0.0], [8.0, 8.0, 0.0]], "agents may have different spaces"
    assert start.available_actions[0].tolist() == [[True, True, True], [True, True, False]]
    steps = [env.step(torch.zeros(2, 2, dtype=torch.int64)) for _ in range(3)]
    assert [step.reward[0].item() for step in steps] == [1.5, 1.5, 1.5]
    ended = [(step.terminated[0].item(), step.truncated[0].item()) for step in steps]
    assert ended == [(False, False), (False, False), (ending == "terminate", ending == "truncate")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fault": "no agents"}, "its list possible_agents is missing"),
        ({"fault": "old reset"}, r"reset\(\) does not return a pair"),
        ({"fault": "old step"}, r"step\(\) does not return the five dictionaries"),
        ({"fault": "wide"}, "the observation of b has 5 numbers, but its space has 2"),
        ({"fault": "text"}, "the observation of b is not an array of numbers, but a str"),
        ({"fault": "stranger"}, "an entry for 'c', which is not in possible_agents"),
        ({"fault": "opposed"}, "has opponents .the rewards of its agents cancel out"),
        ({"names": ("adversary_0", "agent_0")}, "has opponents .adversary_0 and agent_0 are on two sides"),
        ({"names": ("red_0", "blue_0")}, "has opponents .blue and red are on two sides"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(game: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"env.task='{game}'.*{message}") as caught:
        build(game, **options)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_size_is_refused(game: str) -> None:
    env = build(game)
    env.reset()
    env._copies[0].fault = "masks"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="the action mask of b has 7 numbers, but its space has 2"):
        env.step(torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("task", ["mpe2.simple_tag_v3", "mpe2.simple_adversary_v3", "mpe2.simple_crypto_v3"])
def test_opponents_of_known_tasks_are_refused_with_the_scripted_ones(task: str) -> None:
    with pytest.raises(UserError, match=f"Use env=mpe env.task={task[5:-3]}, where the opposing side is scripted"):
        build(task)


def test_adversaries_alone_are_a_team(game: str) -> None:
    assert build(game, names=("adversary_0", "adversary_1")).n_agents == 2


def test_images_are_no_global_state(game: str) -> None:
    config = Config(task=game, options={"shape": (4, 5, 3)}, state="observations")
    with pytest.raises(
        UserError, match=r"a of env\.task='some_games\.game_v0' observes an image \[4, 5, 3\].*env\.state=features"
    ):
        make_env(config, 2, 0)


def test_unknown_observations_are_numbered_within_their_bounds(game: str) -> None:
    layout = make_env(Config(task=game, state="observations"), 2, 0).layout
    assert [(field.label, len(field.components), field.low, field.high) for field in layout] == [
        ("agent 0 observation", 3, 0.0, 9.0),
        ("agent 1 observation", 2, 0.0, 9.0),
        ("agent 1 padding", 1, 0.0, 0.0),
    ]
