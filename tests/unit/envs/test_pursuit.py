"""env=pursuit: the rules against a slow reference, captures and penalties by hand, and what is refused."""

import math

import pytest
import torch

from qllm_exp.envs import make_env
from qllm_exp.envs.pursuit import ACTIONS, Config, Pursuit
from qllm_exp.errors import UserError

NORTH, SOUTH, WEST, EAST, STAY, CATCH = range(len(ACTIONS))
MOVES = {NORTH: (-1, 0), SOUTH: (1, 0), WEST: (0, -1), EAST: (0, 1)}


def pursuit(num_envs: int = 1, seed: int = 0, **options: object) -> Pursuit:
    env = make_env(Config(**options), num_envs, seed)  # type: ignore[arg-type]
    assert isinstance(env, Pursuit)
    return env


class Reference:
    """One copy, by the published rules, with a set of occupied cells and plain loops.

    Args:
        env: the environment in which the copy is.
        row: its number.
    """

    def __init__(self, env: Pursuit, row: int) -> None:
        self.size, self.torus, self.penalty = env.board.size, env._next_cells[0, 0] != 0, env._penalty
        self.hunters = [divmod(int(cell), self.size) for cell in env._hunters[row]]
        self.prey = [divmod(int(cell), self.size) for cell in env._prey[row]]

    def beside(self, cell: tuple[int, int], move: int) -> tuple[int, int]:
        """The cell next to one; itself if the border is in the way."""
        row, column = cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]
        if self.torus:
            return row % self.size, column % self.size
        return min(max(row, 0), self.size - 1), min(max(column, 0), self.size - 1)

    def occupied(self) -> set[tuple[int, int]]:
        return {cell for cell in self.hunters + self.prey if cell is not None}

    def step(
        self, actions: list[int], order: list[int], prey_order: list[int], preferences: list[list[float]]
    ) -> float:
        for agent in order:
            cell = self.hunters[agent]
            if cell is not None and actions[agent] in MOVES:
                target = self.beside(cell, actions[agent])
                if target not in self.occupied():
                    self.hunters[agent] = target
        reward = 0.0
        for prey, preference in zip(prey_order, preferences, strict=True):
            cell = self.prey[prey]
            if cell is None:
                continue
            around = [self.beside(cell, move) for move in MOVES]
            catching = [
                agent
                for agent, hunter in enumerate(self.hunters)
                if hunter is not None and actions[agent] == CATCH and hunter in around
            ]
            if len(catching) >= 2:
                reward += 10
                self.prey[prey] = None  # type: ignore[call-overload]
                for agent in catching:
                    self.hunters[agent] = None  # type: ignore[call-overload]
                continue
            reward += self.penalty * len(catching)
            free = [move for move in MOVES if around[move] not in self.occupied()]
            if free:
                self.prey[prey] = around[max(free, key=lambda move: preference[move])]
        return reward

    def state(self) -> list[float]:
        return [float(x) for cell in self.hunters + self.prey for x in (cell or (-1, -1))]

    def observation(self, agent: int) -> list[float]:
        """Hunters and prey within two cells of a hunter, each as a window of 25 cells."""
        centre, shifts = self.hunters[agent], range(-2, 3)
        seen = []
        for group in (self.hunters, self.prey):
            for row in shifts:
                for column in shifts:
                    cell = None
                    if centre is not None:
                        cell = (centre[0] + row, centre[1] + column)
                        if self.torus:
                            cell = (cell[0] % self.size, cell[1] % self.size)
                    seen.append(float(cell is not None and cell in group))
        return seen

    def available(self, agent: int) -> list[bool]:
        cell = self.hunters[agent]
        if cell is None:
            return [action == STAY for action in range(len(ACTIONS))]
        around = [self.beside(cell, move) for move in MOVES]
        return [*(target != cell for target in around), True, any(target in self.prey for target in around)]


@pytest.mark.parametrize("torus", [True, False])
@pytest.mark.parametrize(("task", "penalty"), [("5x5-4h-4p", -2.0), ("6x6-6h-3p", 0.0), ("10x10-8h-8p", -1.5)])
def test_every_step_is_that_of_a_slow_reference(task: str, penalty: float, torus: bool) -> None:
    n_copies = 24
    env = pursuit(n_copies, 7, task=task, penalty=penalty, torus=torus, episode_limit=40)
    moment = env.reset()
    copies = [Reference(env, row) for row in range(n_copies)]
    chance, captures = torch.Generator().manual_seed(1), 0
    draws = torch.Generator()
    for _ in range(env.episode_limit):
        for row, copy in enumerate(copies):
            assert moment.state[row].tolist() == copy.state()
            for agent in range(env.n_agents):
                assert moment.obs[row, agent].tolist() == copy.observation(agent)
                assert moment.available_actions[row, agent].tolist() == copy.available(agent)
        weights = moment.available_actions * torch.tensor([1.0, 1, 1, 1, 1, 8])
        actions = torch.multinomial(weights.flatten(0, 1), 1, generator=chance).view(n_copies, -1)
        draws.set_state(env._generator.current.get_state())
        order = torch.rand(n_copies, env.n_agents, generator=draws).argsort(1)
        prey_order = torch.rand(n_copies, env.board.prey, generator=draws).argsort(1)
        preferences = torch.rand(n_copies, env.board.prey, 4, generator=draws)
        step = env.step(actions)
        playing = [copy for copy in copies if any(copy.hunters) and any(copy.prey)]
        for row, copy in enumerate(copies):
            if copy in playing:
                reward = copy.step(
                    actions[row].tolist(), order[row].tolist(), prey_order[row].tolist(), preferences[row].tolist()
                )
                assert float(step.reward[row]) == reward
                captures += reward > 0
                assert bool(step.terminated[row]) == (not any(copy.hunters) or not any(copy.prey))
            else:
                assert step.reward[row] == 0
        if len(playing) < n_copies:  # the prey of a copy that has ended still move: nobody looks at it
            ended = [row for row, copy in enumerate(copies) if copy not in playing]
            for row in ended:
                copies[row].prey = [
                    None if cell == env._outside else divmod(int(cell), env.board.size) for cell in env._prey[row]
                ]
        moment = step
    assert captures > 3


