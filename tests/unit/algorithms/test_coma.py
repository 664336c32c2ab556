"""COMA against its formulas, written out step by step."""

import pytest
import torch
from episode_batches import ENV, batch

from qllm_exp.algorithms.coma import counterfactual_advantage
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from tests.unit.algorithms.test_actor_critic import learner


def test_the_policy_expects_no_advantage_whatever_the_state_and_the_agent():
    g = torch.Generator().manual_seed(0)
    q = 10 * torch.randn(50, 3, 6, generator=g)
    available = torch.rand(50, 3, 6, generator=g) < 0.6
    available[..., 0] = True
    probs = MaskedCategorical(torch.randn(50, 3, 6, generator=g), available).probs
    advantages = torch.stack([counterfactual_advantage(q, probs, torch.full((50, 3), a)) for a in range(6)], -1)
    assert (probs * advantages).sum(-1).abs().max() < 1e-4
    assert (advantages[..., 0] - (q[..., 0] - (probs * q).sum(-1))).abs().max() < 1e-5


def test_the_critic_sees_the_state_the_agents_inputs_and_the_other_agents_actions():
    algo, b = learner("coma"), batch()
    inputs = algo.inputs.sequence_inputs(b.obs, b.actions)[:-1]
    critic_inputs = algo.critic_inputs(b.state[:-1], inputs, b.actions)
    width = ENV.state_dim + algo.inputs.size
    for i in range(ENV.n_agents):
        assert torch.equal(critic_inputs[:, :, i, : ENV.state_dim], b.state[:-1])
        assert torch.equal(critic_inputs[:, :, i, ENV.state_dim : width], inputs[:, :, i])
        joint = critic_inputs[:, :, i, width:].unflatten(-1, (ENV.n_agents, ENV.n_actions))
        for j in range(ENV.n_agents):
            one_hot = torch.nn.functional.one_hot(b.actions[:, :, j], ENV.n_actions).float()
            assert torch.equal(joint[:, :, j], torch.zeros_like(one_hot) if i == j else one_hot)


def q_of(critic, algo, b, inputs, t, e, joint):
    """Critic's values [n, A] at step t of episode e."""
    return critic.unroll(algo.critic_inputs(b.state[t, e][None, None], inputs[t, e][None, None], joint[None, None]))[
        0, 0
    ]


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("targets", ["n_step", "td_lambda"])
def test_an_update_is_its_definition(targets, sweep):
    """The targets by the target critic, the critic's steps backwards in time, then the advantages by the critic as it is now."""
    algo = learner("coma", targets=targets, n_step=2, td_lambda=0.6, critic_sweep=sweep, epsilon_start=0.3)
    b, gamma, lam = batch(), algo.train.gamma, 0.6
    inputs = algo.inputs.sequence_inputs(b.obs, b.actions)
    policy = MaskedCategorical(algo.agents.unroll(inputs).detach(), b.available_actions, 0.3)
    sampled = policy.sample(torch.Generator().set_state(algo.generator.get_state()))  # where an episode was truncated
    lengths = [int(b.mask[:, e].sum()) for e in range(4)]
    joints = [[b.actions[t, e] for t in range(n)] + [sampled[n, e]] for e, n in enumerate(lengths)]
    goals: dict[tuple[int, int, int], float] = {}
    for e, length in enumerate(lengths):
        with torch.no_grad():
            target_q = [q_of(algo.target_critic, algo, b, inputs, t, e, joints[e][t]) for t in range(length + 1)]
        for i in range(ENV.n_agents):
            bootstrap = [float(target_q[t + 1][i, joints[e][t + 1][i]]) for t in range(length)]
            r = b.reward[:length, e].tolist()
            if b.terminated[length - 1, e]:
                bootstrap[-1] = 0.0
            for t in reversed(range(length)):
                last = t == length - 1
                if targets == "n_step":
                    goals[t, e, i] = r[t] + gamma * (bootstrap[t] if last else r[t + 1] + gamma * bootstrap[t + 1])
                else:
                    mixture = bootstrap[t] if last else (1 - lam) * bootstrap[t] + lam * goals[t + 1, e, i]
                    goals[t, e, i] = r[t] + gamma * mixture
    critic = algo.build_critic(ENV)
    critic.load_state_dict(algo.critic.state_dict())
    adam = torch.optim.Adam(critic.parameters(), lr=algo.train.learning_rate)
    errors, gains = [], []
    for steps in [[t] for t in reversed(range(6))] if sweep else [range(6)]:
        step_errors = [
            (q_of(critic, algo, b, inputs, t, e, joints[e][t])[i, joints[e][t][i]] - goals[t, e, i]).square()
            for t in steps
            for e in range(4)
            for i in range(ENV.n_agents)
            if t < lengths[e]
        ]
        adam.zero_grad()
        (sum(step_errors) / len(step_errors)).backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), algo.train.grad_norm_clip)
        adam.step()
        errors += [x.item() for x in step_errors]
    for t, e, i in goals:
        q, u = q_of(critic, algo, b, inputs, t, e, joints[e][t]).detach()[i], int(joints[e][t][i])
        probs = policy.probs[t, e, i]
        baseline = sum(float(probs[a] * q[a]) for a in range(ENV.n_actions))
        gains.append((float(q[u]) - baseline) * float(probs[u].log()))
    metrics = algo.learn(b)
    assert float(metrics["value_loss"]) == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert float(metrics["policy_loss"]) == pytest.approx(-sum(gains) / len(gains), rel=1e-3, abs=1e-5)
    for actual, reference in zip(algo.critic.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-5, rtol=0)


