"""The football environment: parity with gfootball's own environment, layout, endings, rewards and seeds."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from football import RIGHT, SHOT, joint_action, reference_env, register_restricted
from gfootball.env import scenario_builder

from qllm_exp.envs import Step, make_env
from qllm_exp.envs.grf.env import Config as GrfConfig
from qllm_exp.envs.grf.env import FootballEnv, tasks
from qllm_exp.envs.simulator import episode_seed
from qllm_exp.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # gym's

Make = Callable[..., FootballEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that builds environments, by default with one worker; they are closed after the test."""
    built = []

    def build(num_envs: int = 1, seed: int = 0, **config: Any) -> FootballEnv:
        env = make_env(GrfConfig(**{"workers": 1, **config}), num_envs, seed)
        assert isinstance(env, FootballEnv)
        built.append(env)
        return env

    yield build
    for env in built:
        env.close()


def play(env: FootballEnv, actions_seed: int = 0, purposeful: bool = False) -> list[Any]:
    """Play an episode of every match, to the end of the longest: the first observation, then the steps."""
    rng = np.random.default_rng(actions_seed)
    episode: list[Any] = [env.reset()]
    playing = torch.ones(env.num_envs, dtype=torch.bool)
    while playing.any():
        step = env.step(torch.tensor([joint_action(rng, env.n_agents, purposeful) for _ in range(env.num_envs)]))
        playing &= ~(step.terminated | step.truncated)
        episode.append(step)
    return episode


def same(first: list[Any], second: list[Any]) -> bool:
    """Whether two episodes are equal in every tensor."""
    if len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


# Scenario, further options, our players that are agents (None: all), episodes.
SETTINGS: list[tuple[str, dict[str, Any], set[int] | None, int]] = [
    ("academy_3_vs_1_with_keeper", {}, None, 4),
    ("academy_3_vs_1_with_keeper", {"goalkeeper": False}, {1, 2, 3}, 2),
    ("academy_pass_and_shoot_with_keeper", {"episode_limit": 1000}, None, 3),
    ("academy_empty_goal_close", {"rewards": "scoring"}, None, 4),
    ("academy_counterattack_easy", {}, {7, 8, 9, 10}, 2),
    ("academy_corner", {}, None, 1),  # begins with a set piece; agents that stall the game are overridden
]


@pytest.mark.parametrize(("task", "settings", "players", "episodes"), SETTINGS)
def test_matches_equal_those_of_gfootball_step_by_step(
    make: Make, task: str, settings: dict[str, Any], players: set[int] | None, episodes: int
) -> None:
    env = make(2, seed=3, task=task, reward="sum", **settings)
    name = register_restricted(task, players) if players else task
    rewards = settings.get("rewards", "scoring,checkpoints")
    for episode in range(episodes):
        seeds = [episode_seed(3, match, episode) for match in range(2)]
        references = [reference_env(name, env.n_agents, seed, rewards) for seed in seeds]
        start = env.reset()
        for match in range(2):
            assert torch.equal(start.obs[match], torch.tensor(references[match].reset()))
        rng, playing, steps = np.random.default_rng(episode), {0, 1}, 0
        while playing:
            actions = [joint_action(rng, env.n_agents, purposeful=episode % 2 == 1) for _ in range(2)]
            step, steps = env.step(torch.tensor(actions)), steps + 1
            for match in sorted(playing):
                obs, agent_rewards, done, _ = references[match].step(actions[match])
                assert torch.equal(step.obs[match], torch.tensor(obs))
                assert step.reward[match].item() == pytest.approx(float(agent_rewards.sum()), abs=1e-5)
                out_of_time = references[match].unwrapped.observation()[0]["steps_left"] == 0
                assert step.terminated[match].item() == (done and not out_of_time)
                assert step.truncated[match].item() == (
                    (done and out_of_time) or (not done and steps == env.episode_limit)
                )
                if done or step.truncated[match]:
                    playing.remove(match)
                    references[match].close()


