"""COMA against its formulas, the slow way."""

import pytest
import torch
from episode_batches import ENV, batch
from test_actor_critic import learner

from qllm_exp.algorithms.categorical import MaskedCategorical
from qllm_exp.algorithms.coma import counterfactual_advantage


def test_the_policy_expects_no_advantage_whatever_the_state_and_the_agent():
    g = torch.Generator().manual_seed(0)
    q = 10 * torch.randn(50, 3, 6, generator=g)
    available = torch.rand(50, 3, 6, generator=g) < 0.6
    available[..., 0] = True
    probs = MaskedCategorical(torch.randn(50, 3, 6, generator=g), available).probs
    every = torch.stack([counterfactual_advantage(q, probs, torch.full((50, 3), a)) for a in range(6)], -1)
    assert (probs * every).sum(-1).abs().max() < 1e-4
    assert (every[..., 0] - (q[..., 0] - (probs * q).sum(-1))).abs().max() < 1e-5


def test_the_critic_sees_the_state_what_the_agent_sees_and_what_the_others_do():
    made, b = learner("coma"), batch()
    inputs = made.inputs.along(b.obs, b.actions)[:-1]
    seen = made.critic_inputs(b.state[:-1], inputs, b.actions)
    width = ENV.state_dim + made.inputs.size
    for i in range(ENV.n_agents):
        assert torch.equal(seen[:, :, i, : ENV.state_dim], b.state[:-1])
        assert torch.equal(seen[:, :, i, ENV.state_dim : width], inputs[:, :, i])
        joint = seen[:, :, i, width:].unflatten(-1, (ENV.n_agents, ENV.n_actions))
        for j in range(ENV.n_agents):
            done = torch.nn.functional.one_hot(b.actions[:, :, j], ENV.n_actions).float()
            assert torch.equal(joint[:, :, j], torch.zeros_like(done) if i == j else done)


@pytest.mark.parametrize("targets", ["n_step", "td_lambda"])
def test_an_update_is_its_definition(targets):
    made, b = learner("coma", targets=targets, n_step=2, td_lambda=0.6), batch()
    gamma, lam = made.train.gamma, 0.6
    inputs = made.inputs.along(b.obs, b.actions)
    policy = MaskedCategorical(made.agents.unroll(inputs).detach(), b.available_actions)
    drawn = policy.sample(torch.Generator().set_state(made.generator.get_state()))  # where an episode was truncated
    errors, gains = [], []

    def q_of(critic, t, e, joint):
        return critic.unroll(
            made.critic_inputs(b.state[t, e][None, None], inputs[t, e][None, None], joint[None, None])
        )[0, 0]

    with torch.no_grad():
        for e in range(4):
            length = int(b.mask[:, e].sum())
            joints = [b.actions[t, e] for t in range(length)] + [drawn[length, e]]
            target_q = [q_of(made.target_critic, t, e, joints[t]) for t in range(length + 1)]
            online_q = [q_of(made.critic, t, e, joints[t]) for t in range(length)]
            for i in range(ENV.n_agents):
                beyond = [float(target_q[t + 1][i, joints[t + 1][i]]) for t in range(length)]
                r = b.reward[:length, e].tolist()
                if b.terminated[length - 1, e]:
                    beyond[-1] = 0.0
                longer = [0.0] * length
                for t in reversed(range(length)):
                    last = t == length - 1
                    if targets == "n_step":
                        longer[t] = r[t] + gamma * (beyond[t] if last else r[t + 1] + gamma * beyond[t + 1])
                    else:
                        longer[t] = r[t] + gamma * (beyond[t] if last else (1 - lam) * beyond[t] + lam * longer[t + 1])
                for t in range(length):
                    q, probs, u = online_q[t][i], policy.probs[t, e, i], int(joints[t][i])
                    baseline = sum(float(probs[a] * q[a]) for a in range(ENV.n_actions))
                    errors.append((float(q[u]) - longer[t]) ** 2)
                    gains.append((float(q[u]) - baseline) * float(probs[u].log()))
    figures = made.learn(b)
    assert float(figures["value_loss"]) == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert float(figures["policy_loss"]) == pytest.approx(-sum(gains) / len(gains), rel=1e-3, abs=1e-5)


def test_the_agents_follow_the_gradient_with_the_advantage_held_fixed():
    made, b = learner("coma", entropy=0.0, train={"grad_norm_clip": 1e9}), batch()
    inputs = made.inputs.along(b.obs, b.actions)
    policy = MaskedCategorical(made.agents.unroll(inputs)[:-1], b.available_actions[:-1])
    with torch.no_grad():
        q = made.critic.unroll(made.critic_inputs(b.state[:-1], inputs[:-1], b.actions))
        advantage = q.gather(-1, b.actions[..., None])[..., 0] - (policy.probs * q).sum(-1)
    loss = -(advantage * policy.log_prob(b.actions))[b.mask].mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(made.agents.parameters()))])
    made.learn(b)
    torch.testing.assert_close(made.actor_parameters.gradient, expected, atol=1e-6, rtol=1e-4)
