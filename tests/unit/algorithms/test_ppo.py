"""IPPO and MAPPO against their formulas, written out step by step, and what their critics see."""

import pytest
import torch
from episode_batches import ENV, batch

from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.ppo import clipped_objective
from tests.unit.algorithms.test_actor_critic import learner


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # further is not rewarded
        (1.5, -2.0, -3.0, -2.0),  # but going back is
        (0.5, 2.0, 1.0, 2.0),
        (0.5, -2.0, -1.6, 0.0),
    ],
)
def test_the_clipped_objective(ratio, advantage, expected, slope):
    r = torch.tensor(ratio, requires_grad=True)
    gain = clipped_objective(r.log(), torch.tensor(advantage), 0.2)
    gain.backward()
    assert gain.item() == pytest.approx(expected) and r.grad.item() == pytest.approx(slope)


def critic_values(algo, b, critic):
    return critic.unroll(algo.critic_inputs(b)).squeeze(-1).detach()


@pytest.mark.parametrize("name", ["ippo", "mappo"])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_advantages_are_generalised_advantage_estimates(name, lam):
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), without V after a termination."""
    algo, b = learner(name, targets="td_lambda", td_lambda=lam, target_tau=1.0), batch()
    algo.update_targets()
    _, advantage = algo._targets_and_advantages(b, algo.critic_inputs(b))
    value, gamma = critic_values(algo, b, algo.critic), algo.train.gamma
    for e in range(4):
        length = int(b.mask[:, e].sum())
        for i in range(ENV.n_agents):
            for t in range(length):
                expected = 0.0
                for k in range(length - t):
                    bootstrap = 0.0 if b.terminated[t + k, e] else float(value[t + k + 1, e, i])
                    delta = float(b.reward[t + k, e]) + gamma * bootstrap - float(value[t + k, e, i])
                    expected += (gamma * lam) ** k * delta
                assert float(advantage[t, e, i]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["ippo", "mappo"])
def test_one_epoch_is_its_definition(name):
    algo, b = learner(name, epochs=1, n_step=2), batch()
    value, target = critic_values(algo, b, algo.critic), critic_values(algo, b, algo.target_critic)
    policy = MaskedCategorical(algo.agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions)), b.available_actions)
    entropy = policy.entropy.detach()
    gamma, advantages, entropies = algo.train.gamma, [], []
    for e in range(4):
        length = int(b.mask[:, e].sum())
        for t in range(length):
            m = min(2, length - t)
            ended = bool(b.terminated[t + m - 1, e])
            for i in range(ENV.n_agents):
                y = sum(gamma**k * float(b.reward[t + k, e]) for k in range(m))
                y += 0.0 if ended else gamma**m * float(target[t + m, e, i])
                advantages.append(y - float(value[t, e, i]))
                entropies.append(float(entropy[t, e, i]))
    metrics = algo.learn(b)
    assert metrics["clipped"] == 0  # all ratios are one
    assert float(metrics["policy_loss"]) == pytest.approx(-sum(advantages) / len(advantages), abs=1e-5)
    assert float(metrics["value_loss"]) == pytest.approx(sum(a * a for a in advantages) / len(advantages), rel=1e-4)
    assert float(metrics["entropy"]) == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


@pytest.mark.parametrize("name", ["ippo", "mappo"])
def test_the_first_epoch_follows_the_policy_gradient_and_later_ones_are_held_back(name):
    algo, b = learner(name, epochs=1, entropy=0.0, train={"grad_norm_clip": 1e9}), batch()
    _, advantage = algo._targets_and_advantages(b, algo.critic_inputs(b))
    policy = MaskedCategorical(
        algo.agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions))[:-1], b.available_actions[:-1]
    )
    loss = -(policy.log_prob(b.actions) * advantage)[b.mask].mean()
    expected = torch.autograd.grad(loss, list(algo.agents.parameters()))
    algo.learn(b)
    flat = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(algo.actor_parameters.gradient, flat, atol=1e-6, rtol=1e-4)
    fast = learner(name, epochs=8, train={"learning_rate": 0.05})
    assert fast.learn(b)["clipped"] > 0


def test_the_critic_of_ippo_sees_the_observation_and_that_of_mappo_the_state():
    b = batch()
    other_state, other_obs = b._replace(state=b.state + 1), b._replace(obs=b.obs + 1)
    for name, sees, blind in (("ippo", other_obs, other_state), ("mappo", other_state, other_obs)):
        algo = learner(name)
        value = critic_values(algo, b, algo.critic)
        assert torch.equal(value, critic_values(algo, blind, algo.critic))
        assert (value != critic_values(algo, sees, algo.critic)).all()
    critic_inputs = learner("mappo").critic_inputs(b)
    assert torch.equal(critic_inputs[..., : ENV.state_dim], b.state.unsqueeze(2).expand(-1, -1, ENV.n_agents, -1))
    assert torch.equal(critic_inputs[0, 0, :, ENV.state_dim :], torch.eye(ENV.n_agents))


def test_an_agent_of_ippo_learns_from_its_own_observation_alone():
    b = batch()
    changed_obs = b.obs.clone()
    changed_obs[:, :, 1] += 1
    first, second = (learner("ippo", {"share_parameters": False, "grad_norm_clip": 1e9}) for _ in range(2))
    first.learn(b)
    second.learn(b._replace(obs=changed_obs))
    for network in ("agents", "critic"):
        pairs = [
            zip(
                getattr(first, network).members[i].parameters(),
                getattr(second, network).members[i].parameters(),
                strict=True,
            )
            for i in range(2)
        ]
        unchanged = [all(torch.equal(p, q) for p, q in each) for each in pairs]
        assert unchanged == [True, False]


def test_normalised_advantages_have_mean_zero_and_variance_one():
    algo, b = learner("mappo", normalise_advantages=True), batch()
    _, advantage = algo._targets_and_advantages(b, algo.critic_inputs(b))
    assert abs(advantage[b.mask].mean()) < 1e-5 and abs(advantage[b.mask].std(correction=0) - 1) < 1e-4


def test_a_critic_of_normalised_values_learns_large_returns():
    """Returns around 1000: the critic's output stays small, and the restored values are right."""
    train = {"gamma": 0.0, "learning_rate": 3e-3}
    algo, b = learner("mappo", train, normalise_values=True), batch()
    reward = 1000 + 50 * b.state[:-1, :, 0].sign()
    for _ in range(200):
        algo.learn(b._replace(reward=reward))
    standardised = critic_values(algo, b, algo.critic)[:-1]
    restored = algo.values.restore(standardised).mean(-1)
    assert standardised[b.mask].abs().max() < 3 and (restored - reward)[b.mask].abs().max() < 20
