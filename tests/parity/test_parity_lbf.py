"""`env=lbf` plays by the rules of lbforaging: same states, same actions, same results, and the same initial states."""

from collections.abc import Callable
from typing import Any

import gymnasium
import lbforaging  # noqa: F401 - registers the ids
import numpy as np
import pytest
import torch
from lbforaging.foraging.environment import Action, ForagingEnv
from numpy.typing import NDArray
from scipy.stats import chi2_contingency
from torch import Tensor

from qllm_exp.envs.base import Observation
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.lbf import LevelBasedForaging, parse_task, sample_start, tasks

EPISODES = 200
CPU = torch.device("cpu")

# The package registers at most 4 foods; the two tasks with 5 foods are its class with the same settings otherwise.
PACKAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "8x8-2p-2f-coop-2s": ("Foraging-2s-8x8-2p-2f-coop-v3", {}),
    "10x10-3p-3f-2s": ("Foraging-2s-10x10-3p-3f-v3", {}),
    "10x10-3p-3f-coop-2s": ("Foraging-2s-10x10-3p-3f-coop-v3", {}),
    "15x15-4p-3f-2s": ("Foraging-2s-15x15-4p-3f-v3", {}),
    "15x15-4p-3f-coop-2s": ("Foraging-2s-15x15-4p-3f-coop-v3", {}),
    "8x8-2p-2f-coop": ("Foraging-8x8-2p-2f-coop-v3", {}),
    "10x10-3p-3f": ("Foraging-10x10-3p-3f-v3", {}),
    "10x10-3p-3f-coop": ("Foraging-10x10-3p-3f-coop-v3", {}),
    "15x15-4p-3f": ("Foraging-15x15-4p-3f-v3", {}),
    "15x15-4p-3f-coop": ("Foraging-15x15-4p-3f-coop-v3", {}),
    "15x15-3p-5f": ("Foraging-15x15-3p-4f-v3", {"max_num_food": 5}),
    "15x15-4p-5f": ("Foraging-15x15-4p-4f-v3", {"max_num_food": 5}),
    "5x5-2p-4f": ("Foraging-5x5-2p-4f-v3", {}),  # so small that all foods seldom find a place
    # so many foods that the package's attempts at placing them run out
    "31x31-2p-190f": ("Foraging-19x19-2p-4f-v3", {"max_num_food": 190, "field_size": (31, 31), "sight": 31}),
}


def package_env(task: str) -> ForagingEnv:
    """The package's environment for a task, with the settings of its registered id."""
    name, other = PACKAGE[task]
    return ForagingEnv(**{**gymnasium.registry[name].kwargs, **other})


