"""The mixers qatten, qplex, qfix, qtran and wqmix: their published formulas, IGM, weights and credit."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qllm_exp.config import registry
from qllm_exp.config.load import config_class
from qllm_exp.envs import make_env
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.explain.watch_episode import credit
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.base import JointAction
from qllm_exp.mixers.qatten import OwnState, Qatten
from qllm_exp.mixers.qfix import Qfix
from qllm_exp.mixers.qplex import Qplex
from qllm_exp.mixers.qtran import Qtran
from qllm_exp.mixers.wqmix import FeedForward, Wqmix
from qllm_exp.networks.layers import ParallelLinear, grouped_linear
from tests.unit.mixers.test_base import gradient

INF = math.inf
VARIANTS = ("sum", "mono", "lin")  # of QFIX


def layout(n, extra=2):
    """A layout with x and y of each agent, then columns of no agent."""
    fields = [StateField("agent", i, "position", ("x", "y"), -INF, INF) for i in range(n)]
    names = tuple(f"c{k}" for k in range(extra))
    return StateLayout.from_fields([*fields, StateField("match", None, "rest", names, -INF, INF)])


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
def test_qatten_wqmix_qplex_qfix_and_qtran_never_fall_where_a_q_rises(seed, n, scale):
    torch.manual_seed(seed)
    mixers = [Qatten(n, layout(n), 2, 5, 4), Wqmix(n, 2 * n + 2, 4, 5, 6), Qplex(n, 3, 2 * n + 2, 2, 5, 6)]
    mixers += [Qfix(n, 3, 2 * n + 2, variant, embed=4, hypernet=5) for variant in VARIANTS]
    for mixer in [*mixers, Qtran(n, 3, 2 * n + 2, 6)]:
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
    assert OwnState(2, StateLayout.from_fields(fields))(state).tolist() == [[10, 11, 12, 0], [16, 17, 0, 15]]


def test_an_agent_without_fields_is_identified_by_its_index():
    state_layout = StateLayout.from_fields([StateField("environment", None, "state", ("a", "b"), -INF, INF)])
    assert OwnState(2, state_layout)(torch.tensor([[5.0, 6.0]])).tolist() == [[[5, 6, 1, 0], [5, 6, 0, 1]]]


@pytest.mark.parametrize("env_name", ["lbf", "mpe", "matrix", "pettingzoo"])
def test_the_environments_name_each_agents_part_of_the_state(env_name):
    env = make_env(config_class("env", env_name)(), 2, 0)
    own = OwnState(env.n_agents, env.layout)
    assert own.by_name and own(env.reset().state).shape == (2, env.n_agents, own.width)
    env.close()


def all_joint_actions(n, a, seed=0):
    """Random Qs in one state, with every joint action [a ** n, n]."""
    g = torch.Generator().manual_seed(seed)
    actions = torch.tensor(list(itertools.product(range(a), repeat=n)))
    all_qs = torch.randn(n, a, generator=g).expand(len(actions), n, a)
    return JointAction(all_qs, torch.ones_like(all_qs, dtype=torch.bool), actions)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 4))
def test_the_best_joint_action_of_qplex_is_that_of_the_individual_ones(seed, n, a):
    torch.manual_seed(seed)
    mixer, joint = scaled(Qplex(n, a, 3, 2, 5, 6), 2), all_joint_actions(n, a, seed)
    values = mixer.q_tot(joint, torch.randn(3).expand(len(joint.actions), 3))
    assert joint.actions[values.argmax()].tolist() == joint.best_actions[0].tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 4), st.sampled_from(VARIANTS), st.booleans(), st.booleans()
)
def test_the_best_joint_action_of_qfix_is_that_of_the_individual_ones(seed, n, a, variant, additive, masked):
    torch.manual_seed(seed)
    mixer, joint = scaled(Qfix(n, a, 3, variant, additive, 4, 5), 3), all_joint_actions(n, a, seed)
    available = joint.available.clone()
    if masked:
        available[:, 0, joint.best_actions[0, 0]] = False
    joint = JointAction(joint.all_qs, available, joint.actions)
    allowed = available.gather(-1, joint.actions.unsqueeze(-1)).squeeze(-1).all(-1)
    state = torch.randn(3).expand(len(joint.actions), 3)
    values = mixer.q_tot(joint, state)[allowed]
    assert joint.actions[allowed][values.argmax()].tolist() == joint.best_actions[0].tolist()
    w, bound = mixer.weight(joint, state), -1 if additive else 0
    assert w.shape == (len(state), n if variant == "lin" else 1) and (w >= bound).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_qfix_and_additive_qfix_are_the_same_functions(variant):
    torch.manual_seed(0)
    joint, state = all_joint_actions(2, 3), torch.randn(4).expand(9, 4)
    plain, additive = (Qfix(2, 3, 4, variant, kind) for kind in (False, True))
    additive.load_state_dict(plain.state_dict())
    with torch.no_grad():  # outputs x of a w > 0 are those of the additive w = x - 1
        plain.weights[2].weight.abs_()
        plain.weights[2].bias.abs_()
        additive.weights.load_state_dict(plain.weights.state_dict())
        additive.weights[2].bias -= 1
    w = plain.weight(joint, state)
    assert torch.allclose(additive.weight(joint, state), w - 1, atol=1e-6)
    fixee_best, bias = plain.fixee(joint.best_qs, state), plain.bias(state).squeeze(-1)
    assert torch.allclose(additive.q_tot(joint, state) - fixee_best, plain.q_tot(joint, state), atol=1e-5)
    best = (joint.actions == joint.best_actions).all(-1)
    assert torch.allclose(plain.q_tot(joint, state)[best], bias[best])
    assert torch.allclose(additive.q_tot(joint, state)[best], additive(joint.best_qs, state)[best], atol=1e-6)
    if variant == "lin":
        advantage = joint.qs - joint.best_qs
        assert torch.allclose(plain.q_tot(joint, state), (w * advantage).sum(-1) + bias, atol=1e-5)


def test_agents_learn_from_additive_qfix_as_from_what_it_is_added_to():
    torch.manual_seed(0)
    state = torch.randn(4).expand(9, 4)
    for variant in VARIANTS:
        mixer, joint = scaled(Qfix(2, 3, 4, variant), 2), all_joint_actions(2, 3)
        qs = joint.all_qs.clone().requires_grad_()
        joint = JointAction(qs, joint.available, joint.actions)
        (slopes,) = torch.autograd.grad(mixer.q_tot(joint, state).sum(), qs, retain_graph=True)
        (expected,) = torch.autograd.grad(mixer.fixee(joint.qs, state).sum(), qs)
        assert torch.allclose(slopes, expected)


def test_qplex_at_the_best_joint_action_is_its_forward_pass():
    torch.manual_seed(0)
    mixer, joint, state = Qplex(2, 3, 4), all_joint_actions(2, 3), torch.randn(4).expand(9, 4)
    best = (joint.actions == joint.best_actions).all(-1)
    assert torch.allclose(mixer.q_tot(joint, state)[best], mixer(joint.best_qs, state)[best])
    assert (mixer.importance(state, joint.one_hot(joint.actions)) > 0).all()


def test_qplex_computes_lambda_only_for_actions_that_are_not_greedy_and_learns_the_same(monkeypatch):
    torch.manual_seed(0)
    mixer, joint, state = (
        scaled(Qplex(2, 3, 4), 2).double(),
        all_joint_actions(2, 3),
        torch.randn(9, 4, dtype=torch.float64),
    )
    qs = joint.all_qs.double().requires_grad_()
    joint = JointAction(qs, joint.available, joint.actions)
    scale = mixer(torch.eye(2).double().unsqueeze(1).expand(2, 9, 2), state) - mixer(torch.zeros(9, 2).double(), state)
    advantage = (scale.T * (joint.qs - joint.best_qs)).detach()
    everywhere = mixer.importance(state, joint.one_hot(joint.actions))
    expected = mixer(joint.qs, state) + ((everywhere - 1) * advantage).sum(-1)
    rows = []
    monkeypatch.setattr(Qplex, "importance", counting_rows(Qplex.importance, rows))
    value = mixer.q_tot(joint, state)
    assert torch.allclose(value, expected, rtol=1e-12) and rows == [8]
    weight, inputs = torch.randn(9, dtype=torch.float64), [*mixer.parameters(), qs]
    actual, reference = (torch.autograd.grad((weight * v).sum(), inputs, retain_graph=True) for v in (value, expected))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-15) for a, b in zip(actual, reference, strict=True))
    best = JointAction(qs, joint.available, joint.best_actions)
    assert torch.equal(mixer.q_tot(best, state), mixer(joint.best_qs, state)) and rows == [8, 0]


def counting_rows(function, rows):
    """`function`, which also records the number of rows of each call."""

    def call(self, state, actions):
        rows.append(len(state))
        return function(self, state, actions)

    return call


def test_parallel_layers_equal_separate_linear_layers():
    torch.manual_seed(0)
    layers, shared = ParallelLinear(4, 3, 2), nn.Linear(3, 8)
    x, inputs = torch.randn(3, 5), torch.randn(2, 3, 5)
    expected = [layers.weight[1 + k].T @ inputs[k] + layers.bias[1 + k].T for k in range(2)]
    assert torch.allclose(layers(inputs, 1), torch.stack(expected), atol=1e-6)
    assert torch.allclose(grouped_linear(shared, x, 2, 1, 2), shared(x.T).T[2:6].view(2, 2, 5), atol=1e-6)
    assert torch.allclose(grouped_linear(shared, x, 2, 1), shared(x.T).T[2:].view(3, 2, 5), atol=1e-6)


def test_an_unavailable_action_is_never_the_best_that_qplex_compares_with():
    torch.manual_seed(0)
    mixer, joint, state = Qplex(2, 3, 4), all_joint_actions(2, 3), torch.randn(4).expand(9, 4)
    available = joint.available.clone()
    available[:, 0, joint.best_actions[0, 0]] = False
    fewer = JointAction(joint.all_qs, available, joint.actions)
    allowed = available.gather(-1, joint.actions.unsqueeze(-1)).squeeze(-1).all(-1)
    values = mixer.q_tot(fewer, state)
    assert (joint.actions[allowed][values[allowed].argmax()] == fewer.best_actions[0]).all()


def test_qtran_ties_the_sum_to_the_joint_value_without_changing_the_joint_networks():
    torch.manual_seed(0)
    mixer, state = Qtran(2, 3, 4, 8, lambda_opt=0.7, lambda_nopt=0.3), torch.randn(4)
    qs = torch.randn(2, 3, requires_grad=True)
    for actions in itertools.product(range(3), repeat=2):
        joint = JointAction(qs[None], torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([actions]))
        one_hots = [torch.eye(3)[a] for a in actions], [torch.eye(3)[int(row.argmax())] for row in qs]
        q_jt, best_q_jt = (mixer.joint(torch.cat([state, *rows]))[0] for rows in one_hots)
        v = mixer.of_state(state)[0]
        opt, nopt = qs.max(1).values.sum() + v - best_q_jt, qs[0, actions[0]] + qs[1, actions[1]] + v - q_jt
        value = mixer.q_tot(joint, state[None])
        loss = mixer.auxiliary_loss(joint, state[None], value)
        assert torch.allclose(value, q_jt) and torch.allclose(loss, 0.7 * opt**2 + 0.3 * nopt.clamp(max=0) ** 2)
        moved = torch.autograd.grad(loss.sum(), [*mixer.joint.parameters(), qs], allow_unused=True)
        assert all(g is None for g in moved[:-1]) and moved[-1].any()


def test_weights_are_those_of_the_paper():
    joint = all_joint_actions(2, 2)
    u_max = joint.best_actions[0].tolist()
    q_tot, target, best = torch.tensor([0.0, 3, 5, 1]), torch.tensor([1.0, 2, 4, 9]), torch.full((4,), 3.0)
    for weighting, full_weight in (
        ("cw", [row.tolist() == u_max or float(y) > 3 for row, y in zip(joint.actions, target, strict=True)]),
        ("ow", [True, False, False, True]),
    ):
        mixer = Wqmix(2, 3, weighting=weighting, alpha=0.25)
        assert mixer.td_weight(joint, q_tot, target, best).tolist() == [
            1.0 if is_full else 0.25 for is_full in full_weight
        ]


def test_the_unrestricted_mixer_is_its_formula_and_may_fall_where_a_q_rises():
    torch.manual_seed(0)
    mixer = FeedForward(3, 4, 8)
    qs, state = torch.randn(50, 3), torch.randn(50, 4)
    x = torch.cat([qs, state], -1)
    for layer in (0, 2, 4):
        x = torch.relu(x @ mixer.mixed[layer].weight.T + mixer.mixed[layer].bias)
    v = torch.relu(state @ mixer.of_state[0].weight.T + mixer.of_state[0].bias) @ mixer.of_state[2].weight.T
    expected = x @ mixer.mixed[6].weight.T + mixer.mixed[6].bias + v + mixer.of_state[2].bias
    assert torch.allclose(mixer(qs, state), expected[:, 0], atol=1e-6)
    assert not mixer.monotone and (gradient(mixer, qs, state) < 0).any()


@pytest.mark.parametrize("name", sorted(set(registry.choices("mixer")) - {"tfcaf", "none"}))
@pytest.mark.parametrize("env_name", ["lbf", "matrix"])
def test_every_mixer_gives_each_agent_its_credit(name, env_name):
    torch.manual_seed(0)
    env = make_env(config_class("env", env_name)(), 5, 0)
    mixer, qs, state = (
        make_mixer(config_class("mixer", name)(), env),
        torch.randn(5, env.n_agents),
        env.reset().state,
    )
    credits = credit(mixer, qs, state)
    step = 1e-3 * torch.eye(env.n_agents, dtype=torch.float64)
    mixer, qs, state = mixer.double(), qs.double(), state.double()
    for i in range(env.n_agents):
        with torch.no_grad():
            slope = (mixer(qs + step[i], state) - mixer(qs - step[i], state)) / 2e-3
        assert torch.allclose(credits[:, i].double(), slope, rtol=1e-2, atol=1e-3)
