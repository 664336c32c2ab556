"""One update of Q-learning against the slow, literal version; acting; the flat parameters."""

import copy

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.flat_parameters import FlatParameters
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
    made = QLearning(
        QLearningConfig(**({"targets": "n_step"} | algorithm)),
        schema.TrainConfig(hidden=8, **(train or {})),
        ENV,
        MIXERS[mixer](),
    )
    with torch.no_grad():  # so that online and target differ
        made.target.values += 0.1 * torch.randn_like(made.target.values)
    return made


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
    made, b = learner(mixer, double_q=double_q, last_action=last_action), batch()
    gamma = made.train.gamma
    errors = []
    with torch.no_grad():
        for e in range(b.reward.shape[1]):
            online, target = (
                values(agent, b, e, last_action) for agent in (made.agents.members[0], made.target_agents.members[0])
            )
            for t in range(int(b.mask[:, e].sum())):
                chosen, best = [], []
                for i in range(ENV.n_agents):
                    allowed = [a for a in range(ENV.n_actions) if b.available_actions[t + 1, e, i, a]]
                    judge = online if double_q else target
                    pick = max(allowed, key=lambda a: judge[t + 1][i][a])
                    best.append(target[t + 1][i][pick])
                    chosen.append(online[t][i][int(b.actions[t, e, i])])
                now = made.mixer(torch.tensor(chosen), b.state[t, e])
                then = made.target_mixer(torch.tensor(best), b.state[t + 1, e])
                y = b.reward[t, e] + gamma * (0 if b.terminated[t, e] else then)
                errors.append((now - y).square().mean())
    expected = torch.stack(errors).mean() * (ENV.n_agents if mixer == "none" else 1)
    counted = made.learn(b)["loss"] * (ENV.n_agents if mixer == "none" else 1)
    assert torch.allclose(counted, expected, rtol=1e-4)


def test_padding_changes_nothing():
    one, other = learner("qmix"), learner("qmix")
    one.learn(batch())
    other.learn(otherwise_padded(batch()))
    assert torch.allclose(one.online.values, other.online.values, atol=1e-6)


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
    made, b = learner("qmix", train={"learning_rate": 1e-2, "gamma": 0.0}), batch()
    b = b._replace(reward=torch.full_like(b.reward, 2.0))
    for _ in range(300):
        figures = made.learn(b)
    assert figures["loss"] < 1e-2 and abs(figures["q_tot"] - 2.0) < 0.1


def test_acting_is_greedy_over_available_actions_and_explores_uniformly():
    made = learner(epsilon_start=1.0, epsilon_end=0.0, epsilon_steps=100)
    seen, g = ENV.reset(), torch.Generator().manual_seed(0)
    available = torch.zeros(3, ENV.n_agents, ENV.n_actions, dtype=torch.bool)
    available[..., [1, 4]] = True
    memory = made.initial_memory(3)
    q, _ = made.agents.step(made.inputs.at(seen.obs, None), memory[0])
    best = q.view(3, ENV.n_agents, -1)[..., [1, 4]].argmax(-1) * 3 + 1
    for env_step in (None, 100):
        actions, _ = made.act(seen.obs, available, memory, env_step, g)
        assert torch.equal(actions, best)
    drawn = torch.stack([made.act(seen.obs, available, memory, 0, g)[0] for _ in range(600)])
    assert set(drawn.unique().tolist()) == {1, 4} and abs((drawn == 1).float().mean() - 0.5) < 0.05
    assert made.exploration(50)["epsilon"] == 0.5


def test_flat_parameters_are_the_modules_parameters():
    module = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(module)
    flat = FlatParameters([module])
    x = torch.randn(5, 3)
    for m in (module, twin):
        m(x).square().sum().backward()
    assert torch.equal(flat.gradient, torch.cat([p.grad.flatten() for p in twin.parameters()]))
    norm = flat.clip_(0.5)
    assert torch.allclose(norm, torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5))
    assert torch.allclose(flat.gradient, torch.cat([p.grad.flatten() for p in twin.parameters()]))
    with torch.no_grad():
        flat.values.zero_()
    assert not module.weight.any()


def test_running_moments_are_those_of_everything_seen():
    moments, seen = RunningMoments(torch.device("cpu")), []
    g = torch.Generator().manual_seed(0)
    for count in (1, 7, 30):
        x, mask = 5 + 3 * torch.randn(count, 4, generator=g), torch.rand(count, 4, generator=g) < 0.7
        moments.update(x, mask)
        seen.append(x[mask])
    every = torch.cat(seen).double()
    assert torch.allclose(moments.standardise(every), (every - every.mean()) / every.std(correction=0), atol=1e-5)


def test_a_reloaded_learner_goes_on_as_the_saved_one():
    one, other = learner("qmix"), learner("qmix", train={})
    for seed in range(3):
        one.learn(batch(seed=seed))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for seed in range(3, 6):
        one.learn(batch(seed=seed))
        other.learn(batch(seed=seed))
    assert torch.equal(one.online.values, other.online.values) and torch.equal(one.target.values, other.target.values)
