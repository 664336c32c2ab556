"""What holds for every algorithm of agents and a critic: how it acts, what it learns from, and that it learns."""

import copy

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded

from qllm_exp.algorithms import make_algorithm
from qllm_exp.algorithms.actor_critic import ActorCriticConfig, AgentsAndCritic
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.config import registry, schema
from qllm_exp.config.load import config_class
from qllm_exp.mixers.none import Config as NoMixerConfig
from qllm_exp.mixers.none import Independent
from qllm_exp.networks.agents import TeamNetwork

NAMES = [
    name for name in registry.choices("algorithm") if issubclass(config_class("algorithm", name), ActorCriticConfig)
]
ON_POLICY = [name for name in NAMES if name not in ("riit", "maddpg")]


def learner(name, train=None, **algorithm) -> AgentsAndCritic:
    torch.manual_seed(0)
    config = config_class("algorithm", name)(**algorithm)
    settings = {"hidden": 8, "standardise_rewards": False} | (train or {})
    made = make_algorithm(
        schema.RunConfig(algorithm=config, mixer=NoMixerConfig(), train=schema.TrainConfig(**settings)),
        ENV,
        Independent(),
    )
    with torch.no_grad():  # so that critic and target differ
        made.target.values += 0.1 * torch.randn_like(made.target.values)
    return made


def parameters(made: AgentsAndCritic) -> torch.Tensor:
    return torch.cat([made.actor_parameters.values, made.critic_parameters.values, made.target.values]).detach().clone()


