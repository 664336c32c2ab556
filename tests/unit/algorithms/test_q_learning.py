"""One update of Q-learning against the slow, literal version; acting; the flat parameters."""

import copy

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.config import schema
from qllm_exp.mixers.none import Independent
from qllm_exp.mixers.qmix import Qmix
from qllm_exp.mixers.vdn import Vdn

MIXERS = {"qmix": lambda: Qmix(ENV.n_agents, ENV.state_dim, 4, 8), "vdn": Vdn, "none": Independent}


def learner(mixer="vdn", train=None, **algorithm) -> QLearning:
    torch.manual_seed(0)
    algo = QLearning(
        QLearningConfig(**({"targets": "n_step"} | algorithm)),
        schema.TrainConfig(hidden=8, **(train or {})),
        ENV,
        MIXERS[mixer](),
    )
    with torch.no_grad():  # so that online and target networks differ
        algo.target.values += 0.1 * torch.randn_like(algo.target.values)
    return algo


def values(agent, b: EpisodeBatch, episode: int, last_action: bool) -> list[list[list[float]]]:
    """Q of every step, agent and action of one episode, one step at a time with plain layers."""
    cell = torch.nn.GRUCell(8, 8)
    cell.load_state_dict(
        {k.removeprefix("gru."): v for k, v in agent.state_dict().items() if k.startswith("gru.")}, strict=True
    )
    table = []
    hidden = torch.zeros(ENV.n_agents, 8)
    for t in range(b.obs.shape[0]):
        rows = []
        for i in range(ENV.n_agents):
            row = [*b.obs[t, episode, i].tolist(), *(1.0 if j == i else 0.0 for j in range(ENV.n_agents))]
            if last_action:
                row += [1.0 if t and b.actions[t - 1, episode, i] == a else 0.0 for a in range(ENV.n_actions)]
            rows.append(row)
        hidden = cell(torch.relu(agent.fc_in(torch.tensor(rows))), hidden)
        table.append(agent.fc_out(hidden).tolist())
    return table


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("double_q", "last_action"), [(True, False), (False, True)])
def test_the_loss_is_its_definition(mixer, double_q, last_action):
    algo, b = learner(mixer, double_q=double_q, last_action=last_action), batch()
    gamma = algo.train.gamma
    errors = []
    with torch.no_grad():
        for e in range(b.reward.shape[1]):
            online, target = (
                values(agent, b, e, last_action) for agent in (algo.agents.members[0], algo.target_agents.members[0])
            )
            for t in range(int(b.mask[:, e].sum())):
                chosen, best = [], []
                for i in range(ENV.n_agents):
                    allowed = [a for a in range(ENV.n_actions) if b.available_actions[t + 1, e, i, a]]
                    selecting_qs = online if double_q else target
                    best_action = max(allowed, key=lambda a: selecting_qs[t + 1][i][a])
                    best.append(target[t + 1][i][best_action])
                    chosen.append(online[t][i][int(b.actions[t, e, i])])
                q_tot = algo.mixer(torch.tensor(chosen), b.state[t, e])
                next_q_tot = algo.target_mixer(torch.tensor(best), b.state[t + 1, e])
                y = b.reward[t, e] + gamma * (0 if b.terminated[t, e] else next_q_tot)
                errors.append((q_tot - y).square().mean())
    expected = torch.stack(errors).mean() * (ENV.n_agents if mixer == "none" else 1)
    actual = algo.learn(b)["loss"] * (ENV.n_agents if mixer == "none" else 1)
    assert torch.allclose(actual, expected, rtol=1e-4)


def test_padding_changes_nothing():
    first, second = learner("qmix"), learner("qmix")
    first.learn(batch())
    second.learn(otherwise_padded(batch()))
    assert torch.allclose(first.online.values, second.online.values, atol=1e-6)


def test_target_updates():
    soft = learner(target_update="soft", target_tau=0.25)
    before = soft.target.values.detach().clone()
    soft.learn(batch())
    assert torch.allclose(soft.target.values, before + 0.25 * (soft.online.values.detach() - before))
    periodic = learner(target_update="periodic", target_period=2)
    before = periodic.target.values.detach().clone()
    periodic.learn(batch())
    assert torch.equal(periodic.target.values, before)
    periodic.learn(batch(seed=1))
    assert torch.equal(periodic.target.values, periodic.online.values.detach())


def test_learning_reaches_a_constant_return():
    algo, b = learner("qmix", train={"learning_rate": 1e-2, "gamma": 0.0}), batch()
    b = b._replace(reward=torch.full_like(b.reward, 2.0))
    for _ in range(300):
        metrics = algo.learn(b)
    assert metrics["loss"] < 1e-2 and abs(metrics["q_tot"] - 2.0) < 0.1


def test_acting_is_greedy_over_available_actions_and_explores_uniformly():
    algo = learner(epsilon_start=1.0, epsilon_end=0.0, epsilon_steps=100)
    observation, g = ENV.reset(), torch.Generator().manual_seed(0)
    available = torch.zeros(3, ENV.n_agents, ENV.n_actions, dtype=torch.bool)
    available[..., [1, 4]] = True
    memory = algo.initial_memory(3)
    q, _ = algo.agents.step(algo.inputs.step_inputs(observation.obs, None), memory[0])
    best = q.view(3, ENV.n_agents, -1)[..., [1, 4]].argmax(-1) * 3 + 1
    for env_step in (None, 100):
        actions, _ = algo.act(observation.obs, available, memory, env_step, g)
        assert torch.equal(actions, best)
    sampled = torch.stack([algo.act(observation.obs, available, memory, 0, g)[0] for _ in range(600)])
    assert set(sampled.unique().tolist()) == {1, 4} and abs((sampled == 1).float().mean() - 0.5) < 0.05
    assert algo.exploration(50)["epsilon"] == 0.5


def test_running_moments_are_those_of_everything_seen():
    moments, batches = RunningMoments(torch.device("cpu")), []
    g = torch.Generator().manual_seed(0)
    for count in (1, 7, 30):
        x, mask = 5 + 3 * torch.randn(count, 4, generator=g), torch.rand(count, 4, generator=g) < 0.7
        moments.update(x, mask)
        batches.append(x[mask])
    all_values = torch.cat(batches).double()
    expected = (all_values - all_values.mean()) / all_values.std(correction=0)
    assert torch.allclose(moments.standardise(all_values), expected, atol=1e-5)


def test_a_restored_learner_continues_identically():
    first, second = learner("qmix"), learner("qmix", train={})
    for seed in range(3):
        first.learn(batch(seed=seed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        first.learn(batch(seed=seed))
        second.learn(batch(seed=seed))
    assert torch.equal(first.online.values, second.online.values) and torch.equal(
        first.target.values, second.target.values
    )