def cells(*positions: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([[10 * row + column for row, column in positions]])


FAR = [(9, 0), (9, 2), (9, 4), (9, 6), (9, 8), (7, 9)]


@pytest.mark.parametrize(
    ("hunters", "catching", "reward"),
    [
        ([(3, 4), (5, 4)], [0, 1], 10.0),
        ([(3, 4), (5, 4)], [0], -1.0),
        ([(3, 4), (5, 5)], [0, 1], -1.0),
        ([(3, 4), (5, 4), (4, 3)], [0, 1, 2], 10.0),
        ([(3, 4), (5, 4)], [], 0.0),
    ],
    ids=["two", "alone", "diagonal", "three", "nobody"],
)
def test_two_hunters_capture_a_prey_and_leave_and_one_pays(
    hunters: list[tuple[int, int]], catching: list[int], reward: float
) -> None:
    env = pursuit()
    env.set_cells(
        cells(*hunters, *FAR[: 8 - len(hunters)]), cells((4, 4), *[(0, 2 * k) for k in range(5)], (1, 1), (1, 3))
    )
    actions = torch.full((1, 8), STAY)
    actions[0, catching] = CATCH
    step = env.step(actions)
    assert float(step.reward) == reward
    gone = [k for k in range(8) if step.state[0, 2 * k] == -1]
    assert gone == (catching if reward > 0 else [])
    assert (env.episode_metrics()["captured"] == (reward > 0)).all()
    assert all(step.available_actions[0, k].tolist() == [False] * 4 + [True, False] for k in gone)


def test_the_best_episode_gives_forty_and_ends_when_all_hunters_have_left() -> None:
    env = pursuit(penalty=-2.0, torus=False)
    prey = [(1, 1), (1, 5), (5, 1), (5, 5), (8, 8), (8, 0), (0, 8), (9, 4)]
    hunters = [(row + shift, column) for row, column in prey[:4] for shift in (-1, 1)]
    env.set_cells(cells(*hunters), cells(*prey))
    step = env.step(torch.full((1, 8), CATCH))
    assert float(step.reward) == 40 and bool(step.terminated) and not bool(step.truncated)
    assert "at most 40" in env.task.reward and not env.task.monotonic


def test_the_seam_of_the_torus_is_crossed_and_a_border_is_not() -> None:
    for torus, reward in ((True, 10.0), (False, -1.0)):
        env = pursuit(torus=torus)
        env.set_cells(cells((9, 4), (1, 4), *[(5, k) for k in range(6)]), cells((0, 4), *[(7, k) for k in range(7)]))
        actions = torch.full((1, 8), STAY)
        actions[0, :2] = CATCH
        assert float(env.step(actions).reward) == reward


def test_starts_are_uniform_over_cells_and_prey_move_to_every_free_side() -> None:
    env = pursuit(4000, 3)
    state = env.reset().state
    counts = torch.bincount((state[:, 0] * 10 + state[:, 1]).long(), minlength=100)
    assert abs(float(((counts - 40) ** 2 / 40).sum()) - 99) < 5 * math.sqrt(2 * 99)
    step = env.step(torch.full((4000, 8), STAY))
    shift = (step.state[:, 16:18] - state[:, 16:18]) % 10
    share = [float((shift == torch.tensor(move)).all(1).float().mean()) for move in ([9, 0], [1, 0], [0, 9], [0, 1])]
    assert all(abs(value - 0.25) < 0.03 for value in share)


def test_mean_reward_is_the_published_one_divided_by_the_hunters() -> None:
    env = pursuit(reward="mean")
    env.set_cells(cells((3, 4), (5, 4), *FAR), cells((4, 4), *[(0, k) for k in range(7)]))
    assert float(env.step(torch.tensor([[CATCH, CATCH] + [STAY] * 6])).reward) == 10 / 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": 1.0}, r"env.penalty=1 must be between -100 and 0.*Published: 0, -0.5"),
        ({"penalty": -1000.0}, "env.penalty=-1000 must be"),
        ({"task": "10x10-8h8p"}, r"not a task of predator-prey. Did you mean '10x10-8h-8p'\?"),
        ({"task": "4x4-2h-2p"}, "a size of at least 5"),
        ({"task": "5x5-9h-9p"}, "12 together on this board"),
        ({"task": "9x9-1h-3p"}, "at least 2 hunters"),
    ],
)
def test_what_cannot_be_played_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pursuit(**options)
