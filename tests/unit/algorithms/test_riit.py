"""RIIT with every mixer against literal versions of its public code's formulas, and the episodes that it learns from."""

import copy
from collections import Counter

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.riit import ActionValues, CriticJointAction, Riit
from qllm_exp.algorithms.riit import Config as RiitConfig
from qllm_exp.config import schema
from qllm_exp.credit.stored_function import BUNDLED, load
from qllm_exp.explain.watch_episode import credit
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.none import Config as NoMixerConfig
from qllm_exp.mixers.qatten import Config as QattenConfig
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.tfcaf import Tfcaf
from qllm_exp.mixers.vdn import Config as VdnConfig
from tests.unit.mixers.test_learning import CONFIGS, best, one_hot, select, value_loss

N, A = ENV.n_agents, ENV.n_actions
WEIGHTED = {name: CONFIGS[name] for name in ("cw", "ow")}
MIXERS = WEIGHTED | {
    "none": NoMixerConfig(),
    "vdn": VdnConfig(),
    "qmix": QmixConfig(embed=4, hypernet=5),
    "qatten": QattenConfig(heads=2, hidden=5, embed=4),
}
NAMES = [*MIXERS, "tfcaf"]


def make_named_mixer(name):
    if name == "tfcaf":
        return Tfcaf(load(BUNDLED / "lbf" / f"{ENV.task.task}.json").program, affine=True, enforce=True)
    return make_mixer(MIXERS[name], ENV)


def learner(name="qmix", train=None, **algorithm) -> Riit:
    torch.manual_seed(0)
    settings = {"hidden": 8, "grad_norm_clip": 1e9, "standardise_rewards": False} | (train or {})
    algo = Riit(
        RiitConfig(**({"critic_hidden": 8} | algorithm)), schema.TrainConfig(**settings), ENV, make_named_mixer(name)
    )
    with torch.no_grad():  # so that critic and target differ, and the policy is not uniform
        algo.target.values += 0.3 * torch.randn_like(algo.target.values)
        algo.actor_parameters.values *= 3
    return algo


def parameters(algo: Riit) -> torch.Tensor:
    return torch.cat([algo.actor_parameters.values, algo.critic_parameters.values, algo.target.values]).detach().clone()


def q_of(values: ActionValues, obs, i, action) -> torch.Tensor:
    """Q_i of one agent with plain layers: observation, one-hot index and action [A]."""
    network = values.members[i % len(values.members)]
    x = torch.cat([obs[i], torch.eye(N)[i], action])
    return network.fc_out(torch.relu(network.fc_hidden(torch.relu(network.fc_in(x)))))[0]


def table(values: ActionValues | None, obs) -> torch.Tensor | None:
    """Q [n, A] of every agent and action."""
    if values is None:
        return None
    return torch.stack([torch.stack([q_of(values, obs, i, torch.eye(A)[a]) for a in range(A)]) for i in range(N)])


def bootstrap_value(critic, obs, actions, state) -> torch.Tensor:
    """Value that targets bootstrap from."""
    if critic.central is not None:
        return critic.mixer.unrestricted(select(table(critic.central, obs), actions), state)
    return critic.mixer(select(table(critic.values, obs), actions)[None], state[None])[0]


