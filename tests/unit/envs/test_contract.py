"""The contract of envs/base.py, checked for every kind of environment."""

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
    "lbf-masked": lambda: LbfConfig(task="8x8-2p-2f-coop-2s", episode_limit=LIMIT, mask_ineffective=True),
}

Make = Callable[..., TeamEnv]


@pytest.fixture(params=CONFIGS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """A function that builds the environment of the test's parameter; environments are closed after the test."""
    built = []

    def build(seed: int = 0, num_envs: int = N, **options: Any) -> TeamEnv:
        config = CONFIGS[request.param]()
        for name, value in options.items():
            setattr(config, name, value)
        built.append(make_env(config, num_envs, seed))
        return built[-1]

    yield build
    for env in built:
        env.close()


def random_actions(available: Tensor, generator: torch.Generator) -> Tensor:
    """A random available action of each agent, [N, n]."""
    return torch.multinomial(available.flatten(0, 1).float(), 1, generator=generator).view(available.shape[:2])


def play(env: TeamEnv, seed: int = 0, steps: int | None = None) -> tuple[Observation, list[Step]]:
    """Play `steps` steps, or to the episode limit, with random actions that depend only on `seed`."""
    generator = torch.Generator().manual_seed(seed)
    start = env.reset()
    played, available = [], start.available_actions
    for _ in range(steps or env.episode_limit):
        played.append(env.step(random_actions(available, generator)))
        available = played[-1].available_actions
    return start, played


def same(first: tuple[Observation, list[Step]], second: tuple[Observation, list[Step]]) -> bool:
    """Whether two episodes are equal in every tensor."""
    left, right = ([tensor for moment in (start, *steps) for tensor in moment] for start, steps in (first, second))
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_shapes_dtypes_and_device(make: Make) -> None:
    env = make()
    start, steps = play(env)
    assert env.num_envs == N
    moments: list[Observation | Step] = [start, *steps]
    for moment in moments:
        assert moment.obs.shape == (N, env.n_agents, env.obs_dim) and moment.obs.dtype == torch.float32
        assert moment.state.shape == (N, env.state_dim) and moment.state.dtype == torch.float32
        assert moment.available_actions.shape == (N, env.n_agents, env.n_actions)
        assert moment.available_actions.dtype == torch.bool
    for step in steps:
        assert step.reward.shape == (N,) and step.reward.dtype == torch.float32
        assert step.terminated.shape == step.truncated.shape == (N,)
        assert step.terminated.dtype == step.truncated.dtype == torch.bool
    assert {tensor.device for moment in moments for tensor in moment} == {env.device}


def test_values_are_finite_and_each_agent_always_has_an_available_action(make: Make) -> None:
    start, steps = play(make())
    moments: list[Observation | Step] = [start, *steps]
    for moment in moments:
        assert torch.isfinite(moment.obs).all() and torch.isfinite(moment.state).all()
        assert moment.available_actions.any(-1).all()
    assert all(torch.isfinite(step.reward).all() for step in steps)


def test_the_layout_covers_the_state_without_gap_or_overlap(make: Make) -> None:
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


def test_the_description_matches_the_environment(make: Make) -> None:
    env = make()
    assert env.task.n_agents == env.n_agents
    assert len(env.task.actions) == env.n_actions
    assert env.task.goal and env.task.reward and env.task.episode


def test_an_episode_that_does_not_terminate_is_truncated_exactly_at_the_limit(make: Make) -> None:
    for limit in (LIMIT, 7):
        env = make(episode_limit=limit)
        _, steps = play(env)
        assert env.episode_limit == limit == len(steps)
        terminated = torch.stack([step.terminated for step in steps]).any(0)
        assert not any(step.truncated.any() for step in steps[:-1])
        assert torch.equal(steps[-1].truncated, ~terminated)


def test_a_finished_copy_gives_no_reward(make: Make) -> None:
    env = make(episode_limit=3)
    _, steps = play(env, steps=6)
    assert all(not step.reward.any() for step in steps[3:])
    assert all(torch.isfinite(step.obs).all() and torch.isfinite(step.state).all() for step in steps[3:])


def test_equal_seeds_give_equal_episodes(make: Make) -> None:
    env, other_env = make(seed=5), make(seed=6)
    episode = play(env)
    is_deterministic = env.task.env == "matrix"
    assert same(episode, play(other_env)) == is_deterministic
    other_env.seed(5)
    assert same(episode, play(other_env))
    env.seed(5)
    assert same(episode, play(env))


def test_successive_episodes_differ(make: Make) -> None:
    env = make()
    is_deterministic = env.task.env == "matrix"
    assert torch.equal(env.reset().state, env.reset().state) == is_deterministic


def test_a_restored_environment_continues_bit_for_bit(make: Make) -> None:
    env = make(seed=1)
    play(env)
    saved = env.state_dict()
    expected = [play(env, seed=1), play(env, seed=2)]
    restored = make(seed=99)
    restored.load_state_dict(saved)
    assert same(expected[0], play(restored, seed=1))
    assert same(expected[1], play(restored, seed=2))


def test_returned_tensors_are_not_written_to_later(make: Make) -> None:
    env = make()
    start, steps = play(env, steps=4)
    start_copy = Observation(*(tensor.clone() for tensor in start))
    step_copies = [Step(*(tensor.clone() for tensor in step)) for step in steps]
    play(env, seed=3)
    assert same((start, steps), (start_copy, step_copies))


def states_while_overwriting(env: TeamEnv) -> list[Tensor]:
    """The states of four moments, each of whose tensors is overwritten before the next step."""
    generator = torch.Generator().manual_seed(0)
    moment: Observation | Step = env.reset()
    states = []
    for _ in range(4):
        actions = random_actions(moment.available_actions, generator)
        states.append(moment.state.clone())
        moment.obs.fill_(7.0)
        moment.state.fill_(7.0)
        moment.available_actions.fill_(False)
        moment = env.step(actions)
    return states


def test_writing_into_returned_tensors_changes_nothing(make: Make) -> None:
    start, steps = play(make(), steps=3)
    expected = [start.state, *(step.state for step in steps)]
    assert all(torch.equal(a, b) for a, b in zip(expected, states_while_overwriting(make()), strict=True))
