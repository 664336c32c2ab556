"""MASER against its definition, one step and one agent at a time; what trains what; and what is left of it with all weights 0."""

import copy
import itertools
import math

import pytest
import torch
from episode_batches import ENV, batch, otherwise_padded
from test_config import composed

from qllm_exp.algorithms import check_combination, make_algorithm
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.maser import Config as MaserConfig
from qllm_exp.algorithms.maser import Maser, action_distance, from_uniform, subgoals, tail_mean
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


def made_of(algorithm: schema.AlgorithmConfig, mixer="qmix", **train) -> QLearning:
    torch.manual_seed(0)
    settings = {"hidden": 8, "standardise_rewards": False, "grad_norm_clip": 1e9} | train
    run = schema.RunConfig(algorithm=algorithm, mixer=MIXERS[mixer], train=schema.TrainConfig(**settings))
    made = make_algorithm(run, ENV, make_mixer(run.mixer, ENV))
    with torch.no_grad():  # so that online and target differ, and which actions are best
        g = torch.Generator().manual_seed(1)
        made.target.values += 0.3 * torch.randn(made.target.values.shape, generator=g)
    return made


def learner(mixer="qmix", train=None, **algorithm) -> Maser:
    made = made_of(MaserConfig(**({"targets": "n_step", "phi_hidden": 7} | algorithm)), mixer, **(train or {}))
    assert isinstance(made, Maser)
    return made


def everything(made: QLearning) -> torch.Tensor:
    return torch.cat([made.online.values.detach(), made.target.values]).clone()


@torch.no_grad()
def team_value(made: Maser, qs: list[float], state: torch.Tensor, actions: list[int]) -> float:
    """Q_tot of the target mixer, of actions with these individual Qs."""
    mixer = made.target_mixer
    if mixer.per_agent:
        return sum(qs)
    if made.mixer.__class__.__name__ == "Qtran":
        one_hot = [1.0 if actions[i] == a else 0.0 for i in range(N) for a in range(A)]
        return float(mixer.joint(torch.cat([state, torch.tensor(one_hot)]))[0])
    return float(mixer(torch.tensor(qs), state))


def goals_by_hand(made: Maser, b: EpisodeBatch, online, target) -> list[list[int]]:
    """The step of the subgoal of each agent in each episode; online, target: Qs [T + 1, B, n, A]."""
    goals = []
    for e in range(b.mask.shape[1]):
        promise: list[list[float]] = [[] for _ in range(N)]
        for t in range(int(b.mask[:, e].sum())):
            judge = online if made.config.double_q else target
            allowed = [[a for a in range(A) if b.available_actions[t, e, i, a]] for i in range(N)]
            best = [max(allowed[i], key=lambda a, i=i: float(judge[t, e, i, a])) for i in range(N)]
            qs = [float(target[t, e, i, best[i]]) for i in range(N)]
            q_tot = team_value(made, qs, b.state[t, e], best)
            for i in range(N):
                promise[i].append(made.config.alpha * qs[i] + (1 - made.config.alpha) * q_tot / N)
        goals.append([steps.index(max(steps)) for steps in promise])
    return goals


