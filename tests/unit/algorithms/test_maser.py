"""MASER against its definition, one step and one agent at a time; what trains what; and what is left of it with all weights 0."""

import copy
import itertools
import math

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded

from qllm_exp.algorithms import check_combination, make_algorithm
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.maser import Config as MaserConfig
from qllm_exp.algorithms.maser import Maser, action_distance, kl_from_uniform, subgoals, tail_mean
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.config import schema
from qllm_exp.config.load import load_run
from qllm_exp.credit.stored_function import BUNDLED
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.none import Config as NoMixerConfig
from qllm_exp.mixers.qatten import Config as QattenConfig
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.qplex import Config as QplexConfig
from qllm_exp.mixers.qtran import Config as QtranConfig
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.mixers.vdn import Config as VdnConfig
from qllm_exp.mixers.wqmix import Config as WqmixConfig
from tests.unit.config.test_load import composed

N, A = ENV.n_agents, ENV.n_actions
MIXERS = {
    "vdn": VdnConfig(),
    "none": NoMixerConfig(),
    "qmix": QmixConfig(embed=4, hypernet=5),
    "qatten": QattenConfig(heads=2, hidden=4, embed=4),
    "qplex": QplexConfig(kernels=2, hypernet=5, adv_hypernet=6),
    "qtran": QtranConfig(embed=6),
    "wqmix": WqmixConfig(embed=4, hypernet=5, unrestricted=6),
    "tfcaf": TfcafConfig(file=str(BUNDLED / "lbf" / f"{ENV.task.task}.json")),
}
NOTHING = {"intrinsic": 0.0, "individual": 0.0, "exploration": 0.0, "distance": 0.0}


def make_learner(algorithm: schema.AlgorithmConfig, mixer="qmix", **train) -> QLearning:
    torch.manual_seed(0)
    settings = {"hidden": 8, "standardise_rewards": False, "grad_norm_clip": 1e9} | train
    run = schema.RunConfig(algorithm=algorithm, mixer=MIXERS[mixer], train=schema.TrainConfig(**settings))
    algo = make_algorithm(run, ENV, make_mixer(run.mixer, ENV))
    with torch.no_grad():  # so that online and target networks differ, and their best actions too
        g = torch.Generator().manual_seed(1)
        algo.target.values += 0.3 * torch.randn(algo.target.values.shape, generator=g)
    return algo


def learner(mixer="qmix", train=None, **algorithm) -> Maser:
    algo = make_learner(MaserConfig(**({"targets": "n_step", "phi_hidden": 7} | algorithm)), mixer, **(train or {}))
    assert isinstance(algo, Maser)
    return algo


def all_parameters(algo: QLearning) -> torch.Tensor:
    return torch.cat([algo.online.values.detach(), algo.target.values]).clone()


@torch.no_grad()
def team_value(algo: Maser, qs: list[float], state: torch.Tensor, actions: list[int]) -> float:
    """Q_tot of the target mixer, of actions with these individual Qs."""
    mixer = algo.target_mixer
    if mixer.per_agent:
        return sum(qs)
    if algo.mixer.__class__.__name__ == "Qtran":
        one_hot = [1.0 if actions[i] == a else 0.0 for i in range(N) for a in range(A)]
        return float(mixer.joint(torch.cat([state, torch.tensor(one_hot)]))[0])
    return float(mixer(torch.tensor(qs), state))


def goals_by_hand(algo: Maser, b: EpisodeBatch, online, target) -> list[list[int]]:
    """The step of the subgoal of each agent in each episode; online, target: Qs [T + 1, B, n, A]."""
    goals = []
    for e in range(b.mask.shape[1]):
        score: list[list[float]] = [[] for _ in range(N)]
        for t in range(int(b.mask[:, e].sum())):
            selecting_qs = online if algo.config.double_q else target
            allowed = [[a for a in range(A) if b.available_actions[t, e, i, a]] for i in range(N)]
            best = [max(allowed[i], key=lambda a, i=i: float(selecting_qs[t, e, i, a])) for i in range(N)]
            qs = [float(target[t, e, i, best[i]]) for i in range(N)]
            q_tot = team_value(algo, qs, b.state[t, e], best)
            for i in range(N):
                score[i].append(algo.config.alpha * qs[i] + (1 - algo.config.alpha) * q_tot / N)
        goals.append([steps.index(max(steps)) for steps in score])
    return goals


