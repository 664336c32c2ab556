"""The mixers qatten, qplex, qtran and wqmix: their published formulas, IGM, weights and credit."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mixers import gradient
from torch import nn

from qllm_exp.config import registry
from qllm_exp.config.load import config_class
from qllm_exp.envs import make_env
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.explain.watch_episode import credit
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.base import JointAction
from qllm_exp.mixers.qatten import OwnState, Qatten
from qllm_exp.mixers.qplex import Qplex
from qllm_exp.mixers.qtran import Qtran
from qllm_exp.mixers.wqmix import FeedForward, Wqmix
from qllm_exp.networks.layers import ParallelLinear, side_by_side

INF = math.inf


def layout(n, extra=2):
    """x and y of each agent, then columns of nobody's."""
    fields = [StateField("agent", i, "position", ("x", "y"), -INF, INF) for i in range(n)]
    names = tuple(f"c{k}" for k in range(extra))
    return StateLayout.of([*fields, StateField("match", None, "rest", names, -INF, INF)])


def scaled(mixer, factor):
    for p in mixer.parameters():
        p.data *= factor
    return mixer


def test_qatten_is_its_formula():
    torch.manual_seed(0)
    n, heads, hidden, embed = 3, 2, 5, 4
    mixer = Qatten(n, layout(n), heads, hidden, embed)
    qs, state = torch.randn(n), torch.randn(8)
    first = torch.relu(mixer.from_state.weight @ state + mixer.from_state.bias)
    w = mixer.head_weights(first[heads * hidden : heads * hidden + hidden]).abs()
    expected = mixer.bias(first[-embed:])[0]
    for h in range(heads):
        query = first[h * hidden : (h + 1) * hidden] @ mixer.query.weight[h] + mixer.query.bias[h][0]
        keys = [mixer.key(state[2 * i : 2 * i + 2])[h * embed : (h + 1) * embed] for i in range(n)]
        powers = [math.exp(float((query @ key).detach()) / math.sqrt(embed)) for key in keys]
        expected = expected + w[h] * sum(power * q for power, q in zip(powers, qs, strict=True)) / sum(powers)
    assert torch.allclose(mixer(qs.expand(2, 7, n), state.expand(2, 7, 8)), expected.expand(2, 7), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0.1, 100))
def test_qatten_wqmix_qplex_and_qtran_never_fall_where_a_q_rises(seed, n, scale):
    torch.manual_seed(seed)
    made = [Qatten(n, layout(n), 2, 5, 4), Wqmix(n, 2 * n + 2, 4, 5, 6), Qplex(n, 3, 2 * n + 2, 2, 5, 6)]
    for mixer in [*made, Qtran(n, 3, 2 * n + 2, 6)]:
        assert mixer.monotone
        qs, state = scale * torch.randn(4, 3, n), scale * torch.randn(4, 3, 2 * n + 2)
        assert (gradient(scaled(mixer, 3), qs, state) >= 0).all()


def test_own_state_takes_an_agents_fields_and_aligns_them_by_name():
    fields = [
        StateField("agent", 0, "position", ("x", "y"), -INF, INF),
        StateField("agent", 0, "word", ("said",), -INF, INF),
        StateField("ball", None, "position", ("x", "y"), -INF, INF),
        StateField("agent", 1, "level", ("level",), -INF, INF),
        StateField("agent", 1, "position", ("x", "y"), -INF, INF),
    ]
    state = torch.tensor([10.0, 11, 12, 13, 14, 15, 16, 17])
    assert OwnState(2, StateLayout.of(fields))(state).tolist() == [[10, 11, 12, 0], [16, 17, 0, 15]]


def test_an_agent_without_fields_of_its_own_is_told_by_its_index():
    one = StateLayout.of([StateField("environment", None, "state", ("a", "b"), -INF, INF)])
    assert OwnState(2, one)(torch.tensor([[5.0, 6.0]])).tolist() == [[[5, 6, 1, 0], [5, 6, 0, 1]]]