@pytest.mark.parametrize(
    ("task", "settings", "agents"),
    [
        ("academy_3_vs_1_with_keeper", {}, [0, 1, 2, 3]),
        ("academy_3_vs_1_with_keeper", {"goalkeeper": False}, [1, 2, 3]),
        ("academy_counterattack_hard", {}, [7, 8, 9, 10]),
    ],
)
def test_every_field_of_the_layout_holds_what_the_engine_reports(
    make: Make, task: str, settings: dict[str, Any], agents: list[int]
) -> None:
    env = make(task=task, **settings)
    reference = reference_env(register_restricted(task, set(agents)), len(agents), episode_seed(0, 0, 0))
    reference.reset()
    state = env.reset().state
    rng = np.random.default_rng(0)
    for _ in range(15):
        raw = reference.unwrapped.observation()[0]
        others = [i for i in range(len(raw["left_team"])) if i not in agents]
        expected: dict[str, Any] = {
            "ball position": raw["ball"][:2],
            "ball height": raw["ball"][2:],
            "ball direction": raw["ball_direction"][:2],
            "ball climb": raw["ball_direction"][2:],
            "match ball_owner": [raw["ball_owned_team"] == team for team in (-1, 0, 1)],
            "match mode": [raw["game_mode"] == mode for mode in range(7)],
        }
        for entity, team, players in (
            ("agent", "left_team", agents),
            ("teammate", "left_team", others),
            ("opponent", "right_team", range(len(raw["right_team"]))),
        ):
            for index, player in enumerate(players):
                expected[f"{entity} {index} position"] = raw[team][player]
                expected[f"{entity} {index} direction"] = raw[f"{team}_direction"][player]
        assert {field.label for field in env.layout} == set(expected)
        for field in env.layout:
            assert state[0, field.columns].tolist() == np.array(expected[field.label], np.float32).tolist(), field.label
        actions = joint_action(rng, len(agents), purposeful=False)
        reference.step(actions)
        state = env.step(torch.tensor([actions])).state
    reference.close()


def test_the_scenarios_are_those_of_the_package_and_each_can_be_played(make: Make) -> None:
    assert tasks() == sorted(name for name in scenario_builder.all_scenarios() if name.startswith("academy_"))
    agents = {}
    for task in tasks():
        env = make(task=task)
        env.reset()
        step = env.step(torch.zeros(1, env.n_agents, dtype=torch.long))
        assert torch.isfinite(step.obs).all() and step.state.shape == (1, env.state_dim)
        agents[task.removeprefix("academy_")] = env.n_agents
        env.close()
    assert agents["3_vs_1_with_keeper"] == agents["counterattack_easy"] == agents["counterattack_hard"] == 4
    assert agents["pass_and_shoot_with_keeper"] == 3 and agents["empty_goal"] == 2 and agents["corner"] == 11


def test_an_agent_controls_the_same_player_from_the_first_step_to_the_last(make: Make) -> None:
    env = make(3, task="academy_3_vs_1_with_keeper", goalkeeper=False)
    moments = play(env) + play(env, purposeful=True)
    controlled = torch.stack([moment.obs[:, :, 97:108] for moment in moments])
    assert (controlled == torch.eye(11)[[1, 2, 3]]).all()


def test_equal_seeds_give_equal_episodes_whatever_the_number_of_workers(make: Make) -> None:
    settings: dict[str, Any] = {"task": "academy_counterattack_hard", "episode_limit": 30}
    env, other_env = make(8, seed=5, workers=1, **settings), make(8, seed=6, workers=5, **settings)
    first, second = play(env), play(env)
    assert not same(first, second)
    assert not torch.equal(first[1].state[0], first[1].state[1])  # the matches differ
    assert not same(first, play(other_env))
    other_env.seed(5)
    assert same(first, play(other_env)) and same(second, play(other_env))


def test_a_new_environment_continues_from_a_saved_state(make: Make) -> None:
    env = make(2, seed=1)
    play(env)
    saved = env.state_dict()
    restored = make(2, seed=9)
    restored.load_state_dict(saved)
    assert same(play(env), play(restored))


def test_a_goal_terminates_and_pays_each_agent_two_in_all(make: Make) -> None:
    for reward, total in (("mean", 2.0), ("sum", 4.0)):
        env = make(2, task="academy_empty_goal_close", reward=reward)
        env.reset()
        returns, ended = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
        for action in (RIGHT, SHOT, *[RIGHT] * 28):
            step = env.step(torch.full((2, env.n_agents), action))
            returns += step.reward
            ended |= step.terminated
            assert not step.truncated.any()
        assert ended.all() and returns.tolist() == pytest.approx([total, total])
        assert env.episode_metrics()["win"].tolist() == env.episode_metrics()["score"].tolist() == [1.0, 1.0]


