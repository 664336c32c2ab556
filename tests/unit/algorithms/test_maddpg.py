"""MADDPG against its formulas, written out step by step, and the gradient of a drawn action against its closed form."""

import pytest
import torch
from episode_batches import ENV, batch
from torch.nn import functional as F

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.maddpg import gumbel, straight_through
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from tests.unit.algorithms.test_actor_critic import learner

N, A = ENV.n_agents, ENV.n_actions


def disturbed(**train):
    """A learner whose target agents differ from its agents."""
    algo = learner("maddpg", {"grad_norm_clip": 1e9} | train)
    with torch.no_grad():
        algo.target_actor.values += 0.3 * torch.randn_like(algo.target_actor.values)
    return algo


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_gradient_of_a_drawn_action_is_that_of_its_softmax(temperature):
    """Of y = softmax((log pi + g) / t) by the logits: (diag(y) - y y') / t, and what finite differences say."""
    g = torch.Generator().manual_seed(0)
    logits, weight = (torch.randn(6, generator=g, dtype=torch.float64) for _ in range(2))
    available = torch.tensor([True, True, False, True, True, False])
    noise = gumbel(logits, g)

    def soft(z):
        return (((z + noise) / temperature).masked_fill(~available, -torch.inf)).softmax(-1)

    z = logits.clone().requires_grad_()
    sampled = straight_through(MaskedCategorical(z, available).log_probs, noise, temperature)
    (sampled * weight).sum().backward()
    y = soft(logits)
    closed_form = (torch.diag(y) - torch.outer(y, y)) @ weight / temperature
    torch.testing.assert_close(z.grad, closed_form, atol=1e-12, rtol=1e-9)
    for a in range(6):
        step = 1e-6 * F.one_hot(torch.tensor(a), 6)
        numeric = ((soft(logits + step) - soft(logits - step)) * weight).sum() / 2e-6
        assert float(z.grad[a]) == pytest.approx(float(numeric), abs=1e-8)
    assert (z.grad[~available] == 0).all() and (z.grad[available] != 0).all()


def test_a_drawn_action_is_one_hot_available_and_as_probable_as_the_policy_says():
    g = torch.Generator().manual_seed(0)
    policy = MaskedCategorical(torch.tensor([1.0, 0.0, 5.0, -1.0]), torch.tensor([True, True, False, True]))
    log_probs = policy.log_probs.expand(40_000, 4)
    sampled = straight_through(log_probs, gumbel(log_probs, g), 0.1)
    assert set(sampled.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(sampled.mean(0), policy.probs, atol=0.01, rtol=0)
    assert sampled[:, 2].abs().max() == 0


def q_of(algo, critic, t, e, i, b, joint):
    """Q^i of one state and one joint action, a list of n one-hot actions."""
    critic_inputs = torch.cat([b.state[t, e], F.one_hot(torch.tensor(i), N).float(), *joint])
    return critic.unroll(critic_inputs.expand(1, 1, N, -1))[0, 0, i, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_an_update_of_the_critic_is_its_definition(shared):
    algo, b = disturbed(share_parameters=shared), batch()
    with torch.no_grad():
        logits = algo.target_agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions))
    errors = []
    for e in range(4):
        length = int(b.mask[:, e].sum())
        for t in range(length):
            allowed = b.available_actions[t + 1, e]
            best = [max((a for a in range(A) if allowed[j, a]), key=lambda a: logits[t + 1, e, j, a]) for j in range(N)]
            for i in range(N):
                y = b.reward[t, e]
                if not b.terminated[t, e]:
                    next_joint = [F.one_hot(torch.tensor(a), A).float() for a in best]
                    y = y + algo.train.gamma * q_of(algo, algo.target_critic, t + 1, e, i, b, next_joint).detach()
                joint = [F.one_hot(a, A).float() for a in b.actions[t, e]]
                errors.append((q_of(algo, algo.critic, t, e, i, b, joint) - y) ** 2)
    loss = torch.stack(errors).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(algo.critic.parameters()))])
    assert float(algo.learn(b)["value_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(algo.critic_parameters.gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("network", ["gru", "mlp"])
def test_each_agent_climbs_its_critic_through_its_own_action_alone(shared, network):
    algo, b = disturbed(share_parameters=shared, network=network, learning_rate=0.0), batch()  # the critic stays
    noise = gumbel(torch.empty(b.steps, 4, N, A), torch.Generator().set_state(algo.generator.get_state()))
    logits = algo.agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions)[:-1])
    gains, squares = [], []
    for e in range(4):
        for t in range(int(b.mask[:, e].sum())):
            allowed = b.available_actions[t, e]
            joint = []
            for j in range(N):
                masked = logits[t, e, j].masked_fill(~allowed[j], -torch.inf)
                soft = (masked.log_softmax(-1) + noise[t, e, j]).softmax(-1)
                joint.append(F.one_hot(soft.argmax(), A) + soft - soft.detach())
            for i in range(N):
                own_gradient = [action if j == i else action.detach() for j, action in enumerate(joint)]
                gains.append(q_of(algo, algo.critic, t, e, i, b, own_gradient))
                squares.append((logits[t, e, i] * allowed[i]).square().mean())
    gain = torch.stack(gains).mean()
    loss = 0.001 * torch.stack(squares).mean() - gain
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(algo.agents.parameters()))])
    metrics = algo.learn(b)
    assert float(metrics["policy_loss"]) == pytest.approx(-gain.item(), rel=1e-5)
    torch.testing.assert_close(algo.actor_parameters.gradient, expected, atol=1e-7, rtol=1e-3)
    assert algo.actor_parameters.gradient.norm() > 1e-4


