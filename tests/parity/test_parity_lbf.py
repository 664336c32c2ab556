"""env=lbf: parity with lbforaging in every step, and the same distribution of initial states."""

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

EPISODES = 80  # of each task
CPU = torch.device("cpu")

# The package registers at most 4 foods. The two tasks with 5 foods use its class, with otherwise equal settings.
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
    "5x5-2p-4f": ("Foraging-5x5-2p-4f-v3", {}),  # so small that there is rarely room for all foods
    # so many foods that the package runs out of attempts to place them
    "31x31-2p-190f": ("Foraging-19x19-2p-4f-v3", {"max_num_food": 190, "field_size": (31, 31), "sight": 31}),
}


def package_env(task: str) -> ForagingEnv:
    """The package's environment for a task, with the settings of its registered id."""
    env_id, overrides = PACKAGE[task]
    return ForagingEnv(**{**gymnasium.registry[env_id].kwargs, **overrides})


def package_state(env: ForagingEnv) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows (row, column, level) of the players [n, 3] and of the foods in reading order [F, 3], absent ones last."""
    agents = np.array([(*player.position, player.level) for player in env.players], dtype=np.float32)
    foods = np.tile(np.array((-1, -1, 0), dtype=np.float32), (env.max_num_food, 1))
    cells = np.argwhere(env.field > 0)
    foods[: len(cells), :2] = cells
    foods[: len(cells), 2] = env.field[tuple(cells.T)]
    return agents, foods


def package_starts(task: str, count: int) -> tuple[Tensor, Tensor]:
    """Initial states of the package's first episodes: agents [count, n, 3], foods [count, F, 3]."""
    env = package_env(task)
    env.seed(0)
    starts = []
    for _ in range(count):
        for player in env.players:
            player.position = None  # otherwise the cells where the players last stood count as taken
        env.reset()
        starts.append(package_state(env))
    agents, foods = zip(*starts, strict=True)
    return torch.tensor(np.array(agents)), torch.tensor(np.array(foods))


def purposeful_actions(env: LevelBasedForaging, state: Tensor, available: Tensor, generator: torch.Generator) -> Tensor:
    """Actions [N, n]: mostly go to the agent's own side of the first food that is left and load there; else random."""
    entities = state[:, : 3 * (env.n_agents + env.board.foods)].reshape(len(state), -1, 3)
    positions, foods = entities[:, : env.n_agents, :2], entities[:, env.n_agents :]
    first = (foods[..., 2] > 0).float().argmax(1)
    moves = torch.tensor(((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0)))
    goal = foods[torch.arange(len(foods)), first, :2].unsqueeze(1) + moves[1 : env.n_agents + 1]
    distance = (positions.unsqueeze(2) + moves - goal.unsqueeze(2)).abs().sum(3)
    distance[..., 5] = torch.where(distance[..., 0] == 0, -1, torch.inf)
    distance[..., 0] = 100  # only where nothing else is possible
    distance = distance.masked_fill(~available, torch.inf)
    purposeful = (distance + 0.01 * torch.rand(distance.shape, generator=generator)).argmin(2)
    random = torch.randint(6, purposeful.shape, generator=generator)
    return torch.where(torch.rand(purposeful.shape, generator=generator) < 0.85, purposeful, random)


def test_every_listed_task_is_compared() -> None:
    assert set(tasks()) <= set(PACKAGE)


