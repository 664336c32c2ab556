"""env=matrix: the published payoffs, their shape, and what the state remembers."""

import itertools

import numpy as np
import pytest
import torch

from qllm_exp.envs import make_env
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.envs.matrix import tasks
from qllm_exp.errors import UserError

# As Claus and Boutilier (1998) print them.
CLAUS_CLIMBING = np.array([[11, -30, 0], [-30, 7, 6], [0, 0, 5]])


def claus_penalty(k: int) -> np.ndarray:
    return np.array([[10, 0, k], [0, 2, 0], [k, 0, 10]])


def played_payoffs(task: str, reward: str = "mean") -> np.ndarray:
    """The payoff matrix that the environment pays, with one copy per joint action."""
    env = make_env(MatrixConfig(task=task, reward=reward), 9, 0)
    env.reset()
    joint = torch.tensor(list(itertools.product(range(3), repeat=2)))
    return env.step(joint).reward.view(3, 3).numpy()


def test_climbing_is_claus_and_boutiliers_with_the_agents_exchanged() -> None:
    assert np.array_equal(played_payoffs("climbing"), CLAUS_CLIMBING.T)


@pytest.mark.parametrize("penalty", [0, 25, 50, 75, 100])
def test_penalty_is_claus_and_boutiliers_with_the_second_agents_actions_reversed(penalty: int) -> None:
    assert np.array_equal(played_payoffs(f"penalty-{penalty}"), claus_penalty(-penalty)[:, ::-1])


def test_sum_adds_the_payoffs_of_both_agents() -> None:
    assert np.array_equal(played_payoffs("climbing", "sum"), 2 * played_payoffs("climbing", "mean"))


def test_the_state_is_the_last_joint_action_and_the_observation_is_constant() -> None:
    env = make_env(MatrixConfig(reward="mean"), 2, 0)
    start = env.reset()
    assert start.state.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
    step = env.step(torch.tensor([[0, 2], [1, 0]]))
    for agent, last_actions in enumerate([[[0.0], [1.0]], [[2.0], [0.0]]]):
        column = step.state[:, env.layout.find("agent", "last_action", agent).columns]
        assert column.tolist() == last_actions
    assert torch.equal(step.obs, start.obs)
    assert env.reset().state.tolist() == start.state.tolist()


def test_the_games_are_not_monotonic_and_their_description_gives_the_payoffs() -> None:
    for task in tasks():
        env = make_env(MatrixConfig(task=task), 1, 0)
        assert not env.task.monotonic
        assert str(played_payoffs(task).astype(int).tolist()) in env.task.reward


def test_an_unknown_game_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="Did you mean 'penalty-100'"):
        make_env(MatrixConfig(task="penalty-1000"), 1, 0)