def package_state(env: ForagingEnv) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows (row, column, level) of the players [n, 3] and of the foods in reading order [F, 3], absent ones last."""
    agents = np.array([(*player.position, player.level) for player in env.players], dtype=np.float32)
    foods = np.tile(np.array((-1, -1, 0), dtype=np.float32), (env.max_num_food, 1))
    there = np.argwhere(env.field > 0)
    foods[: len(there), :2] = there
    foods[: len(there), 2] = env.field[tuple(there.T)]
    return agents, foods


def package_starts(task: str, count: int) -> tuple[Tensor, Tensor]:
    """Initial states of the package: agents [count, n, 3], foods [count, F, 3]. Every one as if it were the first."""
    env = package_env(task)
    env.seed(0)
    starts = []
    for _ in range(count):
        for player in env.players:
            player.position = None  # else the cells where the players last stood count as taken
        env.reset()
        starts.append(package_state(env))
    agents, foods = zip(*starts, strict=True)
    return torch.tensor(np.array(agents)), torch.tensor(np.array(foods))


def purposeful(env: LevelBasedForaging, state: Tensor, available: Tensor, generator: torch.Generator) -> Tensor:
    """Actions [N, n]: mostly to the own side of the first food that is left, and load there; else anything."""
    entities = state[:, : 3 * (env.n_agents + env.board.foods)].reshape(len(state), -1, 3)
    where, foods = entities[:, : env.n_agents, :2], entities[:, env.n_agents :]
    first = (foods[..., 2] > 0).float().argmax(1)
    moves = torch.tensor(((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0)))
    goal = foods[torch.arange(len(foods)), first, :2].unsqueeze(1) + moves[1 : env.n_agents + 1]
    distance = (where.unsqueeze(2) + moves - goal.unsqueeze(2)).abs().sum(3)
    distance[..., 5] = torch.where(distance[..., 0] == 0, -1, torch.inf)
    distance[..., 0] = 100  # only where nothing else is possible
    distance = distance.masked_fill(~available, torch.inf)
    purpose = (distance + 0.01 * torch.rand(distance.shape, generator=generator)).argmin(2)
    anything = torch.randint(6, purpose.shape, generator=generator)
    return torch.where(torch.rand(purpose.shape, generator=generator) < 0.85, purpose, anything)


def test_every_listed_task_is_compared() -> None:
    assert set(tasks()) <= set(PACKAGE)


@pytest.mark.parametrize("task", tasks())
def test_same_actions_lead_to_the_same_steps(task: str) -> None:
    theirs = [package_env(task) for _ in range(EPISODES)]
    first = [env.reset(seed=seed)[0] for seed, env in enumerate(theirs)]
    ours = LevelBasedForaging(LbfConfig(task=task), EPISODES, 0, CPU)
    agents, foods = (torch.tensor(np.array(rows)) for rows in zip(*map(package_state, theirs), strict=True))
    # Any order of the foods means the same state.
    now = ours.set_positions(agents, foods.flip(1))
    generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(now.obs, torch.tensor(np.array(first)), rtol=0, atol=0)

    playing = list(range(EPISODES))
    returns = torch.zeros(EPISODES)
    ends = {"terminated": 0, "truncated": 0}
    for elapsed in range(1, 51):
        can = torch.tensor([[[a in env._valid_actions[p] for a in Action] for p in env.players] for env in theirs])
        assert torch.equal(now.available_actions[playing], can[playing])
        actions = purposeful(ours, now.state, now.available_actions, generator)
        step = ours.step(actions)
        now = Observation(*step[:3])
        returns += step.reward

        wanted = {i: theirs[i].step(actions[i].tolist()) for i in playing}
        obs, reward, done = (np.array([wanted[i][part] for i in playing]) for part in (0, 1, 2))
        torch.testing.assert_close(now.obs[playing], torch.tensor(obs), rtol=0, atol=0)
        torch.testing.assert_close(step.reward[playing], torch.tensor(reward).sum(1).float(), rtol=0, atol=1e-6)
        where = np.array([package_state(theirs[i])[0] for i in playing])
        assert torch.equal(now.state[playing, : 3 * ours.n_agents], torch.tensor(where).flatten(1))
        empty = torch.tensor([bool((theirs[i].field == 0).all()) for i in playing])
        assert torch.equal(step.terminated[playing], empty)
        assert torch.equal((step.terminated | step.truncated)[playing], torch.tensor(done))
        assert not (step.terminated & step.truncated).any()
        assert elapsed == 50 or not step.truncated.any()
        ends["terminated"] += int(step.terminated[playing].sum())
        ends["truncated"] += int(step.truncated[playing].sum())
        playing = [i for i, over in zip(playing, done, strict=True) if not over]
    assert not playing
    # The comparison is worth something only where food is collected and episodes end both ways.
    assert ends["terminated"] > EPISODES // 10 and ends["truncated"] > 0
    assert returns.mean() > 0.4


def agent_cells(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (agents[..., 0] * size + agents[..., 1]).flatten()


def food_cells(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (foods[..., 0] * size + foods[..., 1])[foods[..., 2] > 0]


def first_food_and_first_player(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    """Steps between the first player and the first food in reading order."""
    return (agents[:, 0, :2] - foods[:, 0, :2]).abs().sum(1)


def between_foods(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (foods[:, 0, :2] - foods[:, 1, :2]).square().sum(1)


def between_players(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (agents[:, 0, :2] - agents[:, 1, :2]).square().sum(1)


def levels(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    """All levels of a state as one number: how the levels of players and foods go together."""
    together = torch.cat((agents[..., 2], foods[:, :2, 2]), 1)
    return (together * 7.0 ** torch.arange(together.shape[1])).sum(1)


def foods_placed(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (foods[..., 2] > 0).sum(1)


def p_value(ours: Tensor, theirs: Tensor) -> float:
    """Chi-square test that two samples of numbers have one distribution; rare values are counted together."""
    values, codes = torch.unique(torch.cat((ours, theirs)), return_inverse=True)
    table = torch.stack([torch.bincount(part, minlength=len(values)) for part in codes.split([len(ours), len(theirs)])])
    rare = table.sum(0) < 20
    table = torch.cat((table[:, ~rare], table[:, rare].sum(1, keepdim=True)), 1)
    table = table[:, table.sum(0) > 0]
    return float(chi2_contingency(table.numpy()).pvalue) if table.shape[1] > 1 else 1.0


FIGURES = (agent_cells, food_cells, first_food_and_first_player, between_foods, between_players, levels, foods_placed)


@pytest.mark.parametrize(
    ("task", "count", "figures"),
    [
        ("8x8-2p-2f-coop-2s", 4000, FIGURES),
        ("10x10-3p-3f", 4000, FIGURES),
        ("15x15-4p-5f", 3000, FIGURES),
        ("5x5-2p-4f", 300, FIGURES),
        ("31x31-2p-190f", 200, (foods_placed,)),
    ],
)
def test_initial_states_have_the_distribution_of_the_package(
    task: str, count: int, figures: tuple[Callable[[Tensor, Tensor, int], Tensor], ...]
) -> None:
    board = parse_task(task)
    theirs = package_starts(task, count)
    ours = sample_start(board, 2 * count, torch.Generator().manual_seed(0))
    found = {of.__name__: p_value(of(*ours, board.size), of(*theirs, board.size)) for of in figures}
    assert min(found.values()) > 0.001, found
