"""Properties of every actor-critic: acting, targets, learning, checkpoints."""

import copy

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded

from qllm_exp.algorithms import make_algorithm
from qllm_exp.algorithms.actor_critic import ActorCritic, ActorCriticConfig
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


def learner(name, train=None, **algorithm) -> ActorCritic:
    torch.manual_seed(0)
    config = config_class("algorithm", name)(**algorithm)
    settings = {"hidden": 8, "standardise_rewards": False} | (train or {})
    algo = make_algorithm(
        schema.RunConfig(algorithm=config, mixer=NoMixerConfig(), train=schema.TrainConfig(**settings)),
        ENV,
        Independent(),
    )
    with torch.no_grad():  # so that critic and target critic differ
        algo.target.values += 0.1 * torch.randn_like(algo.target.values)
    return algo


def parameters(algo: ActorCritic) -> torch.Tensor:
    return torch.cat([algo.actor_parameters.values, algo.critic_parameters.values, algo.target.values]).detach().clone()


@pytest.mark.parametrize("name", NAMES)
def test_training_draws_from_the_policy_and_evaluation_takes_the_most_probable_action_if_configured(name):
    algo = learner(name, evaluation="greedy")
    observation, g = ENV.reset(), torch.Generator().manual_seed(0)
    available = torch.zeros(3, ENV.n_agents, ENV.n_actions, dtype=torch.bool)
    available[..., [1, 4]] = True
    memory = algo.initial_memory(3)
    logits, _ = algo.agents.step(algo.inputs.step_inputs(observation.obs, None), memory[0])
    greedy, _ = algo.act(observation.obs, available, memory, None, g)
    assert torch.equal(greedy, logits[..., [1, 4]].argmax(-1) * 3 + 1)
    sampled = torch.stack([algo.act(observation.obs, available, memory, 0, g)[0] for _ in range(2000)])
    expected = algo.policy(logits, available, 0).probs[..., 1]
    assert set(sampled.unique().tolist()) == {1, 4} and ((sampled == 1).float().mean(0) - expected).abs().max() < 0.05
    repeated = [algo.act(observation.obs, available, memory, 0, torch.Generator().manual_seed(5))[0] for _ in range(2)]
    assert torch.equal(*repeated)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_draws_from_the_policy(name):
    algo, g = learner(name), torch.Generator().manual_seed(0)
    observation, memory = ENV.reset(), algo.initial_memory(3)
    logits, _ = algo.agents.step(algo.inputs.step_inputs(observation.obs, None), memory[0])
    sampled = torch.stack(
        [algo.act(observation.obs, observation.available_actions, memory, None, g)[0] for _ in range(1000)]
    )
    expected = torch.where(observation.available_actions, logits, -torch.inf).softmax(-1)  # coma: without epsilon
    shares = torch.nn.functional.one_hot(sampled, ENV.n_actions).float().mean(0)
    assert (shares - expected).abs().max() < 0.06


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("last_action", [False, True])
def test_the_policy_that_learns_is_the_policy_that_acted(name, last_action):
    """The ratio of probabilities in the first epoch is one."""
    algo, b = learner(name, last_action=last_action), batch()
    sequence_logits = algo.agents.unroll(algo.inputs.sequence_inputs(b.obs, b.actions))
    sequence_policy = MaskedCategorical(sequence_logits[:-1], b.available_actions[:-1])
    memory = algo.initial_memory(b.mask.shape[1])
    for t in range(b.steps):
        logits, hidden = algo.agents.step(algo.inputs.step_inputs(b.obs[t], memory[1]), memory[0])
        acted = MaskedCategorical(logits, b.available_actions[t]).log_prob(b.actions[t])
        torch.testing.assert_close(acted, sequence_policy.log_prob(b.actions)[t])
        memory = (hidden, algo.inputs.encode_last_action(b.actions[t], b.obs))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    first, second = learner(name), learner(name)
    metrics = first.learn(batch())
    second_metrics = second.learn(otherwise_padded(batch()))
    torch.testing.assert_close(parameters(first), parameters(second), atol=1e-6, rtol=0)
    assert metrics.keys() == second_metrics.keys()
    assert all(torch.allclose(metrics[name], second_metrics[name], atol=1e-5) for name in metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", ["gru", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
def test_it_learns_which_action_is_rewarded(name, network, shared):
    """One step: the reward is 1 if agent 0 takes action 2, and 0 otherwise."""
    train = {"network": network, "share_parameters": shared, "learning_rate": 1e-2}
    algo, g = learner(name, train, evaluation="greedy"), torch.Generator().manual_seed(0)
    obs, state = (x[:2, :1].repeat_interleave(32, 1) for x in batch()[:2])
    available = torch.ones(2, 32, ENV.n_agents, ENV.n_actions, dtype=torch.bool)
    available[..., 1] = False
    all_true = torch.ones(1, 32, dtype=torch.bool)
    before = parameters(algo)
    for _ in range(100):
        actions, _ = algo.act(obs[0], available[0], algo.initial_memory(32), 10**6, g)  # past any schedule
        reward = (actions[:, 0] == 2).float()[None]
        metrics = algo.learn(EpisodeBatch(obs, state, available, actions[None], reward, all_true, all_true))
        assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    assert reward.mean() > 0.9 and not torch.equal(before, parameters(algo))
    greedy, _ = algo.act(obs[0], available[0], algo.initial_memory(32), None, g)
    assert (greedy[:, 0] == 2).all()


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("shared", [True, False])
def test_parameters_are_counted(name, shared):
    algo = learner(name, {"share_parameters": shared})
    copies = 1 if shared else ENV.n_agents
    assert algo.parameter_counts() == {
        "agent": algo.actor_parameters.values.numel(),
        "critic": algo.critic_parameters.values.numel(),
    }
    networks = [network for network in (algo.agents, algo.critic) if isinstance(network, TeamNetwork)]
    assert {len(network.members) for network in networks} == {copies}


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_standardised_if_configured(name):
    first, second, b = learner(name, {"standardise_rewards": True}), learner(name), batch()
    for algo in (first, second):
        algo.observe(5 + 3 * b.reward, b.mask)
    moments = RunningMoments(torch.device("cpu"))
    moments.update(5 + 3 * b.reward, b.mask)
    first.learn(b)
    second.learn(b._replace(reward=moments.standardise(b.reward)))
    assert torch.equal(parameters(first), parameters(second))


@pytest.mark.parametrize("name", NAMES)
def test_the_target_critic_follows_softly(name):
    options = (
        {"target_update": "soft"} if "target_update" in config_class("algorithm", name).__dataclass_fields__ else {}
    )
    algo = learner(name, target_tau=0.25, **options)
    before = algo.target.values.detach().clone()
    algo.learn(batch())
    expected = before + 0.25 * (algo.critic_parameters.values.detach() - before)
    torch.testing.assert_close(algo.target.values.detach(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_learner_continues_identically(name):
    first, second = learner(name), learner(name, train={})
    for seed in range(3):
        first.learn(batch(seed=seed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        first.learn(batch(seed=seed))
        second.learn(batch(seed=seed))
    assert torch.equal(parameters(first), parameters(second))
    acting = learner(name)
    acting.load_policy_state_dict(first.policy_state_dict())
    assert torch.equal(acting.actor_parameters.values, first.actor_parameters.values)


@pytest.mark.parametrize("name", NAMES)
def test_a_periodic_target_is_copied_every_period_also_after_a_resume(name):
    period = 3

    def periodic_learner() -> ActorCritic:
        return learner(name, target_update="periodic", target_period=period)

    def targets() -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = [(algo.target, algo.critic_parameters)]
        pairs += [(algo.target_actor, algo.actor_parameters)] if name == "maddpg" else []
        return [(target.values.detach().clone(), online.values.detach().clone()) for target, online in pairs]

    algo = periodic_learner()
    for update in range(1, 8):
        before = targets()
        algo.learn(batch(seed=update))
        for (target, online), (old, _) in zip(targets(), before, strict=True):
            assert torch.equal(target, online if update % period == 0 else old)
        resumed = periodic_learner()
        resumed.load_state_dict(algo.state_dict())
        algo = resumed
