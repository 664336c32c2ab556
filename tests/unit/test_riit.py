"""RIIT against its public code's formulas, the slow way; with every mixer; what it learns from."""

import copy
from collections import Counter

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded
from test_mixers_learning import CONFIGS, best, one_hot, picked, value_loss

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

N, A = ENV.n_agents, ENV.n_actions
WEIGHTED = {name: CONFIGS[name] for name in ("cw", "ow")}
MIXERS = WEIGHTED | {
    "none": NoMixerConfig(),
    "vdn": VdnConfig(),
    "qmix": QmixConfig(embed=4, hypernet=5),
    "qatten": QattenConfig(heads=2, hidden=5, embed=4),
}
NAMES = [*MIXERS, "tfcaf"]


def mixer_of(name):
    if name == "tfcaf":
        return Tfcaf(load(BUNDLED / "lbf" / f"{ENV.task.task}.json").program, affine=True, enforce=True)
    return make_mixer(MIXERS[name], ENV)


def learner(name="qmix", train=None, **algorithm) -> Riit:
    torch.manual_seed(0)
    settings = {"hidden": 8, "grad_norm_clip": 1e9, "standardise_rewards": False} | (train or {})
    made = Riit(RiitConfig(**({"critic_hidden": 8} | algorithm)), schema.TrainConfig(**settings), ENV, mixer_of(name))
    with torch.no_grad():  # so that critic and target differ, and the policy is not uniform
        made.target.values += 0.3 * torch.randn_like(made.target.values)
        made.actor_parameters.values *= 3
    return made


def parameters(made: Riit) -> torch.Tensor:
    return torch.cat([made.actor_parameters.values, made.critic_parameters.values, made.target.values]).detach().clone()


def q_of(values: ActionValues, obs, i, action) -> torch.Tensor:
    """Q_i of one agent with plain layers: what it sees, who it is, and what it does, [A]."""
    one = values.members[i % len(values.members)]
    x = torch.cat([obs[i], torch.eye(N)[i], action])
    return one.fc_out(torch.relu(one.fc_hidden(torch.relu(one.fc_in(x)))))[0]


def table(values: ActionValues | None, obs) -> torch.Tensor | None:
    """Q [n, A] of every agent and action."""
    if values is None:
        return None
    return torch.stack([torch.stack([q_of(values, obs, i, torch.eye(A)[a]) for a in range(A)]) for i in range(N)])


def judged(critic, obs, actions, state) -> torch.Tensor:
    """What targets are made of."""
    if critic.central is not None:
        return critic.mixer.unrestricted(picked(table(critic.central, obs), actions), state)
    return critic.mixer(picked(table(critic.values, obs), actions)[None], state[None])[0]


