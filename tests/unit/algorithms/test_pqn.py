"""PQN against its formulas, written out step by step; minibatches; what it has in the place of target network and buffer."""

import copy

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.pqn import Config as PqnConfig
from qllm_exp.algorithms.pqn import Pqn
from qllm_exp.config import schema
from qllm_exp.mixers.base import JointAction
from qllm_exp.mixers.none import Independent
from qllm_exp.mixers.qfix import Qfix
from qllm_exp.mixers.qmix import Qmix
from qllm_exp.mixers.vdn import Vdn
from qllm_exp.mixers.wqmix import Wqmix

N, A = ENV.n_agents, ENV.n_actions
MIXERS = {
    "vdn": Vdn,
    "none": Independent,
    "qmix": lambda: Qmix(N, ENV.state_dim, 4, 8),
    "qfix": lambda: Qfix(N, A, ENV.state_dim, "lin", hypernet=5),
    "wqmix": lambda: Wqmix(N, ENV.state_dim, 4, 5, 6, alpha=0.3),
}


class OneRollout:
    """Experience of one rollout; an algorithm that asks for any other episodes fails."""

    def __init__(self, b: EpisodeBatch) -> None:
        self.b = b

    def last_rollout(self) -> EpisodeBatch:
        return self.b


def learner(mixer="vdn", train=None, **algorithm) -> Pqn:
    torch.manual_seed(0)
    settings = {"hidden": 8, "optimiser": "radam", "standardise_rewards": False} | (train or {})
    return Pqn(PqnConfig(**algorithm), schema.TrainConfig(**settings), ENV, MIXERS[mixer]())


def values(agent, b: EpisodeBatch, episode: int) -> torch.Tensor:
    """Q of every step, agent and action of one episode, one step at a time; layers are normalised by hand."""
    cell = torch.nn.GRUCell(8, 8)
    cell.load_state_dict({k.removeprefix("gru."): v for k, v in agent.state_dict().items() if k.startswith("gru.")})
    cell = {name: getattr(agent.gru, name) for name, _ in cell.named_parameters()}
    table, hidden = [], torch.zeros(N, 8)
    for t in range(b.obs.shape[0]):
        x = agent.fc_in(torch.cat([b.obs[t, episode], torch.eye(N)], -1))
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        x = (x * agent.norm.weight + agent.norm.bias).clamp(min=0)
        from_x = x @ cell["weight_ih"].T + cell["bias_ih"]
        from_hidden = hidden @ cell["weight_hh"].T + cell["bias_hh"]
        (xr, xz, xn), (hr, hz, hn) = from_x.split(8, -1), from_hidden.split(8, -1)
        z = torch.sigmoid(xz + hz)
        hidden = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * hidden
        table.append(agent.fc_out(hidden))
    return torch.stack(table)


def joint(qs, available, actions) -> JointAction:
    return JointAction(qs[None], available[None], torch.as_tensor(actions)[None])


def best(qs, available) -> list[int]:
    return [max((a for a in range(A) if available[i, a]), key=lambda a: float(qs[i, a].detach())) for i in range(N)]


