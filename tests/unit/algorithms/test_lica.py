"""LICA against its formulas, written out step by step."""

import pytest
import torch
from episode_batches import ENV, batch
from torch.nn import functional as F

from qllm_exp.algorithms.flat_parameters import FlatParameters, make_optimiser
from qllm_exp.algorithms.lica import MixingCritic
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config.schema import TrainConfig
from tests.unit.algorithms.test_actor_critic import learner

N, A = ENV.n_agents, ENV.n_actions


def test_the_critic_is_its_formula():
    torch.manual_seed(0)
    critic, probs, state = (
        MixingCritic(6, 4, embed=5, hypernet=3).double(),
        torch.rand(2, 3).double(),
        torch.randn(4).double(),
    )
    with torch.no_grad():
        q = critic(probs, state)
        layers = critic.from_state.weight.split((3, 3, 5, 5)), critic.from_state.bias.split((3, 3, 5, 5))
        h1, h2, b1, h3 = (
            [float(w @ state + b) for w, b in zip(*layer_parts, strict=True)]
            for layer_parts in zip(*layers, strict=True)
        )

        def apply_layer(layer, hidden):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            return [sum(w * max(x, 0.0) for w, x in zip(row, hidden, strict=True)) + b for row, b in rows]

        w1, w2, b2 = (
            apply_layer(critic.weights1, h1),
            apply_layer(critic.weights2, h2),
            apply_layer(critic.bias2, h3)[0],
        )
    flat = probs.flatten().tolist()
    mixed = [max(0.0, sum(flat[k] * w1[k * 5 + e] for k in range(6)) + b1[e]) for e in range(5)]
    assert q.item() == pytest.approx(sum(m * w for m, w in zip(mixed, w2, strict=True)) + b2, rel=1e-9)


def test_the_critic_learns_what_no_monotone_mixer_can():
    """Two agents, two actions: 1 where they differ, 0 where they agree; of the policies in between, more is more."""
    torch.manual_seed(0)
    critic, state = MixingCritic(4, 1, embed=16, hypernet=4), torch.ones(4, 1)
    actions = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    joint, value = F.one_hot(actions, 2).float(), torch.tensor([0.0, 1.0, 1.0, 0.0])
    parameters = FlatParameters([critic])
    descent = make_optimiser(TrainConfig(learning_rate=2e-2), parameters)
    for _ in range(100):
        parameters.gradient.zero_()
        (critic(joint, state) - value).square().mean().backward()
        descent.step()
    assert (critic(joint, state) - value).abs().max() < 0.05
    probs = torch.tensor([[0.8, 0.2], [0.3, 0.7]], requires_grad=True)
    critic(probs, state[0]).backward()
    assert probs.grad[0, 0] > probs.grad[0, 1] and probs.grad[1, 1] > probs.grad[1, 0]


@pytest.mark.parametrize("targets", ["td_lambda", "n_step"])
def test_an_update_of_the_critic_is_its_definition(targets):
    algo, b = learner("lica", {"grad_norm_clip": 1e9}, targets=targets, n_step=2, td_lambda=0.6), batch()
    gamma, lam = algo.train.gamma, 0.6
    logits = algo.agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions)).detach()
    policy = MaskedCategorical(logits, b.available_actions)
    sampled = policy.sample(torch.Generator().set_state(algo.generator.get_state()))  # where an episode was truncated

    def q_of(critic, t, e, joint):
        return critic(F.one_hot(joint, A).float(), b.state[t, e])

    errors = []
    for e in range(4):
        length = int(b.mask[:, e].sum())
        r = b.reward[:length, e].tolist()
        next_actions = [*b.actions[1:length, e], sampled[length, e]]
        bootstrap = [float(q_of(algo.target_critic, t + 1, e, next_actions[t]).detach()) for t in range(length)]
        if b.terminated[length - 1, e]:
            bootstrap[-1] = 0.0
        y = [0.0] * length
        for t in reversed(range(length)):
            if t == length - 1:
                y[t] = r[t] + gamma * bootstrap[t]
            elif targets == "n_step":
                y[t] = r[t] + gamma * (r[t + 1] + gamma * bootstrap[t + 1])
            else:
                y[t] = r[t] + gamma * ((1 - lam) * bootstrap[t] + lam * y[t + 1])
        errors += [(q_of(algo.critic, t, e, b.actions[t, e]) - y[t]) ** 2 for t in range(length)]
    loss = torch.stack(errors).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(algo.critic.parameters()))])
    assert float(algo.learn(b)["value_loss"]) == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(algo.critic_parameters.gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_the_agents_climb_the_critic_of_their_probabilities_and_the_logarithm_of_their_entropy(entropy):
    """The gradient of H / |H| is that of log H."""
    train = {"grad_norm_clip": 1e9, "learning_rate": 0.0}  # the critic stays
    algo, b = learner("lica", train, entropy=entropy), batch()
    logits = algo.agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions))
    gains, entropies = [], []
    for e in range(4):
        for t in range(int(b.mask[:, e].sum())):
            probs = []
            for i in range(N):
                allowed = b.available_actions[t, e, i]
                policy_probs = logits[t, e, i, allowed].softmax(-1)
                entropies.append(-(policy_probs * policy_probs.log()).sum())
                probs.append(torch.zeros(A).masked_scatter(allowed, policy_probs))
            gains.append(algo.critic(torch.stack(probs), b.state[t, e]))
    gain, mean_entropy = torch.stack(gains).mean(), torch.stack(entropies).mean()
    loss = -gain - entropy * mean_entropy.log()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(algo.agents.parameters()))])
    metrics = algo.learn(b)
    assert float(metrics["policy_loss"]) == pytest.approx(-gain.item(), rel=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(mean_entropy.item(), rel=1e-5)
    torch.testing.assert_close(algo.actor_parameters.gradient, expected, atol=1e-7, rtol=1e-3)
    assert algo.actor_parameters.gradient.norm() > 1e-4


def test_policies_that_are_certain_learn_without_harm():
    algo, b = learner("lica"), batch()
    with torch.no_grad():
        algo.agents.members[0].fc_out.bias[0] += 1e4  # action 0 is always available
    metrics = algo.learn(b)
    assert metrics["entropy"] == 0 and all(value.isfinite() for value in metrics.values())
    assert algo.actor_parameters.values.isfinite().all()


def test_the_agents_have_a_learning_rate_of_their_own():
    """The first step of Adam is the learning rate, whatever the gradient."""
    algo = learner("lica", {"learning_rate": 1e-3}, agents_rate=4.0)
    old_values = [parameters.values.detach().clone() for parameters in (algo.actor_parameters, algo.critic_parameters)]
    algo.learn(batch())
    new_values = (algo.actor_parameters.values, algo.critic_parameters.values)
    steps = [float((new - old).abs().max().detach()) for new, old in zip(new_values, old_values, strict=True)]
    assert steps == pytest.approx([4e-3, 1e-3], rel=1e-3)
