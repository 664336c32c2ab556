"""env=mpe: parity with VMAS, private randomness, the scripted side, and the contents of the state's columns."""

import random

import numpy as np
import pytest
import torch
import vmas
from torch import Tensor

from qllm_exp.envs import make_env
from qllm_exp.envs.base import Observation
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.envs.mpe.env import MpeEnv, tasks
from qllm_exp.errors import UserError


def build(task: str, num_envs: int = 4, seed: int = 3, **settings: object) -> MpeEnv:
    env = make_env(MpeConfig(task=task, **settings), num_envs, seed)  # type: ignore[arg-type]
    assert isinstance(env, MpeEnv)
    return env


def random_actions(available: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(available.flatten(0, 1).float(), 1, generator=generator).view(available.shape[:2])


def push_index(control: Tensor) -> Tensor:
    """VMAS's index of a push with the signs of `control` [N, 2]: on each axis 0 for none, 1 for -, 2 for +."""
    digit = torch.tensor([1, 0, 2])[control.sign().long() + 1]
    return digit[:, 0] * 3 + digit[:, 1]


def test_every_scenario_of_vmas_is_a_task() -> None:
    assert tasks()[0] == "simple_spread"
    assert sorted(tasks()) == sorted(vmas.mpe_scenarios + vmas.scenarios)


@pytest.mark.parametrize("task", tasks())
def test_every_task_starts_and_steps(task: str) -> None:
    options = {"grid_spacing": 0.25} if task == "sampling" else {}  # the default takes seconds to build
    env = build(task, num_envs=2, options=options)
    start = env.reset()
    step = env.step(random_actions(start.available_actions, torch.Generator().manual_seed(0)))
    assert step.state.shape == (2, env.layout.size)
    assert step.obs.shape == (2, env.n_agents, env.obs_dim)
    assert len(env.task.actions) == env.n_actions
    assert torch.isfinite(step.reward).all() and torch.isfinite(step.state).all()


PARITY = [
    ("simple_spread", {}),
    ("simple_spread", {"n_agents": 6, "obs_agents": False}),
    ("simple_adversary", {}),
    ("simple_adversary", {"n_agents": 4, "n_adversaries": 2}),
    ("simple_tag", {}),
    ("simple_tag", {"num_good_agents": 3, "num_adversaries": 5, "respawn_at_catch": True, "bound": 0.4}),
    ("simple_push", {}),
    ("simple_reference", {}),
    ("simple_speaker_listener", {}),
    ("simple_world_comm", {}),
    ("navigation", {}),
    ("discovery", {"covering_range": 0.8}),
    ("balance", {}),
    ("flocking", {}),
    ("road_traffic", {"n_agents": 2, "n_nearing_agents_observed": 1}),
    ("wheel", {}),
]


@pytest.mark.parametrize(("task", "options"), PARITY)
def test_steps_equal_those_of_vmas_own_environment(task: str, options: dict[str, object]) -> None:
    env = build(task, num_envs=32, seed=11, options=options, episode_limit=60)
    reference = vmas.make_env(task, num_envs=32, continuous_actions=False, seed=0, **options)
    team = [index for index, agent in enumerate(reference.agents) if agent.name in env._state.names["agent"]]
    words = reference.world.dim_c if env.n_actions > 9 else 1
    generator = torch.Generator().manual_seed(5)
    start = env.reset()
    views = reference.reset(seed=11)
    ended = torch.zeros(32, dtype=torch.bool)

    def check_views(obs: Tensor) -> None:
        for row, index in enumerate(team):
            width = views[index].shape[1]
            assert torch.equal(obs[:, row, :width], views[index].float())
            assert not obs[:, row, width:].any()

    check_views(start.obs)
    available = start.available_actions
    for _ in range(30):
        actions = random_actions(available, generator)
        step = env.step(actions)
        reference_actions = []
        for index, agent in enumerate(reference.agents):
            if index in team:
                action = actions[:, team.index(index)]
                reference_actions.append((action // words if agent.silent else action).clone())
            else:
                scripted = next(opponent for opponent in env._opponents if opponent.name == agent.name)
                reference_actions.append(push_index(scripted.action.u))
        views, rewards, done, _ = reference.step(reference_actions)
        check_views(step.obs)
        team_reward = torch.stack([rewards[index].reshape(-1) for index in team]).sum(0)
        assert torch.equal(step.reward, torch.where(ended, 0.0, team_reward))
        assert torch.equal(step.terminated, done & ~ended)
        ended |= done
        available = step.available_actions


def test_in_a_batch_of_any_size_the_physics_differ_from_vmas_by_rounding_only() -> None:
    options = {"num_good_agents": 3, "num_adversaries": 5, "bound": 0.4}
    env = build("simple_tag", num_envs=7, seed=2, options=options)
    reference = vmas.make_env("simple_tag", num_envs=7, continuous_actions=False, seed=0, **options)
    available = env.reset().available_actions
    reference.reset(seed=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        actions = random_actions(available, generator)
        obs = env.step(actions).obs
        scripted = [push_index(opponent.action.u) for opponent in env._opponents]
        views, *_ = reference.step([*(column.clone() for column in actions.unbind(1)), *scripted])
        torch.testing.assert_close(obs, torch.stack(views[:5], dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["simple_spread", "simple_tag", "discovery"])
def test_the_global_random_streams_are_left_alone(task: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    env = build(task)
    for _ in range(2):
        available = env.reset().available_actions
        for _ in range(5):
            available = env.step(random_actions(available, torch.Generator().manual_seed(0))).available_actions
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert random.getstate() == before[2]


def test_two_environments_do_not_disturb_each_other() -> None:
    undisturbed = build("simple_spread", seed=7)
    expected = [undisturbed.reset().obs, undisturbed.reset().obs]
    env, other_env = build("simple_spread", seed=7), build("simple_spread", seed=8)
    interleaved = []
    for _ in range(2):
        interleaved.append(env.reset().obs)
        other_env.reset()
    assert all(map(torch.equal, expected, interleaved))


def test_the_state_holds_what_the_agents_of_simple_spread_observe() -> None:
    env = build("simple_spread", options={"n_agents": 4})
    available = env.reset().available_actions
    for _ in range(5):
        step = env.step(random_actions(available, torch.Generator().manual_seed(2)))
    for agent in range(4):
        position = step.state[:, env.layout.find("agent", "position", agent).columns]
        assert torch.equal(position, step.obs[:, agent, 0:2])
        assert torch.equal(step.state[:, env.layout.find("agent", "velocity", agent).columns], step.obs[:, agent, 2:4])
        for landmark in range(4):
            landmark_position = step.state[:, env.layout.find("landmark", "position", landmark).columns]
            observed_offset = step.obs[:, agent, 4 + 2 * landmark : 6 + 2 * landmark]
            torch.testing.assert_close(landmark_position - position, observed_offset)


def test_the_state_of_simple_adversary_marks_the_goal_that_the_team_observes() -> None:
    env = build("simple_adversary", num_envs=3)
    goals = set()
    for _ in range(8):
        start = env.reset()
        flags = torch.cat([start.state[:, env.layout.find("landmark", "is_goal", k).columns] for k in range(2)], dim=1)
        assert torch.equal(flags.sum(1), torch.ones(3))
        landmarks = torch.stack(
            [start.state[:, env.layout.find("landmark", "position", k).columns] for k in range(2)], dim=1
        )
        goal = (landmarks * flags.unsqueeze(-1)).sum(1)
        position = start.state[:, env.layout.find("agent", "position", 1).columns]
        torch.testing.assert_close(goal - position, start.obs[:, 1, 0:2])
        goals.add(int(flags[0].argmax()))
    assert goals == {0, 1}


def test_the_state_of_simple_tag_holds_chasers_then_prey_then_landmarks() -> None:
    env = build("simple_tag")
    kinds = [(field.entity, field.index) for field in env.layout if field.name == "position"]
    assert kinds == [("agent", 0), ("agent", 1), ("agent", 2), ("opponent", 0), ("landmark", 0), ("landmark", 1)]
    place(env, [[-0.9, 0.1], [-0.8, 0.2], [-0.7, 0.3]], [[0.4, -0.6]])
    state = env._state.read()
    torch.testing.assert_close(state[0, env.layout.find("agent", "position", 2).columns], torch.tensor([-0.7, 0.3]))
    torch.testing.assert_close(state[0, env.layout.find("opponent", "position", 0).columns], torch.tensor([0.4, -0.6]))


def place(env: MpeEnv, team: list[list[float]], opponents: list[list[float]]) -> Observation:
    """Start an episode with the agents of every copy at these positions, at rest, and the landmarks out of the way."""
    start = env.reset()
    for agents, positions in ((env._team, team), (env._opponents, opponents)):
        for agent, position in zip(agents, positions, strict=True):
            agent.set_pos(torch.tensor([position]), batch_index=None)
    for number, landmark in enumerate(env._world.landmarks):
        landmark.set_pos(torch.tensor([[50.0 + number, 50.0]]), batch_index=None)
    return start


def stay(env: MpeEnv) -> Tensor:
    return torch.zeros(env.num_envs, env.n_agents, dtype=torch.int64)


def test_the_reward_of_simple_spread_is_what_the_description_says() -> None:
    env = build("simple_spread", num_envs=8, reward="mean")
    env.reset()
    env._team[1].state.pos[::2] = env._team[0].state.pos[::2]  # no force separates agents at exactly the same position
    step = env.step(stay(env))
    agents = torch.stack([step.state[:, env.layout.find("agent", "position", k).columns] for k in range(3)], dim=1)
    landmarks = torch.stack(
        [step.state[:, env.layout.find("landmark", "position", k).columns] for k in range(3)], dim=1
    )
    distance = torch.cdist(landmarks, agents).amin(-1).sum(-1)
    overlaps = ((torch.cdist(agents, agents) < 0.3).sum((1, 2)) - 3) / 2
    assert overlaps.tolist() == [1.0, 0.0] * 4
    torch.testing.assert_close(step.reward, -3 * distance - 2 * overlaps)


def chase(obs: Tensor) -> Tensor:
    """Actions with which each chaser of simple_tag pushes towards the prey.

    In a chaser's observation the prey's offset follows its own velocity and position, two landmarks and the two other
    chasers.
    """
    offset = obs[:, :, 12:14]
    push = torch.where(offset.abs() > 0.03, offset.sign(), 0.0)
    return push_index(push.flatten(0, 1)).view(obs.shape[:2])


@pytest.mark.parametrize(("reward", "per_touch"), [("sum", 30.0), ("mean", 10.0)])
def test_only_the_chasers_reward_counts_in_simple_tag(reward: str, per_touch: float) -> None:
    env = build("simple_tag", num_envs=32, reward=reward)
    obs, total = env.reset().obs, 0.0
    prey = env.layout.find("opponent", "position", 0).columns
    for _ in range(25):
        step = env.step(chase(obs))
        chasers = [step.state[:, env.layout.find("agent", "position", chaser).columns] for chaser in range(3)]
        touches = sum((position - step.state[:, prey]).norm(dim=-1) < 0.075 + 0.05 for position in chasers)
        torch.testing.assert_close(step.reward, per_touch * touches)
        obs, total = step.obs, total + float(step.reward.sum())
    assert total > 0


def test_the_prey_runs_from_a_chaser_and_stays_in_bounds() -> None:
    env = build("simple_tag", num_envs=1, episode_limit=100)
    place(env, [[-0.3, 0.0], [-0.9, 0.9], [-0.9, -0.9]], [[0.0, 0.0]])
    prey = env.layout.find("opponent", "position", 0).columns
    positions = [env.step(stay(env)).state[0, prey] for _ in range(30)]
    assert positions[3][0] > 0.02
    assert (torch.stack(positions).abs() <= 1.0).all()
    assert positions[-1].abs().max() > 0.5


def chasers_return(prey_moves: bool) -> float:
    """Mean return of chasing a prey that runs, or one that stands still."""
    env = build("simple_tag", num_envs=64, episode_limit=50, reward="mean")
    obs, total, prey = env.reset().obs, 0.0, env._opponents[0]
    home = prey.state.pos.clone()
    for _ in range(50):
        step = env.step(chase(obs))
        if not prey_moves:
            prey.state.pos, prey.state.vel = home.clone(), torch.zeros_like(home)
        obs, total = step.obs, total + float(step.reward.mean())
    return total


def test_the_prey_is_harder_to_catch_than_one_that_stands_still_but_can_be_caught() -> None:
    standing, running = chasers_return(prey_moves=False), chasers_return(prey_moves=True)
    assert running < 0.6 * standing
    assert running > 0


def test_the_adversary_goes_to_the_landmark_that_the_team_is_nearest_to_whatever_the_goal() -> None:
    env = build("simple_adversary", num_envs=8, episode_limit=60)
    for goal in range(2):
        place(env, [[0.8, 0.7], [0.0, -0.4]], [[-0.8, 0.0]])
        for agent in env._world.agents:
            agent.goal = env._world.landmarks[goal]
        env._world.landmarks[0].set_pos(torch.tensor([[0.8, 0.8]]), batch_index=None)
        env._world.landmarks[1].set_pos(torch.tensor([[-0.8, -0.8]]), batch_index=None)
        for _ in range(59):
            step = env.step(stay(env))
        adversary = step.state[:, env.layout.find("opponent", "position", 0).columns]
        assert (adversary - torch.tensor([0.8, 0.8])).abs().max() < 0.06
        assert step.state[:, env.layout.find("opponent", "velocity", 0).columns].abs().max() < 0.15


def test_the_eavesdropper_repeats_the_speakers_last_word() -> None:
    env = build("simple_crypto")
    env.reset()
    speaker = env.task.goal.index("'alice_0'")
    assert "agent 1 is " in env.task.goal[:speaker]
    env.step(torch.tensor([[0, 2]] * 4))
    state = env.step(torch.tensor([[0, 3]] * 4)).state
    assert torch.equal(state[:, env.layout.find("opponent", "message", 0).columns].argmax(-1), torch.full((4,), 2))
    assert torch.equal(state[:, env.layout.find("agent", "message", 1).columns].argmax(-1), torch.full((4,), 3))


def test_masks_mark_which_agents_can_move_and_speak() -> None:
    env = build("simple_speaker_listener")
    speaker, listener = env.reset().available_actions[0]
    speaker_actions = [env.task.actions[i] for i in speaker.nonzero().flatten()]
    assert speaker_actions == ["no push, say word 0", "no push, say word 1", "no push, say word 2"]
    listener_actions = [env.task.actions[i] for i in listener.nonzero().flatten()]
    assert len(listener_actions) == 9 and all(action.endswith("say word 0") for action in listener_actions)


@pytest.mark.parametrize(
    ("label", "expected"), [("push right", (1, 0)), ("push left and up", (-1, 1)), ("no push", (0, 0))]
)
def test_actions_do_what_their_label_says(label: str, expected: tuple[int, int]) -> None:
    env = build("simple")
    env.reset()
    action = env.task.actions.index(label)
    step = env.step(torch.full((4, 1), action))
    velocity = step.state[:, env.layout.find("agent", "velocity", 0).columns]
    assert torch.equal(velocity.sign(), torch.tensor([expected] * 4).float())


def test_a_copy_that_the_scenario_ended_gives_no_more_reward_and_leaves_the_others_alone() -> None:
    env = build("dropout", num_envs=3, episode_limit=4)
    env.reset()
    goal = env._world.landmarks[0]
    for agent in env._team:
        agent.set_pos(torch.tensor([[5.0, 5.0]]), batch_index=None)
    env._team[0].state.pos[1] = goal.state.pos[1]
    steps = [env.step(torch.ones(3, env.n_agents, dtype=torch.int64)) for _ in range(4)]
    assert steps[0].terminated.tolist() == [False, True, False]
    assert steps[0].reward[1] > 0
    assert all(step.reward[1] == 0 and step.reward[0] < 0 for step in steps[1:])
    assert steps[3].truncated.tolist() == [True, False, True]
    assert not any(step.truncated.any() for step in steps[:3])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("simple_spred", {}, "Did you mean 'simple_spread'"),
        ("simple_spread", {"n_agent": 6}, "Did you mean 'n_agents'.*obs_agents"),
        ("simple", {"n_agents": 6}, "has no options"),
        ("simple_adversary", {"n_agents": 1}, "n_agents"),
        ("football", {"ai_red_agents": False}, "ai_red_agents=true"),
        ("football", {"ai_blue_agents": True}, "no agent to control"),
    ],
)
def test_invalid_options_are_refused(task: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(task, options=options)


def test_a_stream_saved_on_another_kind_of_device_is_refused() -> None:
    with pytest.raises(UserError, match="another kind of device"):
        build("simple").load_state_dict({"cuda": torch.zeros(16, dtype=torch.uint8)})
