"""env.state=observations: the agents' observations in a row are the state, each column has a name, and nothing else changes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from meeting import Config as Meeting
from meeting import Meeting as MeetingEnv

from qllm_exp.config.schema import EnvConfig
from qllm_exp.envs import ObservationState, StateField, TeamEnv, contract, make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.envs.pettingzoo.env import Config as PettingzooConfig
from qllm_exp.envs.pursuit import Config as PursuitConfig
from qllm_exp.envs.smax import Config as SmaxConfig
from qllm_exp.errors import ContractError

LIMIT = 25
CONFIGS: dict[str, Callable[[], EnvConfig]] = {
    "lbf": lambda: LbfConfig(task="8x8-2p-2f-coop-2s"),
    "lbf-full-sight": lambda: LbfConfig(task="10x10-3p-3f"),
    "matrix": lambda: MatrixConfig(),
    "mpe-simple_spread": lambda: MpeConfig(task="simple_spread"),
    "mpe-simple_adversary": lambda: MpeConfig(task="simple_adversary"),
    "mpe-simple_tag": lambda: MpeConfig(task="simple_tag"),
    "mpe-padded": lambda: MpeConfig(task="simple_speaker_listener"),
    "pettingzoo": lambda: PettingzooConfig(),
    "pettingzoo-unknown": lambda: PettingzooConfig(task="mpe2.simple_speaker_listener_v4"),
    "pursuit": lambda: PursuitConfig(task="5x5-4h-4p"),
    "smax": lambda: SmaxConfig(task="2s3z"),
    "own": lambda: Meeting(task="3p"),
}


def build(config: EnvConfig, num_envs: int = 6, seed: int = 3) -> TeamEnv:
    return make_env(config, num_envs, seed)


def observed(config: EnvConfig) -> EnvConfig:
    return replace(config, state="observations", episode_limit=LIMIT)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_environment_keeps_the_contract_with_its_observations_as_the_state(
    name: str, check: Callable[[contract.EnvMaker], list[str]]
) -> None:
    notes = check(contract.EnvMaker(observed(CONFIGS[name]()), make_env))
    assert len(notes) == (name == "matrix" and check is contract.check_seeds)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_is_the_observations_in_a_row_of_the_same_episodes(name: str) -> None:
    features, env = build(replace(CONFIGS[name](), episode_limit=LIMIT)), build(observed(CONFIGS[name]()))
    assert env.state_dim == env.n_agents * env.obs_dim
    assert [(field.entity, field.index) for field in env.layout] == sorted(
        (field.entity, field.index or 0) for field in env.layout
    )
    expected, start = features.reset(), env.reset()
    for _ in range(3):
        assert torch.equal(start.obs, expected.obs)
        assert torch.equal(start.state, expected.obs.flatten(1))
        assert torch.equal(start.available_actions, expected.available_actions)
        actions = expected.available_actions.int().argmax(-1)
        expected, start = features.step(actions), env.step(actions)
        assert torch.equal(start.reward, expected.reward)
        assert torch.equal(start.terminated, expected.terminated)
    assert env.state_dict().keys() == features.state_dict().keys()


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("simple_spread", {"n_agents": 4}),
        ("simple_spread", {"obs_agents": False}),
        ("simple_adversary", {"n_agents": 4, "n_adversaries": 1}),
        ("simple_tag", {"num_adversaries": 2, "num_good_agents": 2, "num_landmarks": 3}),
        ("simple_tag", {"observe_same_team": False, "observe_pos": False}),
    ],
)
def test_the_names_of_the_particle_tasks_are_what_their_columns_hold(task: str, options: dict[str, object]) -> None:
    config = MpeConfig(task=task, options=options)
    features, env = build(config), build(observed(config))
    features.reset(), env.reset()
    actions = torch.ones(6, env.n_agents, dtype=torch.int64)
    state, seen = features.step(actions).state, env.step(actions).state

    def feature(label: str, name: str) -> torch.Tensor:
        kind, _, index = label.rpartition("_")
        return state[:, features.layout.find(kind, name, int(index)).columns]

    checked = 0
    for field in env.layout:
        me, values = f"agent_{field.index}", seen[:, field.columns]
        if field.name == "offset_to_goal":
            flags = torch.cat([feature(f"landmark_{number}", "is_goal") for number in range(2)], 1)
            goals = torch.stack([feature(f"landmark_{number}", "position") for number in range(2)], 1)
            expected = goals[torch.arange(6), flags.argmax(1)] - feature(me, "position")
        elif field.name.startswith("offset_to_"):
            expected = feature(field.name.removeprefix("offset_to_"), "position") - feature(me, "position")
        elif field.name.startswith("velocity_of_"):
            expected = feature(field.name.removeprefix("velocity_of_"), "velocity")
        else:
            expected = feature(me, field.name)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
        checked += len(field.components)
    assert checked == env.state_dim


def test_the_names_of_foraging_are_what_its_columns_hold() -> None:
    env = build(observed(LbfConfig(task="8x8-2p-2f-coop")))  # full sight: positions are those of the board
    features = build(LbfConfig(task="8x8-2p-2f-coop"))
    state, seen = features.reset().state, env.reset().state
    for agent in range(2):
        for name, entity, index, quantity in (
            ("own_position", "agent", agent, "position"),
            ("own_level", "agent", agent, "level"),
            ("visible_agent_0_position", "agent", 1 - agent, "position"),
            ("visible_food_1_level", "food", 1, "level"),
        ):
            column = seen[:, env.layout.find("agent", name, agent).columns]
            assert torch.equal(column, state[:, features.layout.find(entity, quantity, index).columns]), name


def test_the_names_of_battles_are_what_their_columns_hold() -> None:
    config = SmaxConfig(task="3m")
    features, env = build(config), build(observed(config))
    features.reset(), env.reset()
    actions = torch.tensor([1, 4, 0]).expand(6, 3)
    state, seen = features.step(actions).state, env.step(actions).state
    for agent in range(3):
        for name in ("health", "position", "cooldown"):
            column = seen[:, env.layout.find("agent", name, agent).columns]
            assert torch.equal(column, state[:, features.layout.find("agent", name, agent).columns])
    moves = seen[:, env.layout.find("agent", "last_move_of_agent_2", 0).columns]
    assert (moves[:, 1] > 0).all() and (moves[:, 0] == 0).all(), "agent 2 went north"


def test_the_task_says_what_its_state_is() -> None:
    for name, build_config in CONFIGS.items():
        goal = build(observed(build_config())).task.goal
        assert "consists of what the" in goal and "state shows" not in goal, name


def test_padding_has_a_name() -> None:
    env = build(observed(CONFIGS["mpe-padded"]()))
    (padding,) = [field for field in env.layout if field.name == "padding"]
    assert (env.reset().state[:, padding.columns] == 0).all()


def test_a_layout_of_another_size_than_the_observations_is_refused() -> None:
    class Misnamed(MeetingEnv):
        def observation_fields(self, agent: int) -> list[StateField]:
            return [StateField("agent", agent, "cell", ("index",), 0.0, 6.0)]

    with pytest.raises(ContractError, match=r"names \[1, 1\] columns for the agents, expected obs_dim=2 for each"):
        ObservationState(Misnamed(Meeting(), 2, 0, torch.device("cpu")))