def test_the_subgoal_has_the_highest_score_and_is_never_in_padding():
    score = torch.zeros(4, 3, 2)
    score[:, 0] = torch.tensor([[1.0, 5.0], [3.0, 2.0], [2.0, 4.0], [0.0, 1.0]])
    score[:, 1] = torch.tensor([[-4.0, -1.0], [-3.0, -2.0], [99.0, 99.0], [99.0, 99.0]])
    score[:, 2] = torch.tensor([[-9.0, -9.0], [99.0, 0.0], [99.0, 0.0], [99.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, False, False]])
    assert subgoals(score, mask).tolist() == [[1, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("mixer", ["vdn", "none", "qmix", "qtran", "wqmix"])
@pytest.mark.parametrize(("alpha", "double_q"), [(0.0, True), (0.5, True), (0.5, False), (1.0, True)])
def test_the_score_of_a_subgoal_combines_the_individual_q_and_a_share_of_q_tot(mixer, alpha, double_q):
    algo = learner(mixer, alpha=alpha, double_q=double_q)
    goals = []
    for seed in range(3):
        b = batch(seed=seed)
        observations = b.packed_observations()
        inputs = observations.pack(algo.inputs.sequence_inputs(b.obs, b.actions))
        values = algo.q_values(b, inputs, observations)
        batch_goals = subgoals(algo.subgoal_score(b, values), b.mask).tolist()
        assert batch_goals == goals_by_hand(algo, b, values.online.detach(), values.target)
        goals += batch_goals
    assert any(step > 0 for goal in goals for step in goal)
    assert alpha == 0 or any(
        len(set(goal)) > 1 for goal in goals
    )  # without the individual Q all agents have the same subgoal


def loss_by_hand(algo: Maser, b: EpisodeBatch) -> dict[str, torch.Tensor]:
    """All losses but that of Q_tot, differentiable; the rewards of the team r' are under 'reward', by episode and step."""
    c, gamma = algo.config, algo.train.gamma
    inputs = algo.inputs.sequence_inputs(b.obs, b.actions)
    online, target = algo.agents.unroll(inputs), algo.target_agents.unroll(inputs).detach()
    goals = goals_by_hand(algo, b, online.detach(), target)
    individual, exploration, distance, intrinsic, rewards = [], [], [], [], {}
    for e in range(b.mask.shape[1]):
        length = int(b.mask[:, e].sum())
        rho = [[0.0] * N for _ in range(length)]
        for i in range(N):
            g, tail = goals[e][i], []
            for t in range(length):
                here, there = algo.phi(b.obs[t, e, i]), algo.phi(b.obs[g, e, i])
                away = (here - there).square().sum()
                away = away.sqrt() if t != g else away  # a root has no slope at 0
                u, v = (
                    [float(target[k, e, i, a]) * float(b.available_actions[k, e, i, a]) for a in range(A)]
                    for k in (t, g)
                )
                cosine = sum(x * y for x, y in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))
                distance.append((away - (1 - cosine)) ** 2)
                rho[t][i] = -float(away.detach())
                if t >= g:
                    qs = torch.stack([online[t, e, i, a] for a in range(A) if b.available_actions[t, e, i, a]])
                    p = qs.softmax(0)
                    tail.append((p * (p * len(qs)).log()).sum())
            exploration.append(torch.stack(tail).mean())
        next_qs = torch.zeros(length, N)
        for t in range(length):
            selecting_qs = online.detach() if c.double_q else target
            for i in range(N):
                allowed = [a for a in range(A) if b.available_actions[t + 1, e, i, a]]
                next_qs[t, i] = target[
                    t + 1, e, i, max(allowed, key=lambda a, i=i: float(selecting_qs[t + 1, e, i, a]))
                ]
            rewards[e, t] = float(b.reward[t, e]) + c.intrinsic * sum(rho[t]) / N
            intrinsic += rho[t]
        y = torch.zeros(length, N)
        for t in reversed(range(length)):
            share = next_qs[t].exp() / next_qs[t].exp().sum()
            reward = share * rewards[e, t] + c.intrinsic * torch.tensor(rho[t])
            bootstrap = next_qs[t]
            if t + 1 < length and c.targets == "td_lambda":
                bootstrap = (1 - c.td_lambda) * next_qs[t] + c.td_lambda * y[t + 1]
            y[t] = reward + gamma * (0 if b.terminated[t, e] else bootstrap)
            chosen = torch.stack([online[t, e, i, int(b.actions[t, e, i])] for i in range(N)])
            individual.append(((chosen - y[t]) ** 2).sum())
    losses = {"individual_loss": individual, "exploration_loss": exploration, "distance_loss": distance}
    means = {name: torch.stack(values).mean() for name, values in losses.items()}
    reward = torch.zeros_like(b.reward)
    for (e, t), value in rewards.items():
        reward[t, e] = value
    return means | {"intrinsic_reward": torch.tensor(intrinsic).mean(), "reward": reward}


@pytest.mark.parametrize(
    ("mixer", "targets", "double_q"),
    [("qmix", "n_step", True), ("qmix", "td_lambda", False), ("none", "n_step", False), ("wqmix", "td_lambda", True)],
)
def test_an_update_is_its_definition(mixer, targets, double_q):
    weights = {"intrinsic": 0.7, "individual": 0.5, "exploration": 0.3, "distance": 0.2}
    options = {"targets": targets, "td_lambda": 0.6, "double_q": double_q, **weights}
    algo, b = learner(mixer, **options), batch()
    reference = loss_by_hand(algo, b)
    reward = reference.pop("reward")
    # the loss of Q_tot is Q-learning's (test_q_learning.py), with the rewards of the team in the place of those of the episodes
    q_learning = make_learner(QLearningConfig(targets=targets, td_lambda=0.6, double_q=double_q), mixer)
    expected_td = q_learning.learn(b._replace(reward=reward))
    agents = list(algo.agents.parameters())
    auxiliary = 0.5 * reference["individual_loss"] + 0.3 * reference["exploration_loss"]
    agent_gradient = torch.cat([g.flatten() for g in torch.autograd.grad(auxiliary, agents)])
    phi_gradients = torch.autograd.grad(0.2 * reference["distance_loss"], list(algo.phi.parameters()))
    metrics = algo.learn(b)
    assert float(metrics["loss"]) == pytest.approx(float(expected_td["loss"]), rel=1e-4)
    for name, value in reference.items():
        assert float(metrics[name]) == pytest.approx(float(value.detach()), rel=1e-4), name
    expected = q_learning.online.gradient.clone()
    expected[: len(agent_gradient)] += agent_gradient
    assert agent_gradient.abs().max() > 1e-3
    torch.testing.assert_close(algo.online.gradient, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        algo.phi_parameters.gradient, torch.cat([g.flatten() for g in phi_gradients]), rtol=1e-3, atol=1e-5
    )


def test_unavailable_actions_do_not_affect_distance_and_exploration():
    g = torch.Generator().manual_seed(0)
    qs, available = torch.randn(5, 3, 2, 4, generator=g), torch.rand(5, 3, 2, 4, generator=g) < 0.6
    available[..., 0] = True
    second = torch.where(available, qs, 1e6 * torch.randn(qs.shape, generator=g))
    goal = torch.tensor([[0, 4], [2, 2], [3, 1]])
    assert torch.equal(action_distance(qs, available, goal), action_distance(second, available, goal))
    torch.testing.assert_close(kl_from_uniform(qs, available), kl_from_uniform(second, available))
    assert action_distance(qs, available, goal)[0, 0, 0].abs() < 1e-6  # from the subgoal to itself
    equal = kl_from_uniform(torch.full((4,), 3.0), torch.tensor([True, False, True, True]))
    deterministic = kl_from_uniform(torch.tensor([90.0, 0.0, 0.0, 0.0]), torch.tensor([True, False, True, True]))
    assert abs(equal) < 1e-6 and float(deterministic) == pytest.approx(math.log(3))
    logits = qs.clone().requires_grad_()
    (1e3 * kl_from_uniform(logits, available)).sum().backward()
    assert (
        logits.grad.isfinite().all() and not logits.grad[~available].any() and not kl_from_uniform(qs, qs < -99).any()
    )


def test_exploration_counts_from_the_subgoal_on_and_every_agent_and_episode_alike():
    values = torch.arange(8.0).view(4, 1, 2).expand(4, 2, 2)
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    goal = torch.tensor([[2, 0], [1, 0]])
    tails = [(4 + 6) / 2, (1 + 3 + 5 + 7) / 4, 2, (1 + 3) / 2]
    assert float(tail_mean(values, mask, goal)) == sum(tails) / 4


def test_phi_is_trained_by_the_distances_alone_and_trains_nothing_else():
    b = batch()
    without_losses, with_distance, initial = (
        learner(**NOTHING),
        learner(**NOTHING | {"distance": 1.0}),
        learner(**NOTHING),
    )
    for algo in (without_losses, with_distance):
        algo.learn(b)
    assert torch.equal(without_losses.phi_parameters.values, initial.phi_parameters.values)
    assert not torch.equal(with_distance.phi_parameters.values, initial.phi_parameters.values)
    assert torch.equal(all_parameters(without_losses), all_parameters(with_distance))
    without_distance = learner(**NOTHING | {"intrinsic": 1.0, "individual": 1.0, "exploration": 1.0})
    without_distance.learn(b)
    assert torch.equal(without_distance.phi_parameters.values, initial.phi_parameters.values)
    assert not torch.equal(all_parameters(without_distance), all_parameters(without_losses))


def test_the_auxiliary_losses_train_the_agents_and_not_the_mixer():
    b = batch()
    mixers = [
        learner(**NOTHING | {name: weight}, train={"grad_norm_clip": 1e9})
        for name, weight in (("individual", 0.0), ("individual", 5.0), ("exploration", 5.0))
    ]
    for algo in mixers:
        algo.learn(b)
    agents = sum(p.numel() for p in mixers[0].agents.parameters())
    for algo in mixers[1:]:
        assert torch.equal(algo.online.gradient[agents:], mixers[0].online.gradient[agents:])
        assert not torch.equal(algo.online.gradient[:agents], mixers[0].online.gradient[:agents])


@pytest.mark.parametrize(("network", "shared"), list(itertools.product(("gru", "mlp"), (True, False))))
@pytest.mark.parametrize("mixer", ["qmix", "none", "wqmix"])
def test_with_all_weights_0_it_is_q_learning_bit_by_bit(network, shared, mixer):
    train = {"network": network, "share_parameters": shared, "standardise_rewards": True, "grad_norm_clip": 0.5}
    maser, q_learning = (
        learner(mixer, train, targets="td_lambda", **NOTHING),
        make_learner(QLearningConfig(), mixer, **train),
    )
    for seed in range(3):
        b = batch(seed=seed)
        metrics = []
        for algo in (maser, q_learning):
            algo.observe(b.reward, b.mask)
            metrics.append(algo.learn(b))
        assert all(torch.equal(metrics[0][name], value) for name, value in metrics[1].items())
    assert torch.equal(all_parameters(maser), all_parameters(q_learning))


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_is_accepted_and_padding_changes_nothing(mixer):
    check_combination("maser", mixer)
    first, second = learner(mixer, intrinsic=0.5), learner(mixer, intrinsic=0.5)
    metrics, second_metrics = first.learn(batch()), second.learn(otherwise_padded(batch()))
    torch.testing.assert_close(all_parameters(first), all_parameters(second), atol=1e-6, rtol=0)
    torch.testing.assert_close(first.phi_parameters.values, second.phi_parameters.values, atol=1e-6, rtol=0)
    assert metrics.keys() == second_metrics.keys()
    assert all(metrics[k].isfinite() and torch.allclose(metrics[k], second_metrics[k], atol=1e-5) for k in metrics)


@pytest.mark.parametrize(("network", "shared"), list(itertools.product(("gru", "mlp"), (True, False))))
def test_it_learns_which_action_is_rewarded(network, shared):
    """One step, every agent alike: action 2 of agent 0 gives 1, all else nothing."""
    algo = learner(train={"network": network, "share_parameters": shared, "learning_rate": 1e-2}, epsilon_start=0.3)
    g = torch.Generator().manual_seed(0)
    obs, state = (x[:2, :1].repeat_interleave(32, 1) for x in batch()[:2])
    available = torch.ones(2, 32, N, A, dtype=torch.bool)
    available[..., 1] = False
    all_true = torch.ones(1, 32, dtype=torch.bool)
    for _ in range(60):
        actions, _ = algo.act(obs[0], available[0], algo.initial_memory(32), 0, g)
        algo.learn(
            EpisodeBatch(obs, state, available, actions[None], (actions[:, 0] == 2).float()[None], all_true, all_true)
        )
    greedy, _ = algo.act(obs[0], available[0], algo.initial_memory(32), None, g)
    assert (greedy[:, 0] == 2).all()


def test_phi_learns_the_distances_of_action_values():
    algo = learner(train={"learning_rate": 1e-2}, target_tau=0.0, distance=1.0)
    losses = [float(algo.learn(batch())["distance_loss"]) for _ in range(100)]
    assert losses[-1] < 0.2 * losses[0]


def test_exploration_makes_the_actions_equal_after_the_subgoal():
    algo = learner(train={"learning_rate": 1e-2}, **NOTHING | {"exploration": 100.0})
    with torch.no_grad():
        algo.online.values *= 3
    losses = [float(algo.learn(batch())["exploration_loss"]) for _ in range(80)]
    assert losses[-1] < 0.1 * losses[0]


def test_intrinsic_rewards_are_added_to_standardised_rewards():
    first, second, b = learner(train={"standardise_rewards": True}), learner(), batch()
    for algo in (first, second):
        algo.observe(5 + 3 * b.reward, b.mask)
    moments = RunningMoments(torch.device("cpu"))
    moments.update(5 + 3 * b.reward, b.mask)
    first.learn(b)
    second.learn(b._replace(reward=moments.standardise(b.reward)))
    assert torch.equal(all_parameters(first), all_parameters(second))


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop", "radam"])
def test_a_restored_learner_continues_identically(optimiser):
    first, second = (learner(train={"optimiser": optimiser}, intrinsic=0.5) for _ in range(2))
    for seed in range(3):
        first.learn(batch(seed=seed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        metrics, second_metrics = first.learn(batch(seed=seed)), second.learn(batch(seed=seed))
        assert metrics == second_metrics
    assert torch.equal(all_parameters(first), all_parameters(second))
    assert torch.equal(first.phi_parameters.values, second.phi_parameters.values)
    acting = learner()
    acting.load_policy_state_dict(first.policy_state_dict())
    assert torch.equal(acting.online.values, first.online.values)
    assert first.parameter_counts()["phi"] == 7 * (ENV.obs_dim + 1) + A * (7 + 1)


def test_the_default_mixer_is_qmix():
    assert load_run(composed("algorithm=maser")).mixer == QmixConfig()
    for options in (["algorithm=maser", "mixer=tfcaf"], ["mixer=tfcaf", "algorithm=maser"]):
        assert load_run(composed(*options)).mixer == TfcafConfig()


@pytest.mark.parametrize("env", ["grf", "mpe"])
@pytest.mark.parametrize("train", ["fair", "quick"])
def test_options_shared_with_q_learning_have_the_same_values(env, train):
    maser, q_learning = (
        load_run(composed(f"env={env}", f"train={train}", f"algorithm={name}", "mixer=qmix"))
        for name in ("maser", "q_learning")
    )
    assert (maser.train, maser.env, maser.mixer) == (q_learning.train, q_learning.env, q_learning.mixer)
    shared = {key: getattr(maser.algorithm, key) for key in vars(q_learning.algorithm)}
    assert shared == vars(q_learning.algorithm) | {"name": "maser"}