def literal_loss(algo: Pqn, b: EpisodeBatch) -> torch.Tensor:
    """Mean over the steps of the episodes of (Q_tot - y)^2, with y from the end of each episode backwards."""
    gamma, lam, losses = algo.train.gamma, algo.config.td_lambda, []
    for e in range(b.reward.shape[1]):
        qs = values(algo.agents.members[0], b, e)
        central = None if algo.central is None else values(algo.central.members[0], b, e)
        length = int(b.mask[:, e].sum())
        y = None
        for t in reversed(range(length)):
            if b.terminated[t, e]:
                y = b.reward[t, e]
            else:
                choice = best(qs[t + 1], b.available_actions[t + 1, e])
                bootstrap, mixer = (qs, algo.mixer) if central is None else (central, algo.mixer.unrestricted)
                value = mixer.q_tot(
                    joint(bootstrap[t + 1], b.available_actions[t + 1, e], choice), b.state[t + 1, e][None]
                )[0].detach()
                y = b.reward[t, e] + gamma * (value if y is None else (1 - lam) * value + lam * y)
            allowed, actions = b.available_actions[t, e], b.actions[t, e]
            q_tot = algo.mixer.q_tot(joint(qs[t], allowed, actions), b.state[t, e][None])[0]
            if central is None:
                losses.append((q_tot - y).square().mean())
                continue
            weighing = [
                algo.mixer.unrestricted(torch.stack([central[t, i, a] for i, a in enumerate(u)]), b.state[t, e])
                for u in (actions.tolist(), best(qs[t], allowed))
            ]
            is_best = actions.tolist() == best(qs[t], allowed) or y > weighing[1]
            losses.append((1.0 if is_best else 0.3) * (q_tot - y).square() + (weighing[0] - y).square())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_a_gradient_step_follows_the_loss_of_the_last_rollout(mixer, lam):
    b = batch()
    algo, reference = (
        learner(mixer, {"grad_norm_clip": 1e9}, epochs=1, minibatches=1, td_lambda=lam) for _ in range(2)
    )
    metrics = algo.update(OneRollout(b))
    loss = literal_loss(reference, b)
    loss.backward()
    assert reference.online.gradient.abs().max() > 0.01
    torch.testing.assert_close(algo.online.gradient, reference.online.gradient, rtol=1e-3, atol=1e-5)
    if mixer != "wqmix":  # its loss is a weighted sum of two
        torch.testing.assert_close(metrics["loss"], loss.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(algo.online.values, learner(mixer).online.values)


def test_every_epoch_learns_from_each_episode_once_and_divides_them_anew(monkeypatch):
    algo, b, seen = learner(epochs=3, minibatches=2), batch(), []
    learn = algo.learn
    monkeypatch.setattr(algo, "learn", lambda part: (seen.append(part), learn(part))[1])
    metrics = algo.update(OneRollout(b))
    parts = [[b.obs[0, :, 0, 0].tolist().index(x) for x in part.obs[0, :, 0, 0].tolist()] for part in seen]
    assert [len(part) for part in parts] == [2] * 6
    epochs = [parts[i] + parts[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1
    assert all(torch.equal(part.reward, b.reward[:, slots]) for part, slots in zip(seen, parts, strict=True))
    assert metrics.keys() == {"loss", "grad_norm", "q_tot"} and all(value.dim() == 0 for value in metrics.values())


def test_more_minibatches_than_episodes_are_one_per_episode():
    algo = learner(epochs=1, minibatches=100)
    assert [part.mask.shape[1] for part in algo.minibatches(batch())] == [1, 1, 1, 1]


def test_nothing_is_kept_besides_the_networks_that_act():
    algo = learner("qmix")
    count = sum(p.numel() for module in (algo.agents, algo.mixer) for p in module.parameters())
    assert algo.on_policy and algo.parameter_counts().keys() == {"agent", "mixer"}
    assert algo.state_dict().keys() == {"online", "optimiser", "rewards", "generator"}
    assert algo.state_dict()["online"].numel() == count
    assert isinstance(algo.optimiser, torch.optim.RAdam)


def test_padding_changes_nothing():
    first, second = learner("qmix"), learner("qmix")
    first.update(OneRollout(batch()))
    second.update(OneRollout(otherwise_padded(batch())))
    assert torch.allclose(first.online.values, second.online.values, atol=1e-5)


def test_layers_are_normalised_unless_configured_otherwise():
    with_norm, without = (learner(layer_norm=value).agents for value in (True, False))
    added = {name for name, _ in with_norm.named_parameters()} - {name for name, _ in without.named_parameters()}
    assert added == {"members.0.norm.weight", "members.0.norm.bias"}
    feed_forward = learner(train={"network": "mlp"}).agents
    assert sum("norm" in name for name, _ in feed_forward.named_parameters()) == 4
    inputs = torch.randn(1, 3, N, learner().inputs.size)
    for member in (with_norm.members[0], feed_forward.members[0]):
        with torch.no_grad():
            member.fc_in.bias.zero_()  # then the scale of the inputs does not matter
        torch.testing.assert_close(
            member.unroll(inputs[:, :, 0]), member.unroll(1000 * inputs[:, :, 0]), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("mixer", ["qmix", "wqmix"])
def test_a_restored_learner_continues_identically(mixer):
    first, second = learner(mixer), learner(mixer)
    for seed in range(3):
        first.update(OneRollout(batch(seed=seed)))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        metrics = [algo.update(OneRollout(batch(seed=seed))) for algo in (first, second)]
        assert metrics[0] == metrics[1]
    assert torch.equal(first.online.values, second.online.values)


def test_learning_reaches_a_constant_return():
    algo, b = learner("qmix", train={"learning_rate": 1e-2, "gamma": 0.0}), batch()
    b = b._replace(reward=torch.full_like(b.reward, 2.0))
    for _ in range(40):
        metrics = algo.update(OneRollout(b))
    assert metrics["loss"] < 2e-2 and abs(metrics["q_tot"] - 2.0) < 0.1
