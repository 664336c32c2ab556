"""The whole loss of mixers with more than a `forward`, written out step by step: its gradient is that of `learn`."""

import copy
import itertools

import pytest
import torch

from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.config import schema
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.qfix import Config as QfixConfig
from qllm_exp.mixers.qplex import Config as QplexConfig
from qllm_exp.mixers.qtran import Config as QtranConfig
from qllm_exp.mixers.wqmix import Config as WqmixConfig
from tests.unit.algorithms.test_q_learning import ENV, batch

N, A = ENV.n_agents, ENV.n_actions
CONFIGS = {
    "qplex": QplexConfig(kernels=2, hypernet=5, adv_hypernet=6),
    "qtran": QtranConfig(embed=6, lambda_opt=0.7, lambda_nopt=0.3),
    **{
        f"{'q+fix' if additive else 'qfix'}-{variant}": QfixConfig(
            variant=variant, additive=additive, embed=4, hypernet=5
        )
        for variant in ("sum", "mono", "lin")
        for additive in (True, False)
    },
    "cw": WqmixConfig(embed=4, hypernet=5, unrestricted=6, alpha=0.3),
    "ow": WqmixConfig(embed=4, hypernet=5, unrestricted=6, alpha=0.3, weighting="ow"),
}


def learner(name: str, double_q: bool) -> QLearning:
    torch.manual_seed(0)
    train = schema.TrainConfig(hidden=8, grad_norm_clip=1e9, standardise_rewards=False)
    algo = QLearning(QLearningConfig(targets="n_step", double_q=double_q), train, ENV, make_mixer(CONFIGS[name], ENV))
    with torch.no_grad():  # so that online and target networks differ
        algo.target.values += 0.3 * torch.randn_like(algo.target.values)
    return algo


def one_hot(actions) -> torch.Tensor:
    return torch.tensor([1.0 if actions[i] == a else 0.0 for i in range(N) for a in range(A)])


def best(qs, allowed) -> list[int]:
    return [max((a for a in range(A) if allowed[i, a]), key=lambda a: float(qs[i, a].detach())) for i in range(N)]


def select(qs, actions) -> torch.Tensor:
    return torch.stack([qs[i, int(actions[i])] for i in range(N)])


def qplex_value(mixer, qs, allowed, actions, state):
    hidden = torch.relu(mixer.scale_shift_hidden(state)).view(2, -1)
    both = [h @ w + b[0] for h, w, b in zip(hidden, mixer.scale_shift.weight, mixer.scale_shift.bias, strict=True)]
    w, b = both[0].abs(), both[1]
    importance = 0
    first = torch.cat([mixer.of_state(state), mixer.of_action(torch.cat([state, one_hot(actions)]))]).relu().view(6, 6)
    second = [torch.relu(h @ u + v[0]) for h, u, v in zip(first, mixer.second.weight, mixer.second.bias, strict=True)]
    for k in range(2):  # keys, then agents, then actions
        key = (second[k] @ mixer.key.weight[k] + mixer.key.bias[k][0]).abs()
        agents = torch.sigmoid(second[2 + k] @ mixer.agents_action.weight[k] + mixer.agents_action.bias[k][0])
        action = torch.sigmoid(second[4 + k] @ mixer.agents_action.weight[2 + k] + mixer.agents_action.bias[2 + k][0])
        importance = importance + key * agents * action
    q, v = select(qs, actions), select(qs, best(qs, allowed))
    transformed = [w[i] * q[i] + b[i] for i in range(N)]
    advantages = [(w[i] * q[i] + b[i] - w[i] * v[i] - b[i]).detach() for i in range(N)]
    return sum(transformed[i] + (importance[i] - 1) * advantages[i] for i in range(N))


def qfix_value(mixer, qs, allowed, actions, state):
    hidden, output = mixer.weights[0], mixer.weights[2]
    x = torch.cat([state, one_hot(actions)])
    x = output.weight @ (hidden.weight @ x + hidden.bias).clamp(min=0) + output.bias
    b = (mixer.bias[2].weight @ (mixer.bias[0].weight @ state + mixer.bias[0].bias).clamp(min=0) + mixer.bias[2].bias)[
        0
    ]
    q, v = select(qs, actions), select(qs, best(qs, allowed))
    fixee_q, fixee_v = (mixer.fixee(values, state) if mixer.variant == "mono" else values.sum() for values in (q, v))
    advantages = [q[i] - v[i] for i in range(N)] if mixer.variant == "lin" else [fixee_q - fixee_v]
    if not mixer.additive:
        return sum(x[i].abs() * advantages[i] for i in range(len(x))) + b
    return fixee_q + sum(((x[i] + 1).abs() - 1) * advantages[i].detach() for i in range(len(x))) + b


