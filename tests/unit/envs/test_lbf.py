"""Level-based foraging: tasks, rules, observations, ends of episodes, and the source of randomness."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qllm_exp.envs import make_env
from qllm_exp.envs.base import Observation, Step
from qllm_exp.envs.lbf import ACTIONS, LevelBasedForaging, parse_task, sample_start, tasks
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.errors import UserError

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
ABSENT = (-1, -1, 0)
TASK = "8x8-2p-2f"


def build(task: str = TASK, num_envs: int = 1, seed: int = 0, **options: object) -> LevelBasedForaging:
    env = make_env(LbfConfig(task=task, **options), num_envs, seed)  # type: ignore[arg-type]
    assert isinstance(env, LevelBasedForaging)
    return env


def place(env: LevelBasedForaging, agents: list[tuple[int, ...]], foods: list[tuple[int, ...]]) -> Observation:
    """Put every copy into the same state, given as rows (row, column, level)."""
    agent_rows, food_rows = (torch.tensor(rows).expand(env.num_envs, -1, -1) for rows in (agents, foods))
    return env.set_positions(agent_rows, food_rows)


def act(*actions: int) -> Tensor:
    return torch.tensor([actions])


def state_values(env: LevelBasedForaging, state: Tensor, entity: str, name: str, index: int) -> list[float]:
    return state[0, env.layout.find(entity, name, index).columns].tolist()


# Tasks


@pytest.mark.parametrize("task", [*tasks(), "6x6-5p-1f-coop-2s", "30x30-12p-20f"])
def test_a_task_string_decides_the_shapes(task: str) -> None:
    env = build(task, num_envs=3)
    board = env.board
    start = env.reset()
    entities = board.players + board.foods
    assert start.obs.shape == (3, board.players, 3 * entities) == (3, env.n_agents, env.obs_dim)
    assert start.state.shape == (3, 3 * entities + board.players) == (3, env.state_dim)
    assert start.available_actions.shape == (3, board.players, 6)
    assert (env.n_actions, env.episode_limit, env.task.task) == (6, 50, task)
    assert env.task.actions == ACTIONS
    step = env.step(torch.zeros(3, board.players, dtype=torch.int64))
    assert step.reward.shape == step.terminated.shape == step.truncated.shape == (3,)


def test_a_task_string_is_read_in_all_its_parts() -> None:
    assert parse_task("12x12-3p-4f-coop-2s") == (12, 3, 4, True, 2)
    assert parse_task("9x9-5p-1f") == (9, 5, 1, False, 9)


@pytest.mark.parametrize(
    ("task", "message"),
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
def test_a_task_that_cannot_be_played_is_refused(task: str, message: str) -> None:
    with pytest.raises(UserError, match=r"env\.task=") as error:
        build(task)
    assert message in str(error.value)
    assert "[SIZE]x[SIZE]-[P]p-[F]f[-coop][-2s]" in str(error.value)


# The global state


def test_the_layout_names_the_slices_of_the_state() -> None:
    env = build()
    state = place(env, [(0, 3, 1), (7, 6, 2)], [(5, 2, 3), (1, 4, 2)]).state
    assert state_values(env, state, "agent", "position", 0) == [0, 3]
    assert state_values(env, state, "agent", "level", 0) == [1]
    assert state_values(env, state, "agent", "position", 1) == [7, 6]
    assert state_values(env, state, "agent", "level", 1) == [2]
    # foods are numbered in reading order
    assert state_values(env, state, "food", "position", 0) == [1, 4]
    assert state_values(env, state, "food", "level", 0) == [2]
    assert state_values(env, state, "food", "position", 1) == [5, 2]
    assert state_values(env, state, "food", "level", 1) == [3]
    assert state_values(env, state, "agent", "last_action", 0) == [-1]

    state = env.step(act(SOUTH, WEST)).state
    assert state_values(env, state, "agent", "position", 0) == [1, 3]
    assert state_values(env, state, "agent", "position", 1) == [7, 5]
    assert state_values(env, state, "agent", "last_action", 0) == [SOUTH]
    assert state_values(env, state, "agent", "last_action", 1) == [WEST]


@pytest.mark.parametrize("task", ["8x8-2p-2f-coop-2s", "5x5-3p-4f", "15x15-4p-5f"])
def test_the_state_keeps_to_the_ranges_of_the_layout(task: str) -> None:
    env = build(task, num_envs=200)
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([field.low for field in env.layout for _ in field.components])
    high = torch.tensor([field.high for field in env.layout for _ in field.components])
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
    assert state_values(env, state, "food", "position", 0) == [-1, -1]
    assert state_values(env, state, "food", "level", 0) == [0]
    assert state_values(env, state, "food", "position", 1) == [5, 2]


# Moving


@pytest.mark.parametrize(
    ("action", "target"),
    [(NONE, (3, 3)), (NORTH, (2, 3)), (SOUTH, (4, 3)), (WEST, (3, 2)), (EAST, (3, 4)), (LOAD, (3, 3))],
)
def test_moves_go_where_their_names_and_the_description_say(action: int, target: tuple[int, int]) -> None:
    env = build()
    place(env, [(3, 3, 1), (7, 7, 1)], [(5, 2, 1), ABSENT])
    state = env.step(act(action, NONE)).state
    assert state_values(env, state, "agent", "position", 0) == list(target)
    assert "north is x - 1, south x + 1, west y - 1, east y + 1" in env.task.goal


def test_borders_and_foods_block_and_only_a_neighbouring_food_can_be_loaded() -> None:
    env = build(mask_ineffective=True)
    start = place(env, [(0, 0, 1), (4, 5, 1)], [(4, 4, 1), (2, 2, 1)])
    in_corner, beside_food = start.available_actions[0].tolist()
    assert in_corner == [True, False, True, False, True, False]
    assert beside_food == [True, True, True, False, True, True]


def test_every_action_is_available_as_published() -> None:
    env = build()
    start = place(env, [(0, 0, 1), (4, 5, 1)], [(4, 4, 1), (2, 2, 1)])
    step = env.step(act(NORTH, LOAD))
    assert start.available_actions.all() and step.available_actions.all()


def test_a_mask_changes_nothing_but_the_available_actions() -> None:
    published, masked = (build("8x8-2p-2f-2s", 50, mask_ineffective=mask) for mask in (False, True))
    generator = torch.Generator().manual_seed(0)
    moments: list[tuple[Observation | Step, Observation | Step]] = [(published.reset(), masked.reset())]
    for _ in range(published.episode_limit):
        actions = torch.randint(6, (50, 2), generator=generator)
        moments.append((published.step(actions), masked.step(actions)))
    for moment, masked_moment in moments:
        pairs = zip(moment._asdict().items(), masked_moment, strict=True)
        assert all(torch.equal(tensor, other) for (name, tensor), other in pairs if name != "available_actions")
        assert moment.available_actions.all() and not masked_moment.available_actions.all()


@pytest.mark.parametrize(
    ("starts", "actions", "ends"),
    [
        pytest.param([(3, 3), (3, 5)], (EAST, WEST), [(3, 3), (3, 5)], id="same target: both stay"),
        pytest.param([(3, 3), (3, 4)], (EAST, NONE), [(3, 3), (3, 4)], id="cell of a player that stays"),
        pytest.param([(3, 3), (3, 4)], (EAST, WEST), [(3, 4), (3, 3)], id="swapping cells"),
        pytest.param([(3, 3), (3, 4)], (EAST, EAST), [(3, 4), (3, 5)], id="following"),
        pytest.param(
            [(3, 3), (3, 4), (3, 6)], (EAST, EAST, WEST), [(3, 4), (3, 4), (3, 6)], id="cell of a blocked player"
        ),
    ],
)
def test_collisions(starts: list[tuple[int, int]], actions: tuple[int, ...], ends: list[tuple[int, int]]) -> None:
    env = build(f"8x8-{len(starts)}p-2f")
    place(env, [(*cell, 1) for cell in starts], [(6, 6, 1), ABSENT])
    state = env.step(act(*actions)).state
    assert [tuple(state_values(env, state, "agent", "position", i)) for i in range(len(starts))] == ends


def test_an_action_without_effect_counts_as_none() -> None:
    env = build()
    place(env, [(0, 3, 1), (4, 5, 2)], [(4, 4, 1), (1, 1, 1)])
    step = env.step(act(NORTH, WEST))
    assert state_values(env, step.state, "agent", "position", 0) == [0, 3]
    assert state_values(env, step.state, "agent", "position", 1) == [4, 5]
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
    step = env.step(act(*actions))
    expected = collected / 5 / (2 if reward == "mean" else 1)
    assert step.reward.item() == pytest.approx(expected, abs=1e-7)
    assert step.state[0, [8, 11]].sum().item() == 5 - collected


def test_two_foods_can_be_collected_in_one_step() -> None:
    env = build("9x9-4p-2f")
    place(env, [(3, 3, 1), (3, 5, 1), (6, 3, 1), (8, 2, 2)], [(3, 4, 2), (7, 2, 2)])
    step = env.step(act(LOAD, LOAD, NONE, LOAD))
    assert step.reward.item() == pytest.approx(1)
    assert step.terminated.item() is True


# Observations


def test_an_agent_sees_itself_first_and_the_rest_from_the_corner_of_its_view() -> None:
    env = build("10x10-3p-3f-2s")
    start = place(env, [(5, 5, 1), (4, 7, 2), (9, 0, 2)], [(3, 3, 2), (7, 6, 1), (5, 8, 4)])
    # the first agent sees rows 3 to 7 and columns 3 to 7
    assert start.obs[0, 0].tolist() == [0, 0, 2, 4, 3, 1, *ABSENT, 2, 2, 1, 1, 4, 2, *ABSENT]
    # the second sees rows 2 to 6 and columns 5 to 9; the only food in it moves to the first slot
    assert start.obs[0, 1].tolist() == [3, 3, 4, *ABSENT, *ABSENT, 2, 2, 2, 3, 0, 1, *ABSENT]
    # the third sees rows 7 to 9 and columns 0 to 2, and nothing but itself
    assert start.obs[0, 2].tolist() == [*ABSENT * 3, 2, 0, 2, *ABSENT * 2]


def test_near_the_northern_and_western_border_players_are_seen_further_than_foods() -> None:
    env = build("10x10-2p-2f-2s")
    start = place(env, [(0, 1, 1), (4, 4, 2)], [(3, 1, 2), ABSENT])
    assert start.obs[0, 0].tolist() == [*ABSENT, *ABSENT, 0, 1, 1, 4, 4, 2]
    assert start.obs[0, 1].tolist() == [*ABSENT, *ABSENT, 2, 2, 2, *ABSENT]


def test_full_sight_shows_the_whole_board_without_collected_foods() -> None:
    env = build()
    place(env, [(1, 3, 2), (7, 7, 1)], [(1, 4, 2), (5, 2, 3)])
    step = env.step(act(LOAD, NONE))
    assert step.obs[0, 0].tolist() == [5, 2, 3, *ABSENT, 1, 3, 2, 7, 7, 1]
    assert step.obs[0, 1].tolist() == [5, 2, 3, *ABSENT, 7, 7, 1, 1, 3, 2]


# Ends of episodes


def test_collecting_everything_terminates_even_in_the_last_step() -> None:
    env = build(episode_limit=2)
    place(env, [(1, 3, 2), (7, 7, 1)], [(1, 4, 2), ABSENT])
    first = env.step(act(NONE, NONE))
    assert (first.terminated.item(), first.truncated.item()) == (False, False)
    last = env.step(act(LOAD, NONE))
    assert (last.terminated.item(), last.truncated.item()) == (True, False)
    assert env.episode_metrics()["all_food_collected"].tolist() == [1.0]


def test_the_time_limit_truncates() -> None:
    env = build(episode_limit=3)
    env.reset()
    steps = [env.step(act(NONE, NONE)) for _ in range(3)]
    assert [step.terminated.item() for step in steps] == [False, False, False]
    assert [step.truncated.item() for step in steps] == [False, False, True]
    assert env.episode_metrics()["all_food_collected"].tolist() == [0.0]


def test_a_copy_that_has_ended_stands_still_while_the_others_play_on() -> None:
    env = build(num_envs=2)
    agents = torch.tensor([[(1, 3, 2), (7, 7, 1)]] * 2)
    foods = torch.tensor([[(1, 4, 2), ABSENT], [(1, 4, 2), (5, 2, 3)]])
    env.set_positions(agents, foods)
    env.step(act(LOAD, NONE).expand(2, -1))
    step = env.step(act(SOUTH, NORTH).expand(2, -1))
    positions = [env.layout.find("agent", "position", i).columns for i in range(2)]
    assert [step.state[0, columns].tolist() for columns in positions] == [[1, 3], [7, 7]]
    assert [step.state[1, columns].tolist() for columns in positions] == [[2, 3], [6, 7]]
    assert step.reward.tolist() == [0, 0]
    assert step.available_actions.any(2).all()


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
    present = foods[..., 2] > 0
    assert ((agents[..., :2] >= 0) & (agents[..., :2] < board.size)).all()
    assert set(agents[..., 2].flatten().tolist()) == {1, 2}
    assert ((foods[..., :2] >= 1) & (foods[..., :2] <= board.size - 2))[present].all()
    assert (foods[~present] == torch.tensor(ABSENT)).all()
    assert present.any(1).all() and (present[:, :-1] | ~present[:, 1:]).all()  # absent foods come last
    for i, j in itertools.combinations(range(board.players), 2):
        assert (agents[:, i, :2] != agents[:, j, :2]).any(1).all()
    for i, j in itertools.combinations(range(board.foods), 2):
        squared_distance = (foods[:, i, :2] - foods[:, j, :2]).square().sum(1)
        assert (squared_distance[present[:, i] & present[:, j]] > 4).all()
    for i, j in itertools.product(range(board.players), range(board.foods)):
        assert (agents[:, i, :2] != foods[:, j, :2]).any(1).all()
    max_level = agents[..., 2].sort().values[:, :3].sum(1, keepdim=True).expand_as(present)
    allowed = foods[..., 2] == max_level if board.coop else foods[..., 2] <= max_level
    assert allowed[present].all()


def test_a_given_state_is_not_changed_by_the_episode() -> None:
    env = build()
    agents, foods = torch.tensor([[(1.0, 3.0, 2.0), (7.0, 7.0, 1.0)]]), torch.tensor([[(1.0, 4.0, 2.0), ABSENT]])
    copies = agents.clone(), foods.clone()
    env.set_positions(agents, foods)
    env.step(act(LOAD, NORTH))
    assert torch.equal(agents, copies[0]) and torch.equal(foods, copies[1])


@pytest.mark.parametrize(
    ("agents", "foods", "message"),
    [
        ([(0, 0, 1)], [(2, 2, 1), ABSENT], "shapes"),
        ([(0, 0, 1), (8, 0, 1)], [(2, 2, 1), ABSENT], "off the 8x8 board"),
        ([(0, 0, 1), (2, 2, 1)], [(2, 2, 1), ABSENT], "on a food"),
        ([(0, 0, 1), (1, 1, 1)], [(0, 2, 1), ABSENT], "rows and columns 1 to 6"),
        ([(0, 0, 1), (1, 1, 1)], [(3, 2, 1), (4, 5, 0)], r"not on the board is \(-1, -1, 0\)"),
        ([(0, 0, 1), (1, 1, 1)], [(3, 2, 1), (3, 4, 1)], "within two cells"),
    ],
)
def test_states_outside_the_rules_are_refused(
    agents: list[tuple[int, ...]], foods: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        place(build(), agents, foods)


# Randomness, and ownership of tensors


def states(env: LevelBasedForaging, count: int = 3) -> Iterator[Tensor]:
    return (env.reset().state for _ in range(count))


def test_equal_seeds_give_equal_episodes_and_different_seeds_different_ones() -> None:
    first, equal_seed, other_seed = (list(states(build(num_envs=4, seed=seed))) for seed in (5, 5, 6))
    assert all(map(torch.equal, first, equal_seed))
    assert not any(map(torch.equal, first, other_seed))
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


def test_a_restored_environment_continues_as_if_never_interrupted() -> None:
    env = build(num_envs=4)
    env.reset()
    saved = env.state_dict()
    expected = list(states(env))
    restored = build(num_envs=4, seed=77)
    restored.load_state_dict(saved)
    assert all(map(torch.equal, expected, states(restored)))


def test_returned_tensors_belong_to_the_caller() -> None:
    env, twin = (build("8x8-2p-2f-coop-2s") for _ in range(2))
    overwritten: tuple[Tensor, ...] = env.reset()
    untouched: tuple[Tensor, ...] = twin.reset()
    for _ in range(5):
        copies = [tensor.clone() for tensor in untouched]
        for tensor in overwritten:
            tensor.zero_()
        overwritten, twin_step = env.step(act(SOUTH, EAST)), twin.step(act(SOUTH, EAST))
        assert all(map(torch.equal, overwritten, twin_step))
        assert all(map(torch.equal, untouched, copies))
        untouched = twin_step


def test_neither_reset_nor_step_reads_a_value_back() -> None:
    """Fake tensors have shapes and no values: whatever needs a value on the host, or a shape made from one, raises."""
    with FakeTensorMode():
        env = build("10x10-3p-3f-2s", num_envs=4, episode_limit=2)
        env.reset()
        for _ in range(3):
            step = env.step(torch.zeros(4, 3, dtype=torch.int64))
    assert step.obs.shape == (4, 3, 18)