def test_the_subgoal_is_where_most_is_promised_to_each_agent_and_never_in_padding():
    promise = torch.zeros(4, 3, 2)
    promise[:, 0] = torch.tensor([[1.0, 5.0], [3.0, 2.0], [2.0, 4.0], [0.0, 1.0]])
    promise[:, 1] = torch.tensor([[-4.0, -1.0], [-3.0, -2.0], [99.0, 99.0], [99.0, 99.0]])
    promise[:, 2] = torch.tensor([[-9.0, -9.0], [99.0, 0.0], [99.0, 0.0], [99.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, False, False]])
    assert subgoals(promise, mask).tolist() == [[1, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("mixer", ["vdn", "none", "qmix", "qtran", "wqmix"])
@pytest.mark.parametrize(("alpha", "double_q"), [(0.0, True), (0.5, True), (0.5, False), (1.0, True)])
def test_what_is_promised_are_the_agents_own_value_and_its_part_of_the_teams(mixer, alpha, double_q):
    made = learner(mixer, alpha=alpha, double_q=double_q)
    found = []
    for seed in range(3):
        b = batch(seed=seed)
        values = made._values(b, made.inputs.along(b.obs, b.actions))
        goal = subgoals(made.promise(b, values), b.mask).tolist()
        assert goal == goals_by_hand(made, b, values.online.detach(), values.target)
        found += goal
    assert any(step > 0 for one in found for step in one)
    assert alpha == 0 or any(
        len(set(one)) > 1 for one in found
    )  # without a value of its own, all agents have one subgoal


def loss_by_hand(made: Maser, b: EpisodeBatch) -> dict[str, torch.Tensor]:
    """All losses but that of Q_tot, differentiable; the rewards of the team r' are under 'reward', by episode and step."""
    c, gamma = made.config, made.train.gamma
    inputs = made.inputs.along(b.obs, b.actions)
    online, target = made.agents.unroll(inputs), made.target_agents.unroll(inputs).detach()
    goals = goals_by_hand(made, b, online.detach(), target)
    individual, exploration, distance, intrinsic, rewards = [], [], [], [], {}
    for e in range(b.mask.shape[1]):
        length = int(b.mask[:, e].sum())
        rho = [[0.0] * N for _ in range(length)]
        for i in range(N):
            g, tail = goals[e][i], []
            for t in range(length):
                here, there = made.phi(b.obs[t, e, i]), made.phi(b.obs[g, e, i])
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
        after = torch.zeros(length, N)
        for t in range(length):
            judge = online.detach() if c.double_q else target
            for i in range(N):
                allowed = [a for a in range(A) if b.available_actions[t + 1, e, i, a]]
                after[t, i] = target[t + 1, e, i, max(allowed, key=lambda a, i=i: float(judge[t + 1, e, i, a]))]
            rewards[e, t] = float(b.reward[t, e]) + c.intrinsic * sum(rho[t]) / N
            intrinsic += rho[t]
        y = torch.zeros(length, N)
        for t in reversed(range(length)):
            share = after[t].exp() / after[t].exp().sum()
            own = share * rewards[e, t] + c.intrinsic * torch.tensor(rho[t])
            follows = after[t]
            if t + 1 < length and c.targets == "td_lambda":
                follows = (1 - c.td_lambda) * after[t] + c.td_lambda * y[t + 1]
            y[t] = own + gamma * (0 if b.terminated[t, e] else follows)
            chosen = torch.stack([online[t, e, i, int(b.actions[t, e, i])] for i in range(N)])
            individual.append(((chosen - y[t]) ** 2).sum())
    losses = {"individual_loss": individual, "exploration_loss": exploration, "distance_loss": distance}
    means = {name: torch.stack(each).mean() for name, each in losses.items()}
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
    given = {"targets": targets, "td_lambda": 0.6, "double_q": double_q, **weights}
    made, b = learner(mixer, **given), batch()
    literal = loss_by_hand(made, b)
    reward = literal.pop("reward")
    # the loss of Q_tot is Q-learning's (test_q_learning.py), with the rewards of the team in the place of those of the episodes
    plain = made_of(QLearningConfig(targets=targets, td_lambda=0.6, double_q=double_q), mixer)
    expected_td = plain.learn(b._replace(reward=reward))
    agents = list(made.agents.parameters())
    further = 0.5 * literal["individual_loss"] + 0.3 * literal["exploration_loss"]
    own = torch.cat([g.flatten() for g in torch.autograd.grad(further, agents)])
    for_phi = torch.autograd.grad(0.2 * literal["distance_loss"], list(made.phi.parameters()))
    figures = made.learn(b)
    assert float(figures["loss"]) == pytest.approx(float(expected_td["loss"]), rel=1e-4)
    for name, value in literal.items():
        assert float(figures[name]) == pytest.approx(float(value.detach()), rel=1e-4), name
    expected = plain.online.gradient.clone()
    expected[: len(own)] += own
    assert own.abs().max() > 1e-3
    torch.testing.assert_close(made.online.gradient, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        made.phi_parameters.gradient, torch.cat([g.flatten() for g in for_phi]), rtol=1e-3, atol=1e-5
    )


def test_actions_that_are_not_available_play_no_part_in_distance_and_exploration():
    g = torch.Generator().manual_seed(0)
    qs, available = torch.randn(5, 3, 2, 4, generator=g), torch.rand(5, 3, 2, 4, generator=g) < 0.6
    available[..., 0] = True
    other = torch.where(available, qs, 1e6 * torch.randn(qs.shape, generator=g))
    goal = torch.tensor([[0, 4], [2, 2], [3, 1]])
    assert torch.equal(action_distance(qs, available, goal), action_distance(other, available, goal))
    torch.testing.assert_close(from_uniform(qs, available), from_uniform(other, available))
    assert action_distance(qs, available, goal)[0, 0, 0].abs() < 1e-6  # from the subgoal to itself
    equal = from_uniform(torch.full((4,), 3.0), torch.tensor([True, False, True, True]))
    sure = from_uniform(torch.tensor([90.0, 0.0, 0.0, 0.0]), torch.tensor([True, False, True, True]))
    assert abs(equal) < 1e-6 and float(sure) == pytest.approx(math.log(3))
    steep = qs.clone().requires_grad_()
    (1e3 * from_uniform(steep, available)).sum().backward()
    assert steep.grad.isfinite().all() and not steep.grad[~available].any() and not from_uniform(qs, qs < -99).any()


def test_exploration_counts_from_the_subgoal_on_and_every_agent_and_episode_alike():
    values = torch.arange(8.0).view(4, 1, 2).expand(4, 2, 2)
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    goal = torch.tensor([[2, 0], [1, 0]])
    tails = [(4 + 6) / 2, (1 + 3 + 5 + 7) / 4, 2, (1 + 3) / 2]
    assert float(tail_mean(values, mask, goal)) == sum(tails) / 4


def test_phi_is_trained_by_the_distances_alone_and_trains_nothing_else():
    b = batch()
    still, trained, plain = learner(**NOTHING), learner(**NOTHING | {"distance": 1.0}), learner(**NOTHING)
    for made in (still, trained):
        made.learn(b)
    assert torch.equal(still.phi_parameters.values, plain.phi_parameters.values)
    assert not torch.equal(trained.phi_parameters.values, plain.phi_parameters.values)
    assert torch.equal(everything(still), everything(trained))
    others = learner(**NOTHING | {"intrinsic": 1.0, "individual": 1.0, "exploration": 1.0})
    others.learn(b)
    assert torch.equal(others.phi_parameters.values, plain.phi_parameters.values)
    assert not torch.equal(everything(others), everything(still))


def test_the_further_losses_train_the_agents_and_not_the_mixer():
    b = batch()
    mixers = [
        learner(**NOTHING | {name: weight}, train={"grad_norm_clip": 1e9})
        for name, weight in (("individual", 0.0), ("individual", 5.0), ("exploration", 5.0))
    ]
    for made in mixers:
        made.learn(b)
    agents = sum(p.numel() for p in mixers[0].agents.parameters())
    for made in mixers[1:]:
        assert torch.equal(made.online.gradient[agents:], mixers[0].online.gradient[agents:])
        assert not torch.equal(made.online.gradient[:agents], mixers[0].online.gradient[:agents])


@pytest.mark.parametrize(("network", "shared"), list(itertools.product(("gru", "mlp"), (True, False))))
@pytest.mark.parametrize("mixer", ["qmix", "none", "wqmix"])
def test_with_all_weights_0_it_is_q_learning_bit_by_bit(network, shared, mixer):
    train = {"network": network, "share_parameters": shared, "standardise_rewards": True, "grad_norm_clip": 0.5}
    maser, plain = learner(mixer, train, targets="td_lambda", **NOTHING), made_of(QLearningConfig(), mixer, **train)
    for seed in range(3):
        b = batch(seed=seed)
        figures = []
        for made in (maser, plain):
            made.observe(b.reward, b.mask)
            figures.append(made.learn(b))
        assert all(torch.equal(figures[0][name], value) for name, value in figures[1].items())
    assert torch.equal(everything(maser), everything(plain))


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_can_be_had_and_padding_changes_nothing(mixer):
    check_combination("maser", mixer)
    one, other = learner(mixer, intrinsic=0.5), learner(mixer, intrinsic=0.5)
    figures, others = one.learn(batch()), other.learn(otherwise_padded(batch()))
    torch.testing.assert_close(everything(one), everything(other), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.phi_parameters.values, other.phi_parameters.values, atol=1e-6, rtol=0)
    assert figures.keys() == others.keys()
    assert all(figures[k].isfinite() and torch.allclose(figures[k], others[k], atol=1e-5) for k in figures)


@pytest.mark.parametrize(("network", "shared"), list(itertools.product(("gru", "mlp"), (True, False))))
def test_it_learns_which_action_is_rewarded(network, shared):
    """One step, every agent alike: action 2 of agent 0 gives 1, all else nothing."""
    made = learner(train={"network": network, "share_parameters": shared, "learning_rate": 1e-2}, epsilon_start=0.3)
    g = torch.Generator().manual_seed(0)
    obs, state = (x[:2, :1].repeat_interleave(32, 1) for x in batch()[:2])
    available = torch.ones(2, 32, N, A, dtype=torch.bool)
    available[..., 1] = False
    yes = torch.ones(1, 32, dtype=torch.bool)
    for _ in range(60):
        actions, _ = made.act(obs[0], available[0], made.initial_memory(32), 0, g)
        made.learn(EpisodeBatch(obs, state, available, actions[None], (actions[:, 0] == 2).float()[None], yes, yes))
    greedy, _ = made.act(obs[0], available[0], made.initial_memory(32), None, g)
    assert (greedy[:, 0] == 2).all()


def test_phi_comes_to_say_how_differently_actions_are_rated():
    made = learner(train={"learning_rate": 1e-2}, target_tau=0.0, distance=1.0)
    losses = [float(made.learn(batch())["distance_loss"]) for _ in range(100)]
    assert losses[-1] < 0.2 * losses[0]


def test_exploration_makes_the_actions_equal_after_the_subgoal():
    made = learner(train={"learning_rate": 1e-2}, **NOTHING | {"exploration": 100.0})
    with torch.no_grad():
        made.online.values *= 3
    losses = [float(made.learn(batch())["exploration_loss"]) for _ in range(80)]
    assert losses[-1] < 0.1 * losses[0]


def test_intrinsic_rewards_are_beside_standardised_ones():
    one, other, b = learner(train={"standardise_rewards": True}), learner(), batch()
    for made in (one, other):
        made.observe(5 + 3 * b.reward, b.mask)
    moments = RunningMoments(torch.device("cpu"))
    moments.update(5 + 3 * b.reward, b.mask)
    one.learn(b)
    other.learn(b._replace(reward=moments.standardise(b.reward)))
    assert torch.equal(everything(one), everything(other))


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_a_reloaded_learner_goes_on_as_the_saved_one(optimiser):
    one, other = (learner(train={"optimiser": optimiser}, intrinsic=0.5) for _ in range(2))
    for seed in range(3):
        one.learn(batch(seed=seed))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for seed in range(3, 6):
        figures, others = one.learn(batch(seed=seed)), other.learn(batch(seed=seed))
        assert figures == others
    assert torch.equal(everything(one), everything(other))
    assert torch.equal(one.phi_parameters.values, other.phi_parameters.values)
    acting = learner()
    acting.load_policy_state_dict(one.policy_state_dict())
    assert torch.equal(acting.online.values, one.online.values)
    assert one.parameter_counts()["phi"] == 7 * (ENV.obs_dim + 1) + A * (7 + 1)


def test_its_mixer_is_qmix_unless_another_is_asked_for():
    assert load_run(composed("algorithm=maser")).mixer == QmixConfig()
    for given in (["algorithm=maser", "mixer=tfcaf"], ["mixer=tfcaf", "algorithm=maser"]):
        assert load_run(composed(*given)).mixer == TfcafConfig()


@pytest.mark.parametrize(("env", "steps"), [("lbf", 50), ("mpe", 25), ("matrix", 25)])
@pytest.mark.parametrize("mixer", ["qmix", "tfcaf"])
def test_published_settings(env, steps, mixer):
    run = load_run(composed(f"env={env}", "train=paper", "algorithm=maser", f"mixer={mixer}"))
    train, algorithm = run.train, run.algorithm
    assert (train.source, train.optimiser, train.learning_rate, train.hidden, train.batch_episodes) == (
        *("MASER public code", "rmsprop", 5e-4, 64, 32),
    )
    assert (run.env.num_envs, train.steps_per_update, run.env.episode_limit) == (1, steps, steps)
    assert (algorithm.alpha, algorithm.intrinsic, algorithm.targets, algorithm.n_step) == (0.5, 0.03, "n_step", 1)
    assert algorithm.individual == algorithm.exploration == algorithm.distance == 1e-3
    if mixer == "qmix":
        assert run.mixer == QmixConfig(embed=32, hypernet=0)


@pytest.mark.parametrize("env", ["grf", "mpe"])
@pytest.mark.parametrize("train", ["fair", "quick"])
def test_what_it_shares_with_q_learning_is_set_alike(env, train):
    maser, plain = (
        load_run(composed(f"env={env}", f"train={train}", f"algorithm={one}", "mixer=qmix"))
        for one in ("maser", "q_learning")
    )
    assert (maser.train, maser.env, maser.mixer) == (plain.train, plain.env, plain.mixer)
    shared = {key: getattr(maser.algorithm, key) for key in vars(plain.algorithm)}
    assert shared == vars(plain.algorithm) | {"name": "maser"}