VALUES = {"qplex": qplex_value, "qfix": qfix_value, "q+fix": qfix_value}  # by the name up to the variant


def qtran_joint(mixer, actions, state):
    return mixer.joint(torch.cat([state, one_hot(actions)]))[0]


def step_loss(name, algo, mixer_target, qs, next_qs, b, e, t):
    """Loss of one step. now, then: the Qs [n, A] at t and t + 1 of online agents, target agents, central and its target."""
    mixer, state, next_state = algo.mixer, b.state[t, e], b.state[t + 1, e]
    allowed, allowed_then, actions = b.available_actions[t, e], b.available_actions[t + 1, e], b.actions[t, e]
    online, _, central, _ = qs
    selecting_qs = next_qs[0] if algo.config.double_q else next_qs[1]
    choice = best(selecting_qs, allowed_then)
    value = VALUES.get(name.partition("-")[0])
    if value is not None:
        bootstrap = value(mixer_target, next_qs[1], allowed_then, choice, next_state)
    elif name == "qtran":
        bootstrap = qtran_joint(mixer_target, choice, next_state)
    else:
        bootstrap = mixer_target.unrestricted(select(next_qs[3], choice), next_state)
    y = (b.reward[t, e] + algo.train.gamma * (0 if b.terminated[t, e] else bootstrap)) * torch.ones(())
    return value_loss(name, mixer, online, central, allowed, actions, state, y.detach())


def value_loss(name, mixer, online, central, allowed, actions, state, y):
    """Loss of one joint action in one state. online, central: Qs [n, A] of the agents and of the central agents."""
    value = VALUES.get(name.partition("-")[0])
    if value is not None:
        return (value(mixer, online, allowed, actions, state) - y) ** 2
    if name == "qtran":
        q_jt, v = qtran_joint(mixer, actions, state), mixer.of_state(state)[0]
        best_actions = best(online, allowed)
        opt = select(online, best_actions).sum() + v - qtran_joint(mixer, best_actions, state).detach()
        nopt = select(online, actions).sum() + v - q_jt.detach()
        return (q_jt - y) ** 2 + 0.7 * opt**2 + (0.3 * nopt**2 if nopt < 0 else 0)
    q_tot, central_q_tot = mixer(select(online, actions), state), mixer.unrestricted(select(central, actions), state)
    if name == "ow":
        has_full_weight = q_tot < y
    else:
        best_actions = best(online, allowed)
        has_full_weight = best_actions == actions.tolist() or y > mixer.unrestricted(
            select(central, best_actions), state
        )
    return (1.0 if has_full_weight else 0.3) * (q_tot - y) ** 2 + (central_q_tot - y) ** 2


@pytest.mark.parametrize(("name", "double_q"), list(itertools.product(CONFIGS, (True, False))))
def test_the_gradient_is_that_of_the_published_loss(name, double_q):
    algo, reference, b = learner(name, double_q), learner(name, double_q), batch()
    algo.learn(b)
    inputs = reference.inputs.sequence_inputs(b.obs, b.actions)
    networks = (reference.agents, reference.target_agents, reference.central, reference.target_central)
    qs = [None if network is None else network.unroll(inputs) for network in networks]
    losses = []
    for e in range(b.reward.shape[1]):
        for t in range(int(b.mask[:, e].sum())):
            step_qs, next_qs = ([None if q is None else q[step, e] for q in qs] for step in (t, t + 1))
            losses.append(step_loss(name, reference, reference.target_mixer, step_qs, next_qs, b, e, t))
    reference.online.gradient.zero_()
    torch.stack(losses).mean().backward()
    assert reference.online.gradient.abs().max() > 0.01
    assert torch.allclose(algo.online.gradient, reference.online.gradient, rtol=1e-3, atol=1e-5)


def test_the_agents_of_the_unrestricted_mixer_learn_and_do_not_act():
    algo = learner("cw", True)
    before = [p.clone() for p in algo.central.parameters()]
    policy = algo.policy_state_dict()
    algo.learn(batch())
    assert all(not torch.equal(p, q) for p, q in zip(before, algo.central.parameters(), strict=True))
    assert algo.parameter_counts().keys() == {"agent", "mixer", "central"}
    assert not any(name.startswith("central") for name in policy)


def test_a_restored_learner_with_an_unrestricted_mixer_continues_identically():
    first, second = learner("ow", True), learner("ow", True)
    first.learn(batch(seed=1))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for algo in (first, second):
        algo.learn(batch(seed=2))
    assert torch.equal(first.online.values, second.online.values) and torch.equal(
        first.target.values, second.target.values
    )