def test_target_agents_follow_softly_and_are_kept():
    algo, second = disturbed(), learner("maddpg")
    before = algo.target_actor.values.detach().clone()
    algo.learn(batch())
    expected = before + 0.01 * (algo.actor_parameters.values.detach() - before)
    torch.testing.assert_close(algo.target_actor.values.detach(), expected)
    second.load_state_dict(algo.state_dict())
    assert torch.equal(second.target_actor.values, algo.target_actor.values)
    assert torch.equal(algo._sample_joint(_uniform()), second._sample_joint(_uniform()))


def _uniform() -> MaskedCategorical:
    return MaskedCategorical(torch.zeros(5, 4, N, A), torch.ones(5, 4, N, A, dtype=torch.bool))


def test_it_learns_from_replayed_episodes():
    b = batch()

    class Replay:
        def sample(self, count: int) -> EpisodeBatch:
            assert count == 7
            return b

    first, second = (learner("maddpg", {"batch_episodes": 7}) for _ in range(2))
    assert not first.on_policy
    metrics, second_metrics = first.update(Replay()), second.learn(b)
    assert all(torch.equal(metrics[name], second_metrics[name]) for name in second_metrics)


def test_it_learns_to_coordinate_from_random_actions():
    """Two agents of one state get 1 if both do action 3, from episodes of random actions, the last action never available."""
    train = {"network": "mlp", "share_parameters": False, "learning_rate": 1e-2}
    algo, g = learner("maddpg", train, evaluation="greedy"), torch.Generator().manual_seed(0)
    obs, state = (x[:2, :1].repeat_interleave(32, 1) for x in batch()[:2])
    available = torch.ones(2, 32, N, A, dtype=torch.bool)
    available[..., -1] = False
    all_true = torch.ones(1, 32, dtype=torch.bool)
    for _ in range(100):
        actions = torch.randint(A - 1, (1, 32, N), generator=g)
        reward = (actions == 3).all(-1).float()
        algo.learn(EpisodeBatch(obs, state, available, actions, reward, all_true, all_true))
    greedy, _ = algo.act(obs[0], available[0], algo.initial_memory(32), None, g)
    assert (greedy == 3).all()
