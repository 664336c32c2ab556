"""What every environment promises in envs/base.py, whatever it simulates."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from meeting import Config as Meeting
from torch import Tensor

from qllm_exp.config.schema import EnvConfig
from qllm_exp.envs import Observation, Step, TeamEnv, make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.envs.pettingzoo.env import Config as PettingzooConfig

N = 3
LIMIT = 25
CONFIGS: dict[str, Callable[[], EnvConfig]] = {
    "mpe-simple_spread": lambda: MpeConfig(task="simple_spread"),
    "mpe-simple_adversary": lambda: MpeConfig(task="simple_adversary"),
    "mpe-simple_tag": lambda: MpeConfig(task="simple_tag"),
    "matrix-climbing": lambda: MatrixConfig(task="climbing"),
    "matrix-penalty-100": lambda: MatrixConfig(task="penalty-100"),
    "pettingzoo-mpe2.simple_spread_v3": lambda: PettingzooConfig(task="mpe2.simple_spread_v3"),
    "meeting-3p": lambda: Meeting(task="3p", episode_limit=LIMIT),
    "lbf-8x8-2p-2f-coop-2s": lambda: LbfConfig(task="8x8-2p-2f-coop-2s", episode_limit=LIMIT),
}

Make = Callable[..., TeamEnv]


@pytest.fixture(params=CONFIGS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Builds the environment of the test's parameter; closes what it built."""
    built = []

    def build(seed: int = 0, num_envs: int = N, **changes: Any) -> TeamEnv:
        config = CONFIGS[request.param]()
        for name, value in changes.items():
            setattr(config, name, value)
        built.append(make_env(config, num_envs, seed))
        return built[-1]

    yield build
    for env in built:
        env.close()


def choose(available: Tensor, generator: torch.Generator) -> Tensor:
    """A random available action of each agent, [N, n]."""
    return torch.multinomial(available.flatten(0, 1).float(), 1, generator=generator).view(available.shape[:2])


def play(env: TeamEnv, seed: int = 0, steps: int | None = None) -> tuple[Observation, list[Step]]:
    """One episode, to its limit, with random actions that depend on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    start = env.reset()
    taken, available = [], start.available_actions
    for _ in range(steps or env.episode_limit):
        taken.append(env.step(choose(available, generator)))
        available = taken[-1].available_actions
    return start, taken


def same(one: tuple[Observation, list[Step]], other: tuple[Observation, list[Step]]) -> bool:
    left, right = ([tensor for seen in (start, *steps) for tensor in seen] for start, steps in (one, other))
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_shapes_dtypes_and_device(make: Make) -> None:
    env = make()
    start, steps = play(env)
    assert env.num_envs == N
    everything: list[Observation | Step] = [start, *steps]
    for seen in everything:
        assert seen.obs.shape == (N, env.n_agents, env.obs_dim) and seen.obs.dtype == torch.float32
        assert seen.state.shape == (N, env.state_dim) and seen.state.dtype == torch.float32
        assert seen.available_actions.shape == (N, env.n_agents, env.n_actions)
        assert seen.available_actions.dtype == torch.bool
    for step in steps:
        assert step.reward.shape == (N,) and step.reward.dtype == torch.float32
        assert step.terminated.shape == step.truncated.shape == (N,)
        assert step.terminated.dtype == step.truncated.dtype == torch.bool
    assert {tensor.device for seen in everything for tensor in seen} == {env.device}


def test_everything_is_finite_and_each_agent_can_always_do_something(make: Make) -> None:
    start, steps = play(make())
    everything: list[Observation | Step] = [start, *steps]
    for seen in everything:
        assert torch.isfinite(seen.obs).all() and torch.isfinite(seen.state).all()
        assert seen.available_actions.any(-1).all()
    assert all(torch.isfinite(step.reward).all() for step in steps)


def test_the_layout_covers_the_state_without_gap_or_repetition(make: Make) -> None:
    env = make()
    columns = [column for field in env.layout for column in range(env.state_dim)[field.columns]]
    assert columns == list(range(env.layout.size))
    assert env.reset().state.shape[1] == env.layout.size


def test_state_values_keep_to_the_declared_ranges(make: Make) -> None:
    env = make(num_envs=16)
    start, steps = play(env)
    for state in [start.state, *(step.state for step in steps)]:
        for field in env.layout:
            values = state[:, field.columns]
            inside = (values >= field.low - 1e-5) & (values <= field.high + 1e-5)
            for special in field.special:
                inside |= values == special
            assert inside.all(), field.label


def test_the_description_fits(make: Make) -> None:
    env = make()
    assert env.task.n_agents == env.n_agents
    assert len(env.task.actions) == env.n_actions
    assert env.task.goal and env.task.reward and env.task.episode


def test_an_episode_that_does_not_terminate_is_truncated_exactly_at_the_limit(make: Make) -> None:
    for limit in (LIMIT, 7):
        env = make(episode_limit=limit)
        _, steps = play(env)
        assert env.episode_limit == limit == len(steps)
        ended_by_itself = torch.stack([step.terminated for step in steps]).any(0)
        assert not any(step.truncated.any() for step in steps[:-1])
        assert torch.equal(steps[-1].truncated, ~ended_by_itself)


def test_a_finished_copy_gives_no_reward(make: Make) -> None:
    env = make(episode_limit=3)
    _, steps = play(env, steps=6)
    assert all(not step.reward.any() for step in steps[3:])
    assert all(torch.isfinite(step.obs).all() and torch.isfinite(step.state).all() for step in steps[3:])


def test_equal_seeds_give_equal_episodes(make: Make) -> None:
    one, other = make(seed=5), make(seed=6)
    first = play(one)
    nothing_is_random = one.task.env == "matrix"
    assert same(first, play(other)) == nothing_is_random
    other.seed(5)
    assert same(first, play(other))
    one.seed(5)
    assert same(first, play(one))


def test_the_episodes_after_each_other_differ(make: Make) -> None:
    env = make()
    nothing_is_random = env.task.env == "matrix"
    assert torch.equal(env.reset().state, env.reset().state) == nothing_is_random


def test_saved_state_continues_bit_for_bit(make: Make) -> None:
    env = make(seed=1)
    play(env)
    saved = env.state_dict()
    expected = [play(env, seed=1), play(env, seed=2)]
    fresh = make(seed=99)
    fresh.load_state_dict(saved)
    assert same(expected[0], play(fresh, seed=1))
    assert same(expected[1], play(fresh, seed=2))


def test_what_was_returned_is_not_written_to_later(make: Make) -> None:
    env = make()
    start, steps = play(env, steps=4)
    kept = [[tensor.clone() for tensor in seen] for seen in [start, *steps]]
    play(env, seed=3)
    for seen, copies in zip([start, *steps], kept, strict=True):
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(seen, copies, strict=True))


def test_writing_into_what_was_returned_changes_nothing(make: Make) -> None:
    def scribbled(env: TeamEnv) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        seen: Observation | Step = env.reset()
        states = []
        for _ in range(4):
            actions = choose(seen.available_actions, generator)
            states.append(seen.state.clone())
            seen.obs.fill_(7.0)
            seen.state.fill_(7.0)
            seen.available_actions.fill_(False)
            seen = env.step(actions)
        return states

    start, steps = play(make(), steps=3)
    expected = [start.state, *(step.state for step in steps)]
    assert all(torch.equal(a, b) for a, b in zip(expected, scribbled(make()), strict=True))