@pytest.mark.parametrize("task", tasks())
def test_same_actions_lead_to_the_same_steps(task: str) -> None:
    references = [package_env(task) for _ in range(EPISODES)]
    first_obs = [env.reset(seed=seed)[0] for seed, env in enumerate(references)]
    # With the mask, the actions that the package executes are the available ones. The steps are the same without it.
    env = LevelBasedForaging(LbfConfig(task=task, mask_ineffective=True), EPISODES, 0, CPU)
    agents, foods = (torch.tensor(np.array(rows)) for rows in zip(*map(package_state, references), strict=True))
    # The order of the foods does not matter.
    current = env.set_positions(agents, foods.flip(1))
    generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(current.obs, torch.tensor(np.array(first_obs)), rtol=0, atol=0)

    playing = list(range(EPISODES))
    returns = torch.zeros(EPISODES)
    ends = {"terminated": 0, "truncated": 0}
    for elapsed in range(1, 51):
        valid_actions = [
            [[action in reference._valid_actions[player] for action in Action] for player in reference.players]
            for reference in references
        ]
        assert torch.equal(current.available_actions[playing], torch.tensor(valid_actions)[playing])
        actions = purposeful_actions(env, current.state, current.available_actions, generator)
        step = env.step(actions)
        current = Observation(*step[:3])
        returns += step.reward

        expected = [references[i].step(actions[i].tolist()) for i in playing]
        obs, rewards, done = (np.array([reference_step[part] for reference_step in expected]) for part in (0, 1, 2))
        torch.testing.assert_close(current.obs[playing], torch.tensor(obs), rtol=0, atol=0)
        torch.testing.assert_close(step.reward[playing], torch.tensor(rewards).sum(1).float(), rtol=0, atol=1e-6)
        agent_rows = np.array([package_state(references[i])[0] for i in playing])
        assert torch.equal(current.state[playing, : 3 * env.n_agents], torch.tensor(agent_rows).flatten(1))
        all_collected = torch.tensor([bool((references[i].field == 0).all()) for i in playing])
        assert torch.equal(step.terminated[playing], all_collected)
        assert torch.equal((step.terminated | step.truncated)[playing], torch.tensor(done))
        assert not (step.terminated & step.truncated).any()
        assert elapsed == 50 or not step.truncated.any()
        ends["terminated"] += int(step.terminated[playing].sum())
        ends["truncated"] += int(step.truncated[playing].sum())
        playing = [i for i, over in zip(playing, done, strict=True) if not over]
    assert not playing
    # The comparison is meaningful only if food is collected and episodes end both ways.
    assert ends["terminated"] > EPISODES // 10 and ends["truncated"] > 0
    assert returns.mean() > 0.4


def agent_cells(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (agents[..., 0] * size + agents[..., 1]).flatten()


def food_cells(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (foods[..., 0] * size + foods[..., 1])[foods[..., 2] > 0]


def distance_player_to_food(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    """Steps between the first player and the first food in reading order."""
    return (agents[:, 0, :2] - foods[:, 0, :2]).abs().sum(1)


def squared_distance_of_foods(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (foods[:, 0, :2] - foods[:, 1, :2]).square().sum(1)


def squared_distance_of_players(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (agents[:, 0, :2] - agents[:, 1, :2]).square().sum(1)


def levels(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    """All levels of a state encoded as one number, for their joint distribution."""
    all_levels = torch.cat((agents[..., 2], foods[:, :2, 2]), 1)
    return (all_levels * 7.0 ** torch.arange(all_levels.shape[1])).sum(1)


def foods_placed(agents: Tensor, foods: Tensor, size: int) -> Tensor:
    return (foods[..., 2] > 0).sum(1)


def p_value(sample: Tensor, reference: Tensor) -> float:
    """P-value of a chi-square test that two samples have the same distribution. Rare values are pooled."""
    values, codes = torch.unique(torch.cat((sample, reference)), return_inverse=True)
    sizes = [len(sample), len(reference)]
    table = torch.stack([torch.bincount(part, minlength=len(values)) for part in codes.split(sizes)])
    rare = table.sum(0) < 20
    table = torch.cat((table[:, ~rare], table[:, rare].sum(1, keepdim=True)), 1)
    table = table[:, table.sum(0) > 0]
    return float(chi2_contingency(table.numpy()).pvalue) if table.shape[1] > 1 else 1.0


STATISTICS = (
    agent_cells,
    food_cells,
    distance_player_to_food,
    squared_distance_of_foods,
    squared_distance_of_players,
    levels,
    foods_placed,
)


@pytest.mark.parametrize(
    ("task", "count", "statistics"),
    [
        ("8x8-2p-2f-coop-2s", 4000, STATISTICS),
        ("10x10-3p-3f", 4000, STATISTICS),
        ("15x15-4p-5f", 3000, STATISTICS),
        ("5x5-2p-4f", 300, STATISTICS),
        ("31x31-2p-190f", 200, (foods_placed,)),
    ],
)
def test_initial_states_have_the_distribution_of_the_package(
    task: str, count: int, statistics: tuple[Callable[[Tensor, Tensor, int], Tensor], ...]
) -> None:
    board = parse_task(task)
    reference = package_starts(task, count)
    sample = sample_start(board, 2 * count, torch.Generator().manual_seed(0))
    p_values = {
        statistic.__name__: p_value(statistic(*sample, board.size), statistic(*reference, board.size))
        for statistic in statistics
    }
    assert min(p_values.values()) > 0.001, p_values