@pytest.mark.parametrize("name", NAMES)
def test_training_draws_from_the_policy_and_evaluation_takes_the_most_probable_action_where_it_is_asked_for(name):
    made = learner(name, evaluation="greedy")
    seen, g = ENV.reset(), torch.Generator().manual_seed(0)
    available = torch.zeros(3, ENV.n_agents, ENV.n_actions, dtype=torch.bool)
    available[..., [1, 4]] = True
    memory = made.initial_memory(3)
    logits, _ = made.agents.step(made.inputs.at(seen.obs, None), memory[0])
    greedy, _ = made.act(seen.obs, available, memory, None, g)
    assert torch.equal(greedy, logits[..., [1, 4]].argmax(-1) * 3 + 1)
    drawn = torch.stack([made.act(seen.obs, available, memory, 0, g)[0] for _ in range(2000)])
    expected = made.policy(logits, available, 0).probs[..., 1]
    assert set(drawn.unique().tolist()) == {1, 4} and ((drawn == 1).float().mean(0) - expected).abs().max() < 0.05
    again = [made.act(seen.obs, available, memory, 0, torch.Generator().manual_seed(5))[0] for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_draws_from_the_policy(name):
    made, g = learner(name), torch.Generator().manual_seed(0)
    seen, memory = ENV.reset(), made.initial_memory(3)
    logits, _ = made.agents.step(made.inputs.at(seen.obs, None), memory[0])
    drawn = torch.stack([made.act(seen.obs, seen.available_actions, memory, None, g)[0] for _ in range(1000)])
    expected = torch.where(seen.available_actions, logits, -torch.inf).softmax(-1)  # coma: without epsilon
    shares = torch.nn.functional.one_hot(drawn, ENV.n_actions).float().mean(0)
    assert (shares - expected).abs().max() < 0.06


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("last_action", [False, True])
def test_the_policy_that_learns_is_the_policy_that_acted(name, last_action):
    """The ratio of probabilities in the first epoch is one."""
    made, b = learner(name, last_action=last_action), batch()
    along = MaskedCategorical(made.agents.unroll(made.inputs.along(b.obs, b.actions))[:-1], b.available_actions[:-1])
    memory = made.initial_memory(b.mask.shape[1])
    for t in range(b.steps):
        logits, hidden = made.agents.step(made.inputs.at(b.obs[t], memory[1]), memory[0])
        acted = MaskedCategorical(logits, b.available_actions[t]).log_prob(b.actions[t])
        torch.testing.assert_close(acted, along.log_prob(b.actions)[t])
        memory = (hidden, made.inputs.after(b.actions[t], b.obs))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    one, other = learner(name), learner(name)
    figures = one.learn(batch())
    others = other.learn(otherwise_padded(batch()))
    torch.testing.assert_close(parameters(one), parameters(other), atol=1e-6, rtol=0)
    assert figures.keys() == others.keys() and all(torch.allclose(figures[k], others[k], atol=1e-5) for k in figures)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", ["gru", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
def test_it_learns_which_action_is_rewarded(name, network, shared):
    """One step, every agent alike: action 2 of agent 0 gives 1, all else nothing."""
    train = {"network": network, "share_parameters": shared, "learning_rate": 1e-2}
    made, g = learner(name, train, evaluation="greedy"), torch.Generator().manual_seed(0)
    obs, state = (x[:2, :1].repeat_interleave(32, 1) for x in batch()[:2])
    available = torch.ones(2, 32, ENV.n_agents, ENV.n_actions, dtype=torch.bool)
    available[..., 1] = False
    yes = torch.ones(1, 32, dtype=torch.bool)
    before = parameters(made)
    for _ in range(100):
        actions, _ = made.act(obs[0], available[0], made.initial_memory(32), 10**6, g)  # past any schedule
        reward = (actions[:, 0] == 2).float()[None]
        figures = made.learn(EpisodeBatch(obs, state, available, actions[None], reward, yes, yes))
        assert all(value.isfinite() and not value.requires_grad for value in figures.values())
    assert reward.mean() > 0.9 and not torch.equal(before, parameters(made))
    greedy, _ = made.act(obs[0], available[0], made.initial_memory(32), None, g)
    assert (greedy[:, 0] == 2).all()


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("shared", [True, False])
def test_parameters_are_counted(name, shared):
    made = learner(name, {"share_parameters": shared})
    copies = 1 if shared else ENV.n_agents
    assert made.parameter_counts() == {
        "agent": made.actor_parameters.values.numel(),
        "critic": made.critic_parameters.values.numel(),
    }
    networks = [part for part in (made.agents, made.critic) if isinstance(part, TeamNetwork)]
    assert {len(one.members) for one in networks} == {copies}


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_standardised_where_it_is_asked_for(name):
    one, other, b = learner(name, {"standardise_rewards": True}), learner(name), batch()
    for made in (one, other):
        made.observe(5 + 3 * b.reward, b.mask)
    moments = RunningMoments(torch.device("cpu"))
    moments.update(5 + 3 * b.reward, b.mask)
    one.learn(b)
    other.learn(b._replace(reward=moments.standardise(b.reward)))
    assert torch.equal(parameters(one), parameters(other))


@pytest.mark.parametrize("name", NAMES)
def test_the_target_critic_follows_softly(name):
    asked = {"target_update": "soft"} if "target_update" in config_class("algorithm", name).__dataclass_fields__ else {}
    made = learner(name, target_tau=0.25, **asked)
    before = made.target.values.detach().clone()
    made.learn(batch())
    after = before + 0.25 * (made.critic_parameters.values.detach() - before)
    torch.testing.assert_close(made.target.values.detach(), after)


@pytest.mark.parametrize("name", NAMES)
def test_a_reloaded_learner_goes_on_as_the_saved_one(name):
    one, other = learner(name), learner(name, train={})
    for seed in range(3):
        one.learn(batch(seed=seed))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for seed in range(3, 6):
        one.learn(batch(seed=seed))
        other.learn(batch(seed=seed))
    assert torch.equal(parameters(one), parameters(other))
    acting = learner(name)
    acting.load_policy_state_dict(one.policy_state_dict())
    assert torch.equal(acting.actor_parameters.values, one.actor_parameters.values)


@pytest.mark.parametrize("name", NAMES)
def test_a_periodic_target_is_a_copy_every_so_many_updates_also_after_a_reload(name):
    period = 3

    def fresh() -> AgentsAndCritic:
        return learner(name, target_update="periodic", target_period=period)

    def targets() -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = [(made.target, made.critic_parameters)]
        pairs += [(made.target_actor, made.actor_parameters)] if name == "maddpg" else []
        return [(target.values.detach().clone(), online.values.detach().clone()) for target, online in pairs]

    made = fresh()
    for update in range(1, 8):
        before = targets()
        made.learn(batch(seed=update))
        for (target, online), (old, _) in zip(targets(), before, strict=True):
            assert torch.equal(target, online if update % period == 0 else old)
        other = fresh()
        other.load_state_dict(made.state_dict())
        made = other