def idle_to_the_end(env: FootballEnv) -> tuple[int, Step]:
    """Play an episode without acting: its length and its last step."""
    env.reset()
    steps = 0
    while True:
        step, steps = env.step(torch.zeros(1, env.n_agents, dtype=torch.long)), steps + 1
        if step.terminated or step.truncated:
            return steps, step


def test_running_out_of_time_is_truncation_by_the_limit_or_the_scenario_itself(make: Make) -> None:
    for limit, length in ((20, 20), (1000, 401)):
        env = make(task="academy_pass_and_shoot_with_keeper", episode_limit=limit)
        steps, last = idle_to_the_end(env)
        assert steps == env.episode_limit == length
        assert last.truncated.item() and not last.terminated.item()
        assert env.episode_metrics()["win"].item() == 0.0


def test_losing_the_ball_is_termination(make: Make) -> None:
    steps, last = idle_to_the_end(make(task="academy_empty_goal"))
    assert steps < 150
    assert last.terminated.item() and not last.truncated.item()
    owner = make(task="academy_empty_goal").layout.find("match", "ball_owner")
    assert last.state[0, owner.columns].tolist() == [0.0, 0.0, 1.0]


def test_a_match_that_has_ended_waits_for_the_others(make: Make) -> None:
    env = make(3, episode_limit=60)
    _, *steps = play(env)
    ends = torch.stack([step.terminated | step.truncated for step in steps])
    assert ends.sum(0).tolist() == [1, 1, 1]
    last_steps = ends.int().argmax(0)
    assert last_steps.min() < last_steps.max()
    for match in range(3):
        last = int(last_steps[match])
        for step in steps[last + 1 :]:
            assert step.reward[match] == 0.0
            assert torch.equal(step.obs[match], steps[last].obs[match])


def test_returned_tensors_are_not_written_to_afterwards(make: Make) -> None:
    env = make()
    start = env.reset()
    copy = [tensor.clone() for tensor in start]
    step = env.step(torch.full((1, 4), RIGHT))
    assert all(torch.equal(a, b) for a, b in zip(start, copy, strict=True))
    assert step.reward.dtype == step.obs.dtype == step.state.dtype == torch.float32
    assert step.terminated.dtype == step.truncated.dtype == step.available_actions.dtype == torch.bool
    assert step.available_actions.shape == (1, 4, 19) and step.available_actions.all()


def test_the_description_fits_the_scenario(make: Make) -> None:
    env = make(task="academy_counterattack_easy")
    assert env.task.n_agents == 4 and len(env.task.actions) == env.n_actions == 19
    assert "agent 2 is our right midfielder" in env.task.goal and "the other 7" in env.task.goal
    assert "winning the ball" in env.task.episode
    assert "winning the ball" not in make(task="academy_corner").task.episode
    assert "circles" in env.task.reward and "circles" not in make(rewards="scoring").task.reward


def test_an_engine_that_does_not_load_is_a_user_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "gfootball_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libSDL2-2.0.so.0: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"(?s)does not load\. Type: .*grf.*\n.*libSDL2-2\.0\.so\.0"):
        make()


@pytest.mark.parametrize("task", ["academy_3_vs_1_with_keeper", "academy_counterattack_easy"])
def test_the_names_of_the_observations_are_what_their_columns_hold(make: Make, task: str) -> None:
    features = make(2, task=task)
    env = make_env(GrfConfig(task=task, workers=1, state="observations"), 2, 0)
    with contextlib.closing(env):
        assert env.state_dim == 115 * env.n_agents
        state, seen = features.reset().state, env.reset().state
        for field in features.layout:
            owner = "" if field.index is None else f"_{field.index}"
            name = f"sees_{field.entity}{owner}_{field.name}".replace("match_", "")
            for agent in range(env.n_agents):
                columns = env.layout.find("agent", name, agent).columns
                assert torch.equal(seen[:, columns], state[:, field.columns]), name
        for field in env.layout:
            values = seen[:, field.columns]
            if field.name.startswith("missing"):
                assert (values == -1).all(), field.label
            if field.one_hot:
                assert (values.sum(1) == 1).all(), field.label
        controls = [seen[:, env.layout.find("agent", "controls", agent).columns] for agent in range(env.n_agents)]
        assert len({tuple(chosen[0].tolist()) for chosen in controls}) == env.n_agents