def literal_critic_loss(name, made: Riit, b: EpisodeBatch, drawn, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the mean squared error of Q_tot, one step at a time."""
    losses, errors = [], []
    for e in range(b.reward.shape[1]):
        length = int(b.mask[:, e].sum())
        actions = [b.actions[t, e] for t in range(length)] + [drawn[length, e]]
        y = torch.zeros(())
        for t in reversed(range(length)):
            with torch.no_grad():
                beyond = judged(made.target_critic, b.obs[t + 1, e], actions[t + 1], b.state[t + 1, e])
                if t == length - 1:
                    y = b.reward[t, e] + made.train.gamma * (0 if b.terminated[t, e] else 1) * beyond
                else:
                    y = b.reward[t, e] + made.train.gamma * ((1 - lam) * beyond + lam * y)
            obs, allowed, state = b.obs[t, e], b.available_actions[t, e], b.state[t, e]
            online, central = table(made.critic.values, obs), table(made.critic.central, obs)
            if name in WEIGHTED:
                losses.append(value_loss(name, made.mixer, online, central, allowed, actions[t], state, y))
            else:
                losses.append(((made.mixer(picked(online, actions[t])[None], state[None]) - y) ** 2).mean())
            errors.append(losses[-1] if name not in WEIGHTED else None)
    return torch.stack(losses).mean(), None if errors[0] is None else torch.stack(errors).mean().detach()


def drawn_by(made: Riit, b: EpisodeBatch) -> torch.Tensor:
    policy = MaskedCategorical(made.agents.unroll(made.inputs.along(b.obs, b.actions)).detach(), b.available_actions)
    return policy.sample(torch.Generator().set_state(made.generator.get_state()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_of_the_critic_is_that_of_its_loss(name, shared):
    made, literal = (learner(name, {"share_parameters": shared}) for _ in range(2))
    b = batch()
    loss, error = literal_critic_loss(name, literal, b, drawn_by(literal, b), 0.6)
    figures = made.learn(b)
    literal.critic_parameters.gradient.zero_()
    loss.backward()
    assert literal.critic_parameters.gradient.abs().max() > 0.01
    torch.testing.assert_close(
        made.critic_parameters.gradient, literal.critic_parameters.gradient, rtol=1e-3, atol=1e-5
    )
    if error is not None:
        assert float(figures["value_loss"]) == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shared", "network", "last_action"), [(True, "gru", False), (False, "mlp", True)])
def test_the_agents_follow_the_critic_at_their_probabilities(name, shared, network, last_action):
    """The critic gets what the policy says in the place of a one-hot action; only what is available has probability."""
    train = {"share_parameters": shared, "network": network}
    made, literal = (learner(name, train, entropy=0.5, last_action=last_action) for _ in range(2))
    b = batch()
    figures = made.learn(b)
    literal.critic_parameters.values.data.copy_(made.critic_parameters.values.data)  # the agents' step comes after it
    logits = literal.agents.unroll(literal.inputs.along(b.obs, b.actions))
    gains, entropies = [], []
    for e in range(b.reward.shape[1]):
        for t in range(int(b.mask[:, e].sum())):
            qs = []
            for i in range(N):
                allowed = b.available_actions[t, e, i]
                p = logits[t, e, i][allowed].softmax(-1)
                qs.append(q_of(literal.critic.values, b.obs[t, e], i, torch.zeros(A).masked_scatter(allowed, p)))
                entropies.append(-(p * p.log()).sum())
            gains.append(literal.mixer(torch.stack(qs)[None], b.state[t, e][None]).mean())
    gain, entropy = torch.stack(gains).mean(), torch.stack(entropies).mean()
    loss = -gain - 0.5 * entropy / entropy.detach()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(literal.agents.parameters()))])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(made.actor_parameters.gradient, expected, rtol=1e-3, atol=1e-5)
    assert float(figures["policy_loss"]) == pytest.approx(-gain.item(), rel=1e-4, abs=1e-6)
    assert float(figures["entropy"]) == pytest.approx(entropy.item(), rel=1e-4)


class Told:
    """An experience that says what was asked of it."""

    def __init__(self, kept: EpisodeBatch, newest: EpisodeBatch) -> None:
        self.kept, self.newest, self.asked = kept, newest, []

    def sample(self, count: int) -> EpisodeBatch:
        self.asked.append(("sample", count))
        return self.kept

    def latest(self, count: int) -> EpisodeBatch:
        self.asked.append(("latest", count))
        return self.newest


@pytest.mark.parametrize("name", ["qmix", "none"])
def test_an_update_is_a_step_of_the_critic_on_replay_and_then_one_of_critic_and_agents_on_the_latest(name):
    kept, newest = batch(seed=1), batch(seed=2)
    made, literal = learner(name), learner(name)
    told = Told(kept, newest)
    figures = made.update(told)
    assert told.asked == [("sample", 64), ("latest", 32)] and not Riit.on_policy
    loss, _ = literal_critic_loss(name, literal, kept, drawn_by(literal, kept), 0.0)  # of one step
    assert float(figures["replay_loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    agents = literal.actor_parameters.values.detach().clone()
    with torch.no_grad():
        policy = literal._policy(kept)
    literal._learn_values(kept, policy, one_step=True)
    assert torch.equal(literal.actor_parameters.values, agents)
    others = literal.learn(newest)
    assert torch.equal(parameters(made), parameters(literal)) and not torch.equal(made.actor_parameters.values, agents)
    assert all(torch.equal(figures[k], others[k]) for k in others)


def test_without_replay_there_is_no_step_on_it():
    made, other, told = learner(replay_episodes=0), learner(), Told(batch(seed=1), batch())
    made.update(told)
    other.learn(batch())
    assert [what for what, _ in told.asked] == ["latest"] and torch.equal(parameters(made), parameters(other))


@pytest.mark.parametrize("shared", [True, False])
def test_all_actions_at_once_are_each_of_them(shared):
    made, b = learner(train={"share_parameters": shared}), batch()
    seen = made.inputs.at(b.obs, None)
    every = made.critic.values.of_all(seen)
    assert every.shape == b.available_actions.shape
    for a in range(A):
        same = torch.eye(A)[a].expand(*b.available_actions.shape)
        torch.testing.assert_close(every[..., a], made.critic.values.of(seen, same))


@pytest.mark.parametrize("name", ["none", "vdn", "qmix", "qatten", "tfcaf"])
def test_actions_that_were_not_taken_are_judged_for_mixers_alone_that_ask(monkeypatch, name):
    asked = Counter()
    monkeypatch.setattr(ActionValues, "of_all", lambda self, inputs: asked.update(all=1))
    learner(name).learn(batch())
    assert not asked


def test_what_a_mixer_asks_for_without_gradients_it_can_learn_from_later():
    made, b = learner(), batch()
    joint = CriticJointAction(made.critic.values, made.inputs.at(b.obs[:-1], None), b.available_actions[:-1], b.actions)
    with torch.no_grad():
        known = joint.best_actions
        fixed = CriticJointAction(
            made.critic.values, made.inputs.at(b.obs[:-1], None), b.available_actions[:-1], b.actions
        )
    assert joint.all_qs.requires_grad and joint.qs.requires_grad and not fixed.all_qs.requires_grad
    torch.testing.assert_close(joint.qs, joint.all_qs.gather(-1, b.actions.unsqueeze(-1)).squeeze(-1))
    for t in range(b.steps):
        allowed = b.available_actions[t, 0]
        assert known[t, 0].tolist() == best(joint.all_qs[t, 0], allowed)
    assert torch.equal(joint.one_hot(b.actions)[0, 0], one_hot(b.actions[0, 0]))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    one, other = learner(name), learner(name)
    figures, others = one.learn(batch()), other.learn(otherwise_padded(batch()))
    torch.testing.assert_close(parameters(one), parameters(other), atol=1e-6, rtol=0)
    assert all(torch.allclose(figures[k], others[k], atol=1e-5) for k in figures)


@pytest.mark.parametrize("name", ["none", "vdn", "qmix", "qatten", "cw"])
def test_it_learns_which_actions_are_rewarded_from_a_policy_that_prefers_none(name):
    """One step: the last action of both agents gives 1, that of one of them 0.4; all else, and what is taken often, nothing."""
    made = learner(name, {"learning_rate": 1e-2, "grad_norm_clip": 10.0}, evaluation="greedy")
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in made.agents.members:
            one.fc_out.weight.zero_()
            one.fc_out.bias.zero_()
    obs, state = (x[:2, :1].repeat_interleave(32, 1) for x in batch()[:2])
    available = torch.ones(2, 32, N, A, dtype=torch.bool)
    available[..., 1] = False
    yes = torch.ones(1, 32, dtype=torch.bool)
    for _ in range(120):
        actions, _ = made.act(obs[0], available[0], made.initial_memory(32), 0, g)
        assert not (actions == 1).any()
        reward = torch.tensor([0.0, 0.4, 1.0])[(actions == A - 1).sum(-1)][None]
        b = EpisodeBatch(obs, state, available, actions[None], reward, yes, yes)
        figures = made.learn(b)
        assert all(value.isfinite() and not value.requires_grad for value in figures.values())
    assert reward.mean() > 0.8, reward.mean()
    greedy, _ = made.act(obs[0], available[0], made.initial_memory(32), None, g)
    assert (greedy == A - 1).all()


def test_a_team_without_a_choice_has_no_entropy_and_nothing_to_learn():
    made, b = learner(), batch()
    available = torch.zeros_like(b.available_actions)
    available[..., 0] = True
    before = made.actor_parameters.values.detach().clone()
    figures = made.learn(b._replace(available_actions=available, actions=torch.zeros_like(b.actions)))
    assert figures["entropy"] == 0 and torch.equal(made.actor_parameters.values, before)


def test_the_target_is_a_copy_every_so_many_updates():
    made = learner(target_period=2)
    before = made.target.values.detach().clone()
    made.learn(batch())
    assert torch.equal(made.target.values, before)
    made.learn(batch(seed=1))
    assert torch.equal(made.target.values, made.critic_parameters.values.detach())


@pytest.mark.parametrize("name", ["qmix", "ow"])
def test_a_reloaded_learner_goes_on_as_the_saved_one(name):
    one, other = (learner(name, target_period=2) for _ in range(2))
    one.update(Told(batch(seed=1), batch(seed=2)))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for made in (one, other):
        for seed in (3, 4):
            made.update(Told(batch(seed=seed), batch(seed=seed + 7)))
    assert torch.equal(parameters(one), parameters(other))


@pytest.mark.parametrize("name", ["qmix", "tfcaf"])
def test_a_kept_policy_says_what_actions_were_worth_and_whose_credit_it_is(name):
    one, other, b = learner(name), learner(name), batch()
    one.learn(b)
    other.load_policy_state_dict(one.policy_state_dict())
    assert torch.equal(
        other.agents.unroll(one.inputs.along(b.obs, b.actions)), one.agents.unroll(one.inputs.along(b.obs, b.actions))
    )
    qs = other.action_qs(b.obs, b.actions)
    for t, e, i in ((0, 0, 0), (2, 0, 1), (0, 3, 1)):
        expected = q_of(one.critic.values, b.obs[t, e], i, torch.eye(A)[b.actions[t, e, i]])
        assert float(qs[t, e, i]) == pytest.approx(float(expected.detach()), abs=1e-5)
    torch.testing.assert_close(
        credit(other.mixer, qs[:, 0], b.state[:-1, 0]), credit(one.mixer, qs[:, 0], b.state[:-1, 0])
    )
    with pytest.raises((KeyError, RuntimeError)):
        other.load_policy_state_dict({k: v for k, v in one.policy_state_dict().items() if not k.startswith("critic")})


def test_parameters_are_counted_by_part():
    counts = learner("ow").parameter_counts()
    assert counts.keys() == {"agent", "critic", "mixer", "central"} and counts["central"] == counts["critic"]
    made = learner("qmix", {"share_parameters": False}, critic_hidden=16)
    size = ENV.obs_dim + N + A
    assert made.parameter_counts()["critic"] == N * (size * 16 + 16 + 16 * 16 + 16 + 16 + 1)
    total = made.actor_parameters.values.numel() + made.critic_parameters.values.numel()
    assert sum(made.parameter_counts().values()) == total