def literal_critic_loss(name, algo: Riit, b: EpisodeBatch, sampled, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the mean squared error of Q_tot, one step at a time."""
    losses, errors = [], []
    for e in range(b.reward.shape[1]):
        length = int(b.mask[:, e].sum())
        actions = [b.actions[t, e] for t in range(length)] + [sampled[length, e]]
        y = torch.zeros(())
        for t in reversed(range(length)):
            with torch.no_grad():
                bootstrap = bootstrap_value(algo.target_critic, b.obs[t + 1, e], actions[t + 1], b.state[t + 1, e])
                if t == length - 1:
                    y = b.reward[t, e] + algo.train.gamma * (0 if b.terminated[t, e] else 1) * bootstrap
                else:
                    y = b.reward[t, e] + algo.train.gamma * ((1 - lam) * bootstrap + lam * y)
            obs, allowed, state = b.obs[t, e], b.available_actions[t, e], b.state[t, e]
            online, central = table(algo.critic.values, obs), table(algo.critic.central, obs)
            if name in WEIGHTED:
                losses.append(value_loss(name, algo.mixer, online, central, allowed, actions[t], state, y))
            else:
                losses.append(((algo.mixer(select(online, actions[t])[None], state[None]) - y) ** 2).mean())
            errors.append(losses[-1] if name not in WEIGHTED else None)
    return torch.stack(losses).mean(), None if errors[0] is None else torch.stack(errors).mean().detach()


def sample_actions(algo: Riit, b: EpisodeBatch) -> torch.Tensor:
    policy = MaskedCategorical(
        algo.agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions)).detach(), b.available_actions
    )
    return policy.sample(torch.Generator().set_state(algo.generator.get_state()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_of_the_critic_is_that_of_its_loss(name, shared):
    algo, reference = (learner(name, {"share_parameters": shared}) for _ in range(2))
    b = batch()
    loss, error = literal_critic_loss(name, reference, b, sample_actions(reference, b), 0.6)
    metrics = algo.learn(b)
    reference.critic_parameters.gradient.zero_()
    loss.backward()
    assert reference.critic_parameters.gradient.abs().max() > 0.01
    torch.testing.assert_close(
        algo.critic_parameters.gradient, reference.critic_parameters.gradient, rtol=1e-3, atol=1e-5
    )
    if error is not None:
        assert float(metrics["value_loss"]) == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shared", "network", "last_action"), [(True, "gru", False), (False, "mlp", True)])
def test_the_agents_follow_the_critic_at_their_probabilities(name, shared, network, last_action):
    """The critic gets the probabilities in place of a one-hot action; unavailable actions have probability 0."""
    train = {"share_parameters": shared, "network": network}
    algo, reference = (learner(name, train, entropy=0.5, last_action=last_action) for _ in range(2))
    b = batch()
    metrics = algo.learn(b)
    reference.critic_parameters.values.data.copy_(algo.critic_parameters.values.data)  # the agents' step comes after it
    logits = reference.agents.unroll(reference.inputs.sequence_inputs(b.obs, b.actions))
    gains, entropies = [], []
    for e in range(b.reward.shape[1]):
        for t in range(int(b.mask[:, e].sum())):
            qs = []
            for i in range(N):
                allowed = b.available_actions[t, e, i]
                p = logits[t, e, i][allowed].softmax(-1)
                qs.append(q_of(reference.critic.values, b.obs[t, e], i, torch.zeros(A).masked_scatter(allowed, p)))
                entropies.append(-(p * p.log()).sum())
            gains.append(reference.mixer(torch.stack(qs)[None], b.state[t, e][None]).mean())
    gain, entropy = torch.stack(gains).mean(), torch.stack(entropies).mean()
    loss = -gain - 0.5 * entropy / entropy.detach()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(reference.agents.parameters()))])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(algo.actor_parameters.gradient, expected, rtol=1e-3, atol=1e-5)
    assert float(metrics["policy_loss"]) == pytest.approx(-gain.item(), rel=1e-4, abs=1e-6)
    assert float(metrics["entropy"]) == pytest.approx(entropy.item(), rel=1e-4)


class RecordingExperience:
    """An experience that records the calls."""

    def __init__(self, replayed: EpisodeBatch, recent: EpisodeBatch) -> None:
        self.replayed, self.recent, self.calls = replayed, recent, []

    def sample(self, count: int) -> EpisodeBatch:
        self.calls.append(("sample", count))
        return self.replayed

    def latest(self, count: int) -> EpisodeBatch:
        self.calls.append(("latest", count))
        return self.recent


@pytest.mark.parametrize("name", ["qmix", "none"])
def test_an_update_is_a_step_of_the_critic_on_replay_and_then_one_of_critic_and_agents_on_the_latest(name):
    replayed, latest = batch(seed=1), batch(seed=2)
    algo, reference = learner(name), learner(name)
    experience = RecordingExperience(replayed, latest)
    metrics = algo.update(experience)
    assert experience.calls == [("sample", 64), ("latest", 32)] and not Riit.on_policy
    loss, _ = literal_critic_loss(name, reference, replayed, sample_actions(reference, replayed), 0.0)  # of one step
    assert float(metrics["replay_loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    agents = reference.actor_parameters.values.detach().clone()
    with torch.no_grad():
        policy = reference._policy(replayed)
    reference._learn_critic(replayed, policy, one_step=True)
    assert torch.equal(reference.actor_parameters.values, agents)
    second_metrics = reference.learn(latest)
    assert torch.equal(parameters(algo), parameters(reference)) and not torch.equal(
        algo.actor_parameters.values, agents
    )
    assert all(torch.equal(metrics[k], second_metrics[k]) for k in second_metrics)


def test_without_replay_the_critic_takes_no_step_on_replayed_episodes():
    algo, second, experience = learner(replay_episodes=0), learner(), RecordingExperience(batch(seed=1), batch())
    algo.update(experience)
    second.learn(batch())
    assert [kind for kind, _ in experience.calls] == ["latest"] and torch.equal(parameters(algo), parameters(second))


@pytest.mark.parametrize("shared", [True, False])
def test_the_values_of_all_actions_equal_those_of_each_action(shared):
    algo, b = learner(train={"share_parameters": shared}), batch()
    critic_inputs = algo.inputs.step_inputs(b.obs, None)
    all_qs = algo.critic.values.q_all(critic_inputs)
    assert all_qs.shape == b.available_actions.shape
    for a in range(A):
        one_hot_actions = torch.eye(A)[a].expand(*b.available_actions.shape)
        torch.testing.assert_close(all_qs[..., a], algo.critic.values.q(critic_inputs, one_hot_actions))


@pytest.mark.parametrize("name", ["none", "vdn", "qmix", "qatten", "tfcaf"])
def test_values_of_actions_not_taken_are_computed_only_if_a_mixer_needs_them(monkeypatch, name):
    calls = Counter()
    monkeypatch.setattr(ActionValues, "q_all", lambda self, inputs: calls.update(all=1))
    learner(name).learn(batch())
    assert not calls


def test_a_value_computed_without_gradients_can_be_learned_from_later():
    algo, b = learner(), batch()
    joint = CriticJointAction(
        algo.critic.values, algo.inputs.step_inputs(b.obs[:-1], None), b.available_actions[:-1], b.actions
    )
    with torch.no_grad():
        best_actions = joint.best_actions
        fixed = CriticJointAction(
            algo.critic.values, algo.inputs.step_inputs(b.obs[:-1], None), b.available_actions[:-1], b.actions
        )
    assert joint.all_qs.requires_grad and joint.qs.requires_grad and not fixed.all_qs.requires_grad
    torch.testing.assert_close(joint.qs, joint.all_qs.gather(-1, b.actions.unsqueeze(-1)).squeeze(-1))
    for t in range(b.steps):
        allowed = b.available_actions[t, 0]
        assert best_actions[t, 0].tolist() == best(joint.all_qs[t, 0], allowed)
    assert torch.equal(joint.one_hot(b.actions)[0, 0], one_hot(b.actions[0, 0]))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    first, second = learner(name), learner(name)
    metrics, second_metrics = first.learn(batch()), second.learn(otherwise_padded(batch()))
    torch.testing.assert_close(parameters(first), parameters(second), atol=1e-6, rtol=0)
    assert all(torch.allclose(metrics[k], second_metrics[k], atol=1e-5) for k in metrics)


@pytest.mark.parametrize("name", ["none", "vdn", "qmix", "qatten", "cw"])
def test_it_learns_which_actions_are_rewarded_from_a_policy_that_prefers_none(name):
    """One step: the reward is 1 if both agents take the last action, 0.4 if one does, and 0 otherwise."""
    algo = learner(name, {"learning_rate": 1e-2, "grad_norm_clip": 10.0}, evaluation="greedy")
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in algo.agents.members:
            network.fc_out.weight.zero_()
            network.fc_out.bias.zero_()
    obs, state = (x[:2, :1].repeat_interleave(32, 1) for x in batch()[:2])
    available = torch.ones(2, 32, N, A, dtype=torch.bool)
    available[..., 1] = False
    all_true = torch.ones(1, 32, dtype=torch.bool)
    for _ in range(120):
        actions, _ = algo.act(obs[0], available[0], algo.initial_memory(32), 0, g)
        assert not (actions == 1).any()
        reward = torch.tensor([0.0, 0.4, 1.0])[(actions == A - 1).sum(-1)][None]
        b = EpisodeBatch(obs, state, available, actions[None], reward, all_true, all_true)
        metrics = algo.learn(b)
        assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    assert reward.mean() > 0.8, reward.mean()
    greedy, _ = algo.act(obs[0], available[0], algo.initial_memory(32), None, g)
    assert (greedy == A - 1).all()


def test_a_team_without_a_choice_has_no_entropy_and_nothing_to_learn():
    algo, b = learner(), batch()
    available = torch.zeros_like(b.available_actions)
    available[..., 0] = True
    before = algo.actor_parameters.values.detach().clone()
    metrics = algo.learn(b._replace(available_actions=available, actions=torch.zeros_like(b.actions)))
    assert metrics["entropy"] == 0 and torch.equal(algo.actor_parameters.values, before)


def test_the_target_is_copied_periodically():
    algo = learner(target_period=2)
    before = algo.target.values.detach().clone()
    algo.learn(batch())
    assert torch.equal(algo.target.values, before)
    algo.learn(batch(seed=1))
    assert torch.equal(algo.target.values, algo.critic_parameters.values.detach())


@pytest.mark.parametrize("name", ["qmix", "ow"])
def test_a_restored_learner_continues_identically(name):
    first, second = (learner(name, target_period=2) for _ in range(2))
    first.update(RecordingExperience(batch(seed=1), batch(seed=2)))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for algo in (first, second):
        for seed in (3, 4):
            algo.update(RecordingExperience(batch(seed=seed), batch(seed=seed + 7)))
    assert torch.equal(parameters(first), parameters(second))


@pytest.mark.parametrize("name", ["qmix", "tfcaf"])
def test_a_saved_policy_restores_the_values_of_actions_and_the_credit(name):
    first, second, b = learner(name), learner(name), batch()
    first.learn(b)
    second.load_policy_state_dict(first.policy_state_dict())
    inputs = first.inputs.sequence_inputs(b.obs, b.actions)
    assert torch.equal(second.agents.unroll(inputs), first.agents.unroll(inputs))
    qs = second.action_qs(b.obs, b.actions)
    for t, e, i in ((0, 0, 0), (2, 0, 1), (0, 3, 1)):
        expected = q_of(first.critic.values, b.obs[t, e], i, torch.eye(A)[b.actions[t, e, i]])
        assert float(qs[t, e, i]) == pytest.approx(float(expected.detach()), abs=1e-5)
    torch.testing.assert_close(
        credit(second.mixer, qs[:, 0], b.state[:-1, 0]), credit(first.mixer, qs[:, 0], b.state[:-1, 0])
    )
    with pytest.raises((KeyError, RuntimeError)):
        second.load_policy_state_dict(
            {k: v for k, v in first.policy_state_dict().items() if not k.startswith("critic")}
        )


def test_parameters_are_counted_by_part():
    counts = learner("ow").parameter_counts()
    assert counts.keys() == {"agent", "critic", "mixer", "central"} and counts["central"] == counts["critic"]
    algo = learner("qmix", {"share_parameters": False}, critic_hidden=16)
    size = ENV.obs_dim + N + A
    assert algo.parameter_counts()["critic"] == N * (size * 16 + 16 + 16 * 16 + 16 + 16 + 1)
    total = algo.actor_parameters.values.numel() + algo.critic_parameters.values.numel()
    assert sum(algo.parameter_counts().values()) == total