@pytest.mark.parametrize("env", ["lbf", "mpe", "matrix", "pettingzoo"])
def test_the_environments_name_each_agents_part_of_the_state(env):
    made = make_env(config_class("env", env)(), 2, 0)
    own = OwnState(made.n_agents, made.layout)
    assert own.by_name and own(made.reset().state).shape == (2, made.n_agents, own.width)
    made.close()


def joint(n, a, seed=0):
    """Random Qs in one state, with every joint action [a ** n, n]."""
    g = torch.Generator().manual_seed(seed)
    actions = torch.tensor(list(itertools.product(range(a), repeat=n)))
    all_qs = torch.randn(n, a, generator=g).expand(len(actions), n, a)
    return JointAction(all_qs, torch.ones_like(all_qs, dtype=torch.bool), actions)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 4))
def test_the_best_joint_action_of_qplex_is_that_of_the_individual_ones(seed, n, a):
    torch.manual_seed(seed)
    mixer, one = scaled(Qplex(n, a, 3, 2, 5, 6), 2), joint(n, a, seed)
    values = mixer.value(one, torch.randn(3).expand(len(one.actions), 3))
    assert one.actions[values.argmax()].tolist() == one.best_actions[0].tolist()


def test_qplex_at_the_best_joint_action_is_its_forward_pass():
    torch.manual_seed(0)
    mixer, one, state = Qplex(2, 3, 4), joint(2, 3), torch.randn(4).expand(9, 4)
    best = (one.actions == one.best_actions).all(-1)
    assert torch.allclose(mixer.value(one, state)[best], mixer(one.best_qs, state)[best])
    assert (mixer.importance(state, one.one_hot(one.actions)) > 0).all()


def test_qplex_asks_for_lambda_only_where_an_agent_loses_and_learns_the_same(monkeypatch):
    torch.manual_seed(0)
    mixer, one, state = scaled(Qplex(2, 3, 4), 2).double(), joint(2, 3), torch.randn(9, 4, dtype=torch.float64)
    qs = one.all_qs.double().requires_grad_()
    one = JointAction(qs, one.available, one.actions)
    scale = mixer(torch.eye(2).double().unsqueeze(1).expand(2, 9, 2), state) - mixer(torch.zeros(9, 2).double(), state)
    advantage = (scale.T * (one.qs - one.best_qs)).detach()
    everywhere = mixer.importance(state, one.one_hot(one.actions))
    expected = mixer(one.qs, state) + ((everywhere - 1) * advantage).sum(-1)
    asked = []
    monkeypatch.setattr(Qplex, "importance", watched(Qplex.importance, asked))
    value = mixer.value(one, state)
    assert torch.allclose(value, expected, rtol=1e-12) and asked == [8]
    weight, learnt = torch.randn(9, dtype=torch.float64), [*mixer.parameters(), qs]
    found, right = (torch.autograd.grad((weight * v).sum(), learnt, retain_graph=True) for v in (value, expected))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-15) for a, b in zip(found, right, strict=True))
    best = JointAction(qs, one.available, one.best_actions)
    assert torch.equal(mixer.value(best, state), mixer(one.best_qs, state)) and asked == [8, 0]


def watched(function, asked):
    """`function`, which also notes how many rows it is asked for."""

    def call(self, state, actions):
        asked.append(len(state))
        return function(self, state, actions)

    return call


def test_parallel_layers_are_so_many_linear_ones():
    torch.manual_seed(0)
    layers, shared = ParallelLinear(4, 3, 2), nn.Linear(3, 8)
    x, each = torch.randn(3, 5), torch.randn(2, 3, 5)
    expected = [layers.weight[1 + k].T @ each[k] + layers.bias[1 + k].T for k in range(2)]
    assert torch.allclose(layers(each, 1), torch.stack(expected), atol=1e-6)
    assert torch.allclose(side_by_side(shared, x, 2, 1, 2), shared(x.T).T[2:6].view(2, 2, 5), atol=1e-6)
    assert torch.allclose(side_by_side(shared, x, 2, 1), shared(x.T).T[2:].view(3, 2, 5), atol=1e-6)


