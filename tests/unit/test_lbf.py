"""Level-based foraging: tasks, rules, what is seen, how episodes end, and where randomness comes from."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qllm_exp.envs import make_env
from qllm_exp.envs.base import Observation
from qllm_exp.envs.lbf import ACTIONS, LevelBasedForaging, parse_task, sample_start, tasks
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.errors import UserError

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
GONE = (-1, -1, 0)
TASK = "8x8-2p-2f"


def build(task: str = TASK, num_envs: int = 1, seed: int = 0, **other: object) -> LevelBasedForaging:
    env = make_env(LbfConfig(task=task, **other), num_envs, seed)  # type: ignore[arg-type]
    assert isinstance(env, LevelBasedForaging)
    return env


def place(env: LevelBasedForaging, agents: list[tuple[int, ...]], foods: list[tuple[int, ...]]) -> Observation:
    """Put every copy into one state, given as rows (row, column, level)."""
    rows = (torch.tensor(part).expand(env.num_envs, -1, -1) for part in (agents, foods))
    return env.set_positions(*rows)


def act(*actions: int) -> Tensor:
    return torch.tensor([actions])


def state_part(env: LevelBasedForaging, state: Tensor, entity: str, name: str, index: int) -> list[float]:
    return state[0, env.layout.find(entity, name, index).columns].tolist()


# Tasks


@pytest.mark.parametrize("task", [*tasks(), "6x6-5p-1f-coop-2s", "30x30-12p-20f"])
def test_a_task_string_decides_the_shapes(task: str) -> None:
    env = build(task, num_envs=3)
    board = env.board
    seen = env.reset()
    entities = board.players + board.foods
    assert seen.obs.shape == (3, board.players, 3 * entities) == (3, env.n_agents, env.obs_dim)
    assert seen.state.shape == (3, 3 * entities + board.players) == (3, env.state_dim)
    assert seen.available_actions.shape == (3, board.players, 6)
    assert (env.n_actions, env.episode_limit, env.task.task) == (6, 50, task)
    assert env.task.actions == ACTIONS
    after = env.step(torch.zeros(3, board.players, dtype=torch.int64))
    assert all(one.shape == (3,) for one in (after.reward, after.terminated, after.truncated))


def test_a_task_string_is_read_in_all_its_parts() -> None:
    assert parse_task("12x12-3p-4f-coop-2s") == (12, 3, 4, True, 2)
    assert parse_task("9x9-5p-1f") == (9, 5, 1, False, 9)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("8x8-2p-2f-coop2s", "Did you mean '8x8-2p-2f-coop-2s'"),
        ("Foraging-2s-8x8-2p-2f-coop-v3", "Did you mean '8x8-2p-2f-coop-2s'"),
        ("8x9-2p-2f", "one size for both sides"),
        ("8x8-2p-0f", "is not a foraging task"),
        ("8x8-2p-2f-2s-coop", "is not a foraging task"),
        ("4x4-2p-1f", "a size of at least 5"),
        ("8x8-1p-1f", "2 to 32 players"),
        ("5x5-13p-1f", "2 to 12 players"),
        ("5x5-2p-6f", "1 to 5 foods"),
    ],
)
def test_a_task_that_cannot_be_played_is_refused(task: str, says: str) -> None:
    with pytest.raises(UserError, match=r"env\.task=") as refused:
        build(task)
    assert says in str(refused.value)
    assert "[SIZE]x[SIZE]-[P]p-[F]f[-coop][-2s]" in str(refused.value)


# The global state


def test_the_layout_names_the_slices_of_the_state() -> None:
    env = build()
    state = place(env, [(0, 3, 1), (7, 6, 2)], [(5, 2, 3), (1, 4, 2)]).state
    assert state_part(env, state, "agent", "position", 0) == [0, 3]
    assert state_part(env, state, "agent", "level", 0) == [1]
    assert state_part(env, state, "agent", "position", 1) == [7, 6]
    assert state_part(env, state, "agent", "level", 1) == [2]
    # foods are numbered in reading order
    assert state_part(env, state, "food", "position", 0) == [1, 4]
    assert state_part(env, state, "food", "level", 0) == [2]
    assert state_part(env, state, "food", "position", 1) == [5, 2]
    assert state_part(env, state, "food", "level", 1) == [3]
    assert state_part(env, state, "agent", "last_action", 0) == [-1]

    state = env.step(act(SOUTH, WEST)).state
    assert state_part(env, state, "agent", "position", 0) == [1, 3]
    assert state_part(env, state, "agent", "position", 1) == [7, 5]
    assert state_part(env, state, "agent", "last_action", 0) == [SOUTH]
    assert state_part(env, state, "agent", "last_action", 1) == [WEST]


@pytest.mark.parametrize("task", ["8x8-2p-2f-coop-2s", "5x5-3p-4f", "15x15-4p-5f"])
def test_the_state_keeps_to_the_ranges_of_the_layout(task: str) -> None:
    env = build(task, num_envs=200)
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([one.low for one in env.layout for _ in one.components])
    high = torch.tensor([one.high for one in env.layout for _ in one.components])
    state = env.reset().state
    lowest, highest = state.amin(0), state.amax(0)
    for _ in range(50):
        state = env.step(torch.randint(6, (200, env.n_agents), generator=generator)).state
        lowest, highest = lowest.minimum(state.amin(0)), highest.maximum(state.amax(0))
    assert (lowest >= low).all() and (highest <= high).all()
    agents = env.n_agents * 3
    assert torch.equal(lowest[:agents], low[:agents]) and torch.equal(highest[:agents], high[:agents])


def test_a_collected_food_leaves_the_state() -> None:
    env = build()
    place(env, [(1, 3, 2), (7, 7, 1)], [(1, 4, 2), (5, 2, 3)])
    state = env.step(act(LOAD, NONE)).state
    assert state_part(env, state, "food", "position", 0) == [-1, -1]
    assert state_part(env, state, "food", "level", 0) == [0]
    assert state_part(env, state, "food", "position", 1) == [5, 2]


# Moving


@pytest.mark.parametrize(
    ("action", "to"), [(NONE, (3, 3)), (NORTH, (2, 3)), (SOUTH, (4, 3)), (WEST, (3, 2)), (EAST, (3, 4)), (LOAD, (3, 3))]
)
def test_moves_go_where_their_names_and_the_description_say(action: int, to: tuple[int, int]) -> None:
    env = build()
    place(env, [(3, 3, 1), (7, 7, 1)], [(5, 2, 1), GONE])
    state = env.step(act(action, NONE)).state
    assert state_part(env, state, "agent", "position", 0) == list(to)
    assert "north is x - 1, south x + 1, west y - 1, east y + 1" in env.task.goal


def test_borders_and_foods_block_and_only_a_neighbouring_food_can_be_loaded() -> None:
    env = build()
    seen = place(env, [(0, 0, 1), (4, 5, 1)], [(4, 4, 1), (2, 2, 1)])
    corner, at_food = seen.available_actions[0].tolist()
    assert corner == [True, False, True, False, True, False]
    assert at_food == [True, True, True, False, True, True]


@pytest.mark.parametrize(
    ("starts", "actions", "ends"),
    [
        pytest.param([(3, 3), (3, 5)], (EAST, WEST), [(3, 3), (3, 5)], id="the same cell: both stay"),
        pytest.param([(3, 3), (3, 4)], (EAST, NONE), [(3, 3), (3, 4)], id="a cell where one stays"),
        pytest.param([(3, 3), (3, 4)], (EAST, WEST), [(3, 4), (3, 3)], id="changing places"),
        pytest.param([(3, 3), (3, 4)], (EAST, EAST), [(3, 4), (3, 5)], id="following"),
        pytest.param([(3, 3), (3, 4), (3, 6)], (EAST, EAST, WEST), [(3, 4), (3, 4), (3, 6)], id="onto one held back"),
    ],
)
def test_collisions(starts: list[tuple[int, int]], actions: tuple[int, ...], ends: list[tuple[int, int]]) -> None:
    env = build(f"8x8-{len(starts)}p-2f")
    place(env, [(*cell, 1) for cell in starts], [(6, 6, 1), GONE])
    state = env.step(act(*actions)).state
    assert [tuple(state_part(env, state, "agent", "position", i)) for i in range(len(starts))] == ends


def test_an_action_that_is_not_available_counts_as_none() -> None:
    env = build()
    place(env, [(0, 3, 1), (4, 5, 2)], [(4, 4, 1), (1, 1, 1)])
    after = env.step(act(NORTH, WEST))
    assert state_part(env, after.state, "agent", "position", 0) == [0, 3]
    assert state_part(env, after.state, "agent", "position", 1) == [4, 5]
    assert env.step(act(LOAD, NONE)).reward.item() == 0


# Loading


@pytest.mark.parametrize("reward", ["sum", "mean"])
@pytest.mark.parametrize(
    ("agents", "actions", "collected"),
    [
        pytest.param([(3, 3, 2), (3, 5, 1)], (LOAD, LOAD), 3, id="together"),
        pytest.param([(3, 3, 2), (3, 5, 1)], (LOAD, NONE), 0, id="too weak alone"),
        pytest.param([(3, 3, 2), (2, 5, 1)], (LOAD, LOAD), 0, id="the other is only diagonal"),
        pytest.param([(6, 1, 2), (6, 3, 2)], (LOAD, LOAD), 2, id="stronger than needed"),
        pytest.param([(6, 1, 2), (6, 3, 1)], (LOAD, NONE), 2, id="strong enough alone"),
        pytest.param([(6, 1, 1), (3, 5, 2)], (LOAD, LOAD), 0, id="each at another food"),
    ],
)
def test_a_food_is_collected_when_the_levels_of_its_loaders_reach_its_own(
    reward: str, agents: list[tuple[int, ...]], actions: tuple[int, ...], collected: int
) -> None:
    env = build(reward=reward)
    place(env, agents, [(3, 4, 3), (6, 2, 2)])
    after = env.step(act(*actions))
    by_hand = collected / 5 / (2 if reward == "mean" else 1)
    assert after.reward.item() == pytest.approx(by_hand, abs=1e-7)
    assert after.state[0, [8, 11]].sum().item() == 5 - collected


def test_two_foods_can_be_collected_in_one_step() -> None:
    env = build("9x9-4p-2f")
    place(env, [(3, 3, 1), (3, 5, 1), (6, 3, 1), (8, 2, 2)], [(3, 4, 2), (7, 2, 2)])
    after = env.step(act(LOAD, LOAD, NONE, LOAD))
    assert after.reward.item() == pytest.approx(1)
    assert after.terminated.item() is True


# What an agent sees


def test_an_agent_sees_itself_first_and_the_rest_from_the_corner_of_its_view() -> None:
    env = build("10x10-3p-3f-2s")
    seen = place(env, [(5, 5, 1), (4, 7, 2), (9, 0, 2)], [(3, 3, 2), (7, 6, 1), (5, 8, 4)])
    nothing = [-1.0, -1.0, 0.0]
    # view of the first agent: rows 3 to 7, columns 3 to 7
    assert seen.obs[0, 0].tolist() == [0, 0, 2, 4, 3, 1, *nothing, 2, 2, 1, 1, 4, 2, *nothing]
    # the second: rows 2 to 6, columns 5 to 9; the only food in it moves to the first place
    assert seen.obs[0, 1].tolist() == [3, 3, 4, *nothing, *nothing, 2, 2, 2, 3, 0, 1, *nothing]
    # the third: rows 7 to 9, columns 0 to 2, alone
    assert seen.obs[0, 2].tolist() == [*nothing * 3, 2, 0, 2, *nothing * 2]


def test_near_the_northern_and_western_border_players_are_seen_further_than_foods() -> None:
    env = build("10x10-2p-2f-2s")
    seen = place(env, [(0, 1, 1), (4, 4, 2)], [(3, 1, 2), GONE])
    assert seen.obs[0, 0].tolist() == [*GONE, *GONE, 0, 1, 1, 4, 4, 2]
    assert seen.obs[0, 1].tolist() == [*GONE, *GONE, 2, 2, 2, *GONE]


def test_full_sight_shows_the_whole_board_without_collected_foods() -> None:
    env = build()
    place(env, [(1, 3, 2), (7, 7, 1)], [(1, 4, 2), (5, 2, 3)])
    after = env.step(act(LOAD, NONE))
    assert after.obs[0, 0].tolist() == [5, 2, 3, *GONE, 1, 3, 2, 7, 7, 1]
    assert after.obs[0, 1].tolist() == [5, 2, 3, *GONE, 7, 7, 1, 1, 3, 2]


# How episodes end


def test_collecting_everything_terminates_even_in_the_last_step() -> None:
    env = build(episode_limit=2)
    place(env, [(1, 3, 2), (7, 7, 1)], [(1, 4, 2), GONE])
    assert env.step(act(NONE, NONE))[4:] == (torch.tensor([False]), torch.tensor([False]))
    after = env.step(act(LOAD, NONE))
    assert (after.terminated.item(), after.truncated.item()) == (True, False)
    assert env.episode_metrics()["all_food_collected"].tolist() == [1.0]


def test_the_time_limit_truncates() -> None:
    env = build(episode_limit=3)
    env.reset()
    ends = [env.step(act(NONE, NONE))[4:] for _ in range(3)]
    assert [(bool(terminated), bool(truncated)) for terminated, truncated in ends] == [(False, False)] * 2 + [
        (False, True)
    ]
    assert env.episode_metrics()["all_food_collected"].tolist() == [0.0]


def test_a_copy_that_has_ended_stands_still_while_the_others_play_on() -> None:
    env = build(num_envs=2)
    agents = torch.tensor([[(1, 3, 2), (7, 7, 1)]] * 2)
    foods = torch.tensor([[(1, 4, 2), GONE], [(1, 4, 2), (5, 2, 3)]])
    env.set_positions(agents, foods)
    env.step(act(LOAD, NONE).expand(2, -1))
    after = env.step(act(SOUTH, NORTH).expand(2, -1))
    where = [env.layout.find("agent", "position", i).columns for i in range(2)]
    assert [after.state[0, one].tolist() for one in where] == [[1, 3], [7, 7]]
    assert [after.state[1, one].tolist() for one in where] == [[2, 3], [6, 7]]
    assert after.reward.tolist() == [0, 0]
    assert after.available_actions.any(2).all()


def test_nothing_happens_after_the_time_limit() -> None:
    env = build(episode_limit=1)
    place(env, [(1, 3, 2), (7, 7, 1)], [(1, 4, 2), (5, 2, 3)])
    before = env.step(act(NONE, NONE))
    after = env.step(act(LOAD, NORTH))
    assert torch.equal(after.obs, before.obs)
    assert after.reward.item() == 0


# Initial states


@pytest.mark.parametrize("task", ["8x8-2p-2f-coop-2s", "10x10-3p-3f", "15x15-4p-5f", "5x5-4p-3f-coop", "7x7-5p-6f"])
def test_initial_states_keep_the_rules(task: str) -> None:
    board = parse_task(task)
    agents, foods = sample_start(board, 2000, torch.Generator().manual_seed(0))
    there = foods[..., 2] > 0
    assert ((agents[..., :2] >= 0) & (agents[..., :2] < board.size)).all()
    assert set(agents[..., 2].flatten().tolist()) == {1, 2}
    assert ((foods[..., :2] >= 1) & (foods[..., :2] <= board.size - 2))[there].all()
    assert (foods[~there] == torch.tensor(GONE)).all()
    assert there.any(1).all() and (there[:, :-1] | ~there[:, 1:]).all()  # absent foods come last
    for i, j in itertools.combinations(range(board.players), 2):
        assert (agents[:, i, :2] != agents[:, j, :2]).any(1).all()
    for i, j in itertools.combinations(range(board.foods), 2):
        apart = (foods[:, i, :2] - foods[:, j, :2]).square().sum(1)
        assert (apart[there[:, i] & there[:, j]] > 4).all()
    for i, j in itertools.product(range(board.players), range(board.foods)):
        assert (agents[:, i, :2] != foods[:, j, :2]).any(1).all()
    top = agents[..., 2].sort().values[:, :3].sum(1, keepdim=True).expand_as(there)
    assert (foods[..., 2] == top)[there].all() if board.coop else (foods[..., 2] <= top)[there].all()


def test_a_given_state_is_not_changed_by_the_episode() -> None:
    env = build()
    agents, foods = torch.tensor([[(1.0, 3.0, 2.0), (7.0, 7.0, 1.0)]]), torch.tensor([[(1.0, 4.0, 2.0), GONE]])
    copies = agents.clone(), foods.clone()
    env.set_positions(agents, foods)
    env.step(act(LOAD, NORTH))
    assert torch.equal(agents, copies[0]) and torch.equal(foods, copies[1])


@pytest.mark.parametrize(
    ("agents", "foods", "says"),
    [
        ([(0, 0, 1)], [(2, 2, 1), GONE], "shapes"),
        ([(0, 0, 1), (8, 0, 1)], [(2, 2, 1), GONE], "off the 8x8 board"),
        ([(0, 0, 1), (2, 2, 1)], [(2, 2, 1), GONE], "on a food"),
        ([(0, 0, 1), (1, 1, 1)], [(0, 2, 1), GONE], "rows and columns 1 to 6"),
        ([(0, 0, 1), (1, 1, 1)], [(3, 2, 1), (4, 5, 0)], r"nor \(-1, -1, 0\)"),
        ([(0, 0, 1), (1, 1, 1)], [(3, 2, 1), (3, 4, 1)], "within two cells"),
    ],
)
def test_states_outside_the_rules_are_refused(
    agents: list[tuple[int, ...]], foods: list[tuple[int, ...]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        place(build(), agents, foods)


# Randomness, and where tensors live


def states(env: LevelBasedForaging, count: int = 3) -> Iterator[Tensor]:
    return (env.reset().state for _ in range(count))


def test_equal_seeds_give_equal_episodes_and_other_seeds_others() -> None:
    first, same, other = (list(states(build(num_envs=4, seed=seed))) for seed in (5, 5, 6))
    assert all(map(torch.equal, first, same))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])
    env = build(num_envs=4, seed=9)
    env.reset()
    env.seed(5)
    assert all(map(torch.equal, first, states(env)))


def test_the_environment_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build(num_envs=4).reset().state
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(build(num_envs=4).reset().state, first)


def test_a_saved_environment_goes_on_as_if_never_interrupted() -> None:
    env = build(num_envs=4)
    env.reset()
    saved = env.state_dict()
    expected = list(states(env))
    again = build(num_envs=4, seed=77)
    again.load_state_dict(saved)
    assert all(map(torch.equal, expected, states(again)))


def test_what_was_returned_is_the_callers() -> None:
    env, twin = (build("8x8-2p-2f-coop-2s") for _ in range(2))
    mine: tuple[Tensor, ...] = env.reset()
    other: tuple[Tensor, ...] = twin.reset()
    for _ in range(5):
        kept = [part.clone() for part in other]
        for part in mine:
            part.zero_()
        mine, now = env.step(act(SOUTH, EAST)), twin.step(act(SOUTH, EAST))
        assert all(map(torch.equal, mine, now))
        assert all(map(torch.equal, other, kept))
        other = now


def test_neither_reset_nor_step_reads_a_value_back() -> None:
    """Fake tensors have shapes and no values: whatever needs a value on the host, or a shape made from one, raises."""
    with FakeTensorMode():
        env = build("10x10-3p-3f-2s", num_envs=4, episode_limit=2)
        env.reset()
        for _ in range(3):
            after = env.step(torch.zeros(4, 3, dtype=torch.int64))
    assert after.obs.shape == (4, 3, 18)