def test_the_agents_follow_the_gradient_with_the_advantage_held_fixed():
    """The gradient of the policy with its uniform share and of its entropy, and with the critic that has learnt."""
    algo, before = (learner("coma", entropy=0.3, epsilon_start=0.4, train={"grad_norm_clip": 1e9}) for _ in range(2))
    b = batch()
    algo.learn(b)
    inputs = before.inputs.sequence_inputs(b.obs, b.actions)[:-1]
    available = b.available_actions[:-1]
    softmax = torch.where(available, before.agents.unroll(inputs), -torch.inf).softmax(-1)
    probs = 0.6 * softmax + 0.4 * available / available.sum(-1, keepdim=True)
    with torch.no_grad():
        q = algo.critic.unroll(algo.critic_inputs(b.state[:-1], inputs, b.actions))
        advantage = q.gather(-1, b.actions[..., None])[..., 0] - (probs * q).sum(-1)
    log_prob = probs.gather(-1, b.actions[..., None])[..., 0].log()
    entropy = -torch.special.xlogy(probs, torch.where(available, probs, 1.0)).sum(-1)
    loss = -(advantage * log_prob + 0.3 * entropy)[b.mask].mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(before.agents.parameters()))])
    torch.testing.assert_close(algo.actor_parameters.gradient, expected, atol=1e-6, rtol=1e-4)


def test_a_share_of_the_policy_is_uniform_and_falls_and_is_not_there_in_evaluation():
    algo, g = learner("coma", epsilon_start=1.0, epsilon_end=0.2, epsilon_steps=1000), torch.Generator().manual_seed(0)
    with torch.no_grad():
        algo.agents.members[0].fc_out.bias.add_(torch.tensor([0.0, 9.0, 0.0, 0.0, 5.0, 0.0]))
    observation, memory = ENV.reset(), algo.initial_memory(3)
    available = torch.ones(3, ENV.n_agents, ENV.n_actions, dtype=torch.bool)
    available[..., 0] = False
    for env_step, epsilon in ((0, 1.0), (500, 0.6), (1000, 0.2), (5000, 0.2)):
        assert algo.exploration(env_step) == {"epsilon": pytest.approx(epsilon)}
        sampled = torch.stack([algo.act(observation.obs, available, memory, env_step, g)[0] for _ in range(300)])
        assert (sampled != 1).float().mean().item() == pytest.approx(0.8 * epsilon, abs=0.05)
        assert (sampled > 0).all() and sampled.unique().numel() == ENV.n_actions - 1
        assert algo.epsilon == pytest.approx(epsilon)  # the epsilon that `learn` uses
        assert (algo.act(observation.obs, available, memory, None, g)[0] == 1).all()
