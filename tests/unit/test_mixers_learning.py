"""The whole loss of mixers that ask more than the individual Qs, written out step by step: its gradient is that of `learn`."""

import copy
import itertools

import pytest
import torch
from test_q_learning import ENV, batch

from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.config import schema
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.qplex import Config as QplexConfig
from qllm_exp.mixers.qtran import Config as QtranConfig
from qllm_exp.mixers.wqmix import Config as WqmixConfig

N, A = ENV.n_agents, ENV.n_actions
CONFIGS = {
    "qplex": QplexConfig(kernels=2, hypernet=5, adv_hypernet=6),
    "qtran": QtranConfig(embed=6, lambda_opt=0.7, lambda_nopt=0.3),
    "cw": WqmixConfig(embed=4, hypernet=5, unrestricted=6, alpha=0.3),
    "ow": WqmixConfig(embed=4, hypernet=5, unrestricted=6, alpha=0.3, weighting="ow"),
}


def learner(name: str, double_q: bool) -> QLearning:
    torch.manual_seed(0)
    train = schema.TrainConfig(hidden=8, grad_norm_clip=1e9, standardise_rewards=False)
    made = QLearning(QLearningConfig(targets="n_step", double_q=double_q), train, ENV, make_mixer(CONFIGS[name], ENV))
    with torch.no_grad():  # so that online and target differ
        made.target.values += 0.3 * torch.randn_like(made.target.values)
    return made


def one_hot(actions) -> torch.Tensor:
    return torch.tensor([1.0 if actions[i] == a else 0.0 for i in range(N) for a in range(A)])


def best(qs, allowed) -> list[int]:
    return [max((a for a in range(A) if allowed[i, a]), key=lambda a: float(qs[i, a].detach())) for i in range(N)]


def picked(qs, actions) -> torch.Tensor:
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
    q, v = picked(qs, actions), picked(qs, best(qs, allowed))
    transformed = [w[i] * q[i] + b[i] for i in range(N)]
    advantages = [(w[i] * q[i] + b[i] - w[i] * v[i] - b[i]).detach() for i in range(N)]
    return sum(transformed[i] + (importance[i] - 1) * advantages[i] for i in range(N))


def qtran_joint(mixer, actions, state):
    return mixer.joint(torch.cat([state, one_hot(actions)]))[0]


def step_loss(name, made, mixer_target, now, then, b, e, t):
    """Loss of one step. now, then: the Qs [n, A] at t and t + 1 of online agents, target agents, central and its target."""
    mixer, state, after = made.mixer, b.state[t, e], b.state[t + 1, e]
    allowed, allowed_then, actions = b.available_actions[t, e], b.available_actions[t + 1, e], b.actions[t, e]
    online, _, central, _ = now
    judge = then[0] if made.config.double_q else then[1]
    choice = best(judge, allowed_then)
    if name == "qplex":
        bootstrap = qplex_value(mixer_target, then[1], allowed_then, choice, after)
    elif name == "qtran":
        bootstrap = qtran_joint(mixer_target, choice, after)
    else:
        bootstrap = mixer_target.unrestricted(picked(then[3], choice), after)
    y = (b.reward[t, e] + made.train.gamma * (0 if b.terminated[t, e] else bootstrap)) * torch.ones(())
    return value_loss(name, mixer, online, central, allowed, actions, state, y.detach())


def value_loss(name, mixer, online, central, allowed, actions, state, y):
    """Loss of what the mixer says of a joint action in a state. online, central: the Qs [n, A] of agents and central."""
    if name == "qplex":
        return (qplex_value(mixer, online, allowed, actions, state) - y) ** 2
    if name == "qtran":
        q_jt, v = qtran_joint(mixer, actions, state), mixer.of_state(state)[0]
        top = best(online, allowed)
        opt = picked(online, top).sum() + v - qtran_joint(mixer, top, state).detach()
        nopt = picked(online, actions).sum() + v - q_jt.detach()
        return (q_jt - y) ** 2 + 0.7 * opt**2 + (0.3 * nopt**2 if nopt < 0 else 0)
    q_tot, free = mixer(picked(online, actions), state), mixer.unrestricted(picked(central, actions), state)
    if name == "ow":
        full = q_tot < y
    else:
        top = best(online, allowed)
        full = top == actions.tolist() or y > mixer.unrestricted(picked(central, top), state)
    return (1.0 if full else 0.3) * (q_tot - y) ** 2 + (free - y) ** 2


@pytest.mark.parametrize(("name", "double_q"), list(itertools.product(CONFIGS, (True, False))))
def test_the_gradient_is_that_of_the_published_loss(name, double_q):
    made, literal, b = learner(name, double_q), learner(name, double_q), batch()
    made.learn(b)
    inputs = literal.inputs.along(b.obs, b.actions)
    networks = (literal.agents, literal.target_agents, literal.central, literal.target_central)
    qs = [None if one is None else one.unroll(inputs) for one in networks]
    losses = []
    for e in range(b.reward.shape[1]):
        for t in range(int(b.mask[:, e].sum())):
            now, then = ([None if q is None else q[at, e] for q in qs] for at in (t, t + 1))
            losses.append(step_loss(name, literal, literal.target_mixer, now, then, b, e, t))
    literal.online.gradient.zero_()
    torch.stack(losses).mean().backward()
    assert literal.online.gradient.abs().max() > 0.01
    assert torch.allclose(made.online.gradient, literal.online.gradient, rtol=1e-3, atol=1e-5)


def test_the_agents_of_the_unrestricted_mixer_learn_and_do_not_act():
    made = learner("cw", True)
    before = [p.clone() for p in made.central.parameters()]
    kept = made.policy_state_dict()
    made.learn(batch())
    assert all(not torch.equal(p, q) for p, q in zip(before, made.central.parameters(), strict=True))
    assert made.parameter_counts().keys() == {"agent", "mixer", "central"}
    assert not any(name.startswith("central") for name in kept)


def test_a_learner_with_an_unrestricted_mixer_goes_on_as_the_saved_one():
    one, other = learner("ow", True), learner("ow", True)
    one.learn(batch(seed=1))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for made in (one, other):
        made.learn(batch(seed=2))
    assert torch.equal(one.online.values, other.online.values) and torch.equal(one.target.values, other.target.values)