def test_an_unavailable_action_is_never_the_best_that_qplex_compares_with():
    torch.manual_seed(0)
    mixer, one, state = Qplex(2, 3, 4), joint(2, 3), torch.randn(4).expand(9, 4)
    available = one.available.clone()
    available[:, 0, one.best_actions[0, 0]] = False
    fewer = JointAction(one.all_qs, available, one.actions)
    allowed = available.gather(-1, one.actions.unsqueeze(-1)).squeeze(-1).all(-1)
    values = mixer.value(fewer, state)
    assert (one.actions[allowed][values[allowed].argmax()] == fewer.best_actions[0]).all()


def test_qtran_holds_the_sum_to_the_joint_value_without_moving_it():
    torch.manual_seed(0)
    mixer, state = Qtran(2, 3, 4, 8, lambda_opt=0.7, lambda_nopt=0.3), torch.randn(4)
    qs = torch.randn(2, 3, requires_grad=True)
    for actions in itertools.product(range(3), repeat=2):
        one = JointAction(qs[None], torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([actions]))
        hot = [torch.eye(3)[a] for a in actions], [torch.eye(3)[int(row.argmax())] for row in qs]
        taken, top = (mixer.joint(torch.cat([state, *rows]))[0] for rows in hot)
        v = mixer.of_state(state)[0]
        opt, below = qs.max(1).values.sum() + v - top, qs[0, actions[0]] + qs[1, actions[1]] + v - taken
        value = mixer.value(one, state[None])
        given_ = mixer.constraint(one, state[None], value)
        assert torch.allclose(value, taken) and torch.allclose(given_, 0.7 * opt**2 + 0.3 * below.clamp(max=0) ** 2)
        moved = torch.autograd.grad(given_.sum(), [*mixer.joint.parameters(), qs], allow_unused=True)
        assert all(g is None for g in moved[:-1]) and moved[-1].any()


def test_weights_are_those_of_the_paper():
    one = joint(2, 2)
    u_max = one.best_actions[0].tolist()
    q_tot, target, best = torch.tensor([0.0, 3, 5, 1]), torch.tensor([1.0, 2, 4, 9]), torch.full((4,), 3.0)
    for weighting, full in (
        ("cw", [row.tolist() == u_max or float(y) > 3 for row, y in zip(one.actions, target, strict=True)]),
        ("ow", [True, False, False, True]),
    ):
        mixer = Wqmix(2, 3, weighting=weighting, alpha=0.25)
        assert mixer.weight(one, q_tot, target, best).tolist() == [1.0 if yes else 0.25 for yes in full]


def test_the_unrestricted_mixer_is_its_formula_and_may_fall_where_a_q_rises():
    torch.manual_seed(0)
    free = FeedForward(3, 4, 8)
    qs, state = torch.randn(50, 3), torch.randn(50, 4)
    x = torch.cat([qs, state], -1)
    for layer in (0, 2, 4):
        x = torch.relu(x @ free.mixed[layer].weight.T + free.mixed[layer].bias)
    v = torch.relu(state @ free.of_state[0].weight.T + free.of_state[0].bias) @ free.of_state[2].weight.T
    expected = x @ free.mixed[6].weight.T + free.mixed[6].bias + v + free.of_state[2].bias
    assert torch.allclose(free(qs, state), expected[:, 0], atol=1e-6)
    assert not free.monotone and (gradient(free, qs, state) < 0).any()


@pytest.mark.parametrize("name", sorted(set(registry.choices("mixer")) - {"tfcaf", "none"}))
@pytest.mark.parametrize("env", ["lbf", "matrix"])
def test_every_mixer_gives_each_agent_its_credit(name, env):
    torch.manual_seed(0)
    made = make_env(config_class("env", env)(), 5, 0)
    mixer, qs, state = (
        make_mixer(config_class("mixer", name)(), made),
        torch.randn(5, made.n_agents),
        made.reset().state,
    )
    given_ = credit(mixer, qs, state)
    step = 1e-3 * torch.eye(made.n_agents, dtype=torch.float64)
    mixer, qs, state = mixer.double(), qs.double(), state.double()
    for i in range(made.n_agents):
        with torch.no_grad():
            slope = (mixer(qs + step[i], state) - mixer(qs - step[i], state)) / 2e-3
        assert torch.allclose(given_[:, i].double(), slope, rtol=1e-2, atol=1e-3)
