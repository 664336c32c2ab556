"""The probes of the verifier on hand-written programs, and the whole cascade on a task."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qllm_exp.credit.operations import FAST_CALLS
from qllm_exp.credit.probe_states import describe_state, extreme_states, moderate_mask, random_states, task_states
from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.envs import Observation, StateField, StateLayout, Step, TaskDescription, TeamEnv, make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.smax import Config as SmaxConfig
from qllm_exp.generation import probes
from qllm_exp.generation.probes import MAX_BIAS, MAX_WEIGHT, Probe
from qllm_exp.generation.verify import Accepted, verify, verify_all

HEAD = "def credit_assignment(agents_q, global_state):\n"
N, LENGTH = 3, 10
INF = math.inf


class Counting(TeamEnv):
    """State [copy, episode, step, code]; copy k ends after LENGTH - k steps."""

    layout = StateLayout.from_fields(
        (
            StateField("match", None, "copy", ("k",), 0.0, 7.0),
            StateField("match", None, "episode", ("k",), -INF, INF),
            StateField("match", None, "step", ("t",), 0.0, INF),
            StateField("match", None, "code", ("k",), 0.0, 1.0, special={-1.0: "none"}),
        )
    )
    task = TaskDescription("counting", "x", "count", "none", ("wait", "go"), f"after {LENGTH} steps", N)
    n_agents, n_actions, obs_dim, episode_limit = N, 2, 1, LENGTH

    def __init__(self, num_envs: int = 4) -> None:
        self.num_envs, self.device, self.episode = num_envs, torch.device("cpu"), 0

    def _seen(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        state = torch.zeros(self.num_envs, 4)
        state[:, 0], state[:, 1], state[:, 2] = torch.arange(self.num_envs), self.episode, self.step_count
        return torch.zeros(self.num_envs, N, 1), state, torch.ones(self.num_envs, N, 2, dtype=torch.bool)

    def reset(self) -> Observation:
        self.episode, self.step_count = self.episode + 1, 0
        return Observation(*self._seen())

    def step(self, actions: torch.Tensor) -> Step:
        self.step_count += 1
        ended = self.step_count >= LENGTH - torch.arange(self.num_envs)
        return Step(*self._seen(), torch.zeros(self.num_envs), ended, torch.zeros_like(ended))

    def seed(self, seed: int) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


def test_task_states_come_from_many_steps_and_episodes_before_they_end() -> None:
    states = task_states(Counting(), 256)
    assert states.shape == (256, 4)
    assert len(states[:, 1].unique()) >= 3 and states[:, 2].unique().tolist() == list(range(9))
    assert (states[:, 2] < LENGTH - states[:, 0]).all()
    assert len(task_states(Counting(), 5)) == 5
    assert torch.equal(task_states(Counting(), 100), task_states(Counting(), 100))


def test_extreme_states_have_every_end_and_code_alone_and_together_without_an_episode() -> None:
    env = Counting()
    states = extreme_states(env)
    assert env.episode == 0 and torch.equal(states, extreme_states(env)) and len(states) <= 200
    assert {-1000.0, -10.0, 10.0, 1000.0} <= set(states[:, 1].tolist())
    assert {0.0, 10.0, 1000.0} <= set(states[:, 2].tolist()) and states[:, 2].min() == 0
    assert {0.0, 1.0, -1.0} <= set(states[:, 3].tolist())
    for row in ([0, 0, 0, 0], [0, -10, 0, 0], [7, 10, 10, 1], [7, 1000, 1000, 1]):
        assert (states == torch.tensor(row, dtype=torch.float32)).all(1).any(), row
    alone = (states[:, 1] == 1000) & (states[:, 0] > 0) & (states[:, 0] < 7)
    assert alone.any()
    assert torch.equal(moderate_mask(env.layout, states), (states[:, 1].abs() <= 10) & (states[:, 2] <= 10))


def test_random_states_are_within_the_ranges_and_one_hot_fields_have_one_1() -> None:
    fields = (
        StateField("match", None, "x", ("x", "y"), -INF, INF),
        StateField("match", None, "level", ("level",), 1.0, 2.0, special={0.0: "gone"}),
        StateField("match", None, "owner", ("a", "b", "c"), 0.0, 1.0, special={0.0: "no", 1.0: "yes"}, one_hot=True),
    )
    layout = StateLayout.from_fields(fields)
    states = random_states(layout, 2000)
    assert torch.equal(states, random_states(layout, 2000))
    assert states[:, :2].abs().max() <= 10 and 0.4 < (states[:, :2].abs() <= 1).all(1).float().mean() < 0.7
    assert ((states[:, 2] == 0) | ((states[:, 2] >= 1) & (states[:, 2] <= 2))).all() and (states[:, 2] == 0).any()
    extreme = extreme_states(SimpleNamespace(layout=layout, device=torch.device("cpu")))  # type: ignore[arg-type]
    for owners in (states[:, 3:], extreme[:, 3:]):
        assert (owners.sum(1) == 1).all() and owners.max() == 1 and len(owners.unique(dim=0)) == 3


def test_extreme_states_of_a_large_layout_stay_few() -> None:
    fields = [StateField("agent", i, "position", ("x", "y"), -INF, INF) for i in range(300)]
    env = SimpleNamespace(layout=StateLayout.from_fields(fields), device=torch.device("cpu"))
    states = extreme_states(env)  # type: ignore[arg-type]
    assert states.shape == (200, 600) and states.isfinite().all()


def test_a_description_shows_unusual_fields_first() -> None:
    fields = [StateField("agent", i, "level", ("level",), 0.0, 9.0, special={5.0: "gone"}) for i in range(20)]
    state = torch.full((20,), 2.0)
    state[17], state[18] = 9.0, 5.0
    text = describe_state(StateLayout.from_fields(fields), state)
    assert "agent 17 level 9" in text and "agent 18 level 5" in text and text.endswith("; ...")


def program(*operations: list[Any], output: int = -1) -> Program:
    """Operations on value 0 = agents_q [B, 3], 1 = state [B, 4], 2 = B; results are numbered from 3."""
    last = 2 + len(operations)
    data = {"version": 1, "n_agents": N, "state_dim": 4, "constants": [], "operations": list(operations)}
    return Program.from_json(data | {"output": last if output < 0 else output})


def op(name: str, *arguments: Any, **keywords: Any) -> list[Any]:
    return [name, list(arguments), keywords]


Q, S, B = {"ref": 0}, {"ref": 1}, {"ref": 2}
MEAN = op("mean.dim", Q, [1], True)
REF = [{"ref": k} for k in range(12)]


def column(value: dict[str, int], k: int) -> list[Any]:
    return op("slice.Tensor", value, 1, k, k + 1, 1)


PROBED = [  # operations, fragment of the reason
    ([op("mean.dim", Q, [0], True), op("expand.default", REF[3], [B, N]), op("mean.dim", REF[4], [1], True)], "batch of 1 than"),
    ([MEAN, op("mul.Tensor", REF[3], 1e3)], r"agent 0 \(agents_q\[:, 0\]\) has weight 333.3 .*up to 100: normalise"),
    ([MEAN, op("add.Tensor", REF[3], 400)], r"at 0 it gives 400 .*1000 / n = 333.3"),
    ([column(Q, 0)], "agent 1 .* never gets credit"),
    ([MEAN, op("neg.default", REF[3])], "agent 0 .* negative weight, or none, in every state"),
    ([op("amax.default", Q, [1], True)], "weights depend on global_state alone"),
    ([op("exp.default", Q), op("mean.dim", REF[3], [1], True)], r"value is inf with agents_q = \[.*\] in a state within the"),
    ([op("abs.default", Q), op("sqrt.default", REF[3]), op("mean.dim", REF[4], [1], True)], "gradient in agents_q is nan"),
    ([column(S, 3), op("sqrt.default", REF[3]), MEAN, op("mul.Tensor", REF[4], REF[5])], "value is nan .*match code -1"),
    ([column(S, 2), op("sub.Tensor", REF[3], 4.5), MEAN, op("mul.Tensor", REF[4], REF[5])], r"in \d+.\d % of the task's states"),
    ([op("to.dtype", S, {"dtype": "int64"}), column(REF[3], 1), op("gather.default", Q, 1, REF[4])], "fails with 'index .* out of"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(PROBED)))
def test_the_probe_refuses_with_a_reason(number: int) -> None:
    operations, reason = PROBED[number]
    with pytest.raises(Refused, match=reason) as refused:
        probe(program(*operations))
    assert refused.value.stage == "probe"


def probe(candidate: Any, enforce: bool = True, timeout_s: float = 60) -> tuple[bool, tuple[str, ...]]:
    return Probe(Counting(), enforce, timeout_s).check(candidate)


SIGNED = [column(S, 2), op("sub.Tensor", REF[3], 4.5), column(Q, 0), op("mul.Tensor", REF[4], REF[5]), MEAN]


def test_notes_name_the_muted_agent_and_relax_leaves_signs_free() -> None:
    signed = program(*SIGNED, op("add.Tensor", REF[6], REF[7]))
    states = task_states(Counting(), 256)
    share = 100 * float((states[:, 2] - 4.5 + 1 / N < 0).float().mean())
    affine, (note,) = probe(signed)
    assert affine and note.startswith(f"the IGM gate mutes agent 0 in {share:.1f} % of the task's states")
    assert probe(signed, enforce=False) == (True, ())
    assert probe(program(MEAN, op("neg.default", REF[3])), enforce=False) == (True, ())
    assert probe(program(op("amax.default", Q, [1], True)), enforce=False) == (False, ())
    falls = program(op("amax.default", Q, [1], True), op("neg.default", REF[3]))
    _, notes = probe(falls, enforce=False)
    assert notes[0].startswith("the result falls as the value of agent 0 rises in ") and len(notes) == N


def test_scale_is_limited_only_in_states_that_play_can_reach() -> None:
    grows = (column(S, 1), op("abs.default", REF[3]), MEAN)
    assert probe(program(*grows, op("add.Tensor", REF[5], REF[4])))[0]  # |n b| = 30 within reach, 3000 beyond
    with pytest.raises(Refused, match="weight"):  # |w| = 333 within reach
        probe(program(*grows, op("mul.Tensor", REF[5], REF[4]), op("mul.Tensor", REF[6], 100)))
    with pytest.raises(Refused, match=r"weight .*e\+04 in an extreme state"):  # |w| = 33 within reach, 33,000 beyond
        probe(
            program(
                *grows,
                op("pow.Tensor_Scalar", REF[4], 2),
                op("mul.Tensor", REF[5], REF[6]),
                op("mul.Tensor", REF[7], 0.1),
            )
        )
    assert MAX_WEIGHT == 100 and MAX_BIAS == 1000


class Faulty:
    """A mean with a defect that no program can have today, but that the probe would detect."""

    def to_json(self) -> dict[str, Any]:
        return {}

    def __init__(self, spoil: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.spoil = spoil

    def __call__(self, q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self.spoil(q, states, q.mean(1, keepdim=True))


def zeroed(q: torch.Tensor, states: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    states.zero_()
    return mean


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda q, s, mean: mean + torch.rand(()), "another result in a batch of 1"),
        (lambda q, s, mean: mean + 1e-5 * torch.rand(()), "two calls with equal inputs"),
        (lambda q, s, mean: mean.roll(2, 0) if len(q) > 64 else mean, "in a batch of"),
        (lambda q, s, mean: mean + (q.max() > 50), "depends on other rows"),
        (lambda q, s, mean: mean.squeeze() if len(q) == 1 else mean, r"torch.float32 \[\] for a batch of 1"),
        (lambda q, s, mean: mean.double(), "torch.float64"),
        (zeroed, "changes its inputs"),
    ],
)
def test_the_probe_detects_results_that_depend_on_more_than_their_row(spoil: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        probe(Faulty(spoil))


def test_the_gpu_must_give_what_the_cpu_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self.clone())
    assert probe(program(MEAN)) == (True, ())
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self + 0.1)
    with pytest.raises(Refused, match="on a GPU"):
        probe(program(MEAN))


def test_slow_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="did not finish within 0 s") as refused:
        probe(program(MEAN), timeout_s=0)
    assert refused.value.stage == "limits"
    monkeypatch.setattr(probes, "MAX_SECONDS", -1.0)
    with pytest.raises(Refused, match="for 64 rows"):
        probe(program(MEAN))


def square(rows: int) -> list[list[Any]]:
    """Operations that spread a column of the state over [B, rows, rows]; the result is value 5."""
    return [
        column(S, 0),
        op("expand.default", REF[3], [B, rows * rows]),
        op("reshape.default", REF[4], [B, rows, rows]),
    ]


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (
            [
                *square(20),
                op("einsum.default", "bij,bkl,bik,bjl->b", [REF[5]] * 4),
                op("unsqueeze.default", REF[6], 1),
            ],
            "more than 4096 elements per row",
        ),
        ([*square(3), op("linalg_norm.ord_str", REF[5], "nuc", [1, 2])], "norm of vectors"),
        (
            [op("to.dtype", S, {"dtype": "int64"}), op("div.Tensor_mode", REF[3], -1, rounding_mode="trunc")],
            "divide float",
        ),
        ([op("contiguous.default", S), op("view.dtype", REF[3], {"dtype": "bool"})], "compare with 0"),
        ([op("zeros.default", [3], dtype=6)], "in the place of a dtype"),
        ([op("to.dtype", Q, 6)], "in the place of a dtype"),
        ([op("to.prim_dtype", Q, 6, True)], "not allowed"),
        ([op("remainder.int", -1, 0)], "not allowed"),
        ([op("repeat_interleave.self_Tensor", Q, REF[3], 1)], "not allowed"),
        ([op("to.device", Q, "cuda:0", {"dtype": "float32"})], "not allowed"),
    ],
)
def test_programs_that_would_abort_the_process_are_refused(operations: list[Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        program(*operations)
    assert refused.value.stage == "program"


def test_a_size_that_explodes_for_some_batch_sizes_only_is_refused_when_it_would() -> None:
    """A tent over the batch size: no elements up to 5000 and from 7000 on, 10**9 in between."""
    starts = [op("slice.Tensor", Q, 0, start, 2**62, 1) for start in (5000, 6000, 7000)]
    sizes = [op("size", {"ref": 3 + k}, 0) for k in range(3)]
    tent = [
        op("int_mul", REF[7], 2),
        op("int_add", REF[6], REF[8]),
        op("int_sub", REF[10], REF[9]),
        op("int_mul", REF[11], 10**6),
    ]
    zeros = [op("zeros.default", [{"ref": 12}]), op("sum.default", {"ref": 13}), MEAN]
    tented = program(*starts, *sizes, *tent, *zeros, op("add.Tensor", {"ref": 15}, {"ref": 14}))
    for batch in (1, 64, 4096, 7000):
        assert tented(torch.ones(batch, N), torch.zeros(batch, 4)).shape == (batch, 1)
    with pytest.raises(Refused, match="more than 4096 elements per row"):
        tented(torch.ones(6000, N), torch.zeros(6000, 4))


REDUCED = ("sum.dim_IntList", "mean.dim", "amax.default", "amin.default")
CALLS = [
    *(
        (name, [dims, keep])
        for name in REDUCED
        for dims in ([1], [-1], [1, 2], [2, -2], [0], [0, 2])
        for keep in (False, True)
    ),
    *((name, [dim, keep]) for name in ("max.dim", "min.dim") for dim in (0, 1, 2, -1) for keep in (False, True)),
    *(("softmax.int", [dim, *dtype]) for dim in (0, 1, 2, -1) for dtype in ([], [torch.float64])),
    *(("sum.dim_IntList", [None, True]), ("mean.dim", [None]), ("amax.default", []), ("amin.default", [[]])),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
@pytest.mark.parametrize("innermost", [False, True])
def test_faster_calls_give_what_the_operations_give(name: str, arguments: list[Any], innermost: bool) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    x[0, 0] = -INF
    x = x.movedim(0, -1).contiguous().movedim(-1, 0) if innermost else x
    base, overload = name.split(".")
    expected = getattr(getattr(torch.ops.aten, base), overload)(x, *arguments)
    actual = FAST_CALLS[name](x, *arguments)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("name", ["stack", "cat"])
def test_joining_in_another_memory_layout_gives_the_same(name: str, dim: int) -> None:
    parts = [torch.randn(3, 4, 5).movedim(0, -1).contiguous().movedim(-1, 0), torch.randn(3, 4, 5)]
    assert torch.equal(FAST_CALLS[f"{name}.default"](parts, dim), getattr(torch, name)(parts, dim))


def test_softmax_has_the_gradient_of_softmax() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: FAST_CALLS["softmax.int"](x, 1), x)
    torch.testing.assert_close(FAST_CALLS["softmax.int"](1e4 * x, -1), torch.softmax(1e4 * x, -1))


def test_equal_operations_are_computed_once() -> None:
    twice = program(
        column(S, 2), column(S, 2), MEAN, op("mul.Tensor", REF[5], REF[3]), op("mul.Tensor", REF[6], REF[4])
    )
    states, q = task_states(Counting(), 7), torch.randn(7, N)
    torch.testing.assert_close(twice(q, states), q.mean(1, keepdim=True) * states[:, 2:3] ** 2)
    assert len(twice._plans[q.device, frozenset()].steps) == 4


BODIES = {
    "mean": "    return agents_q.mean(1, keepdim=True)",
    "extreme": "    w = torch.where(global_state[:, 12:14] < 0, 0.5, float('nan'))\n    return (w * agents_q).sum(1, True)",
    "attack": "    import os\n    return agents_q",
    "table": "    t = torch.ones(4)\n    return (t[global_state[:, 12:14].long() + 1] * agents_q).sum(1, True)",
    "loaded": "    near = torch.where(global_state[:, 8:9] > 0, 0.7, 0.3)\n    return (near * agents_q).sum(1, True)",
}


def test_the_whole_cascade_verifies_each_candidate_independently() -> None:
    env = make_env(LbfConfig(), 8, 0)
    verdicts = dict(zip(BODIES, verify_all([HEAD + body for body in BODIES.values()], env, enforce=True), strict=True))
    mean, loaded = verdicts["mean"], verdicts["loaded"]
    assert isinstance(mean, Accepted) and isinstance(loaded, Accepted)
    assert (mean.function, mean.affine, mean.notes) == ("credit_assignment", True, ())
    assert mean.source == HEAD + BODIES["mean"] and mean.program.n_agents == env.n_agents
    refused = {name: verdict.stage for name, verdict in verdicts.items() if isinstance(verdict, Refused)}
    assert refused == {"extreme": "probe", "attack": "static", "table": "run"}
    with pytest.raises(Refused, match="'import os'"):
        verify(HEAD + BODIES["attack"], env, enforce=True)


BATTLE = '''
import torch


def credit_assignment(agents_q, global_state):
    """Each living agent counts by how close it is to a living enemy, and by whether it can shoot."""
    n, enemies, columns = 3, 3, 10
    units = global_state[:, : (n + enemies) * columns].reshape(-1, n + enemies, columns)
    alive = (units[:, :, 0] > 0).to(agents_q.dtype)
    offset = units[:, :n, 1:3].unsqueeze(2) - units[:, n:, 1:3].unsqueeze(1)
    distance = torch.sqrt((offset * offset).sum(dim=3) + 1e-6)
    hidden = (1.0 - alive[:, n:]).unsqueeze(1) * 10.0
    closest = torch.min(distance + hidden, dim=2).values.clamp(max=1.5)
    weights = torch.softmax(alive[:, :n] - closest - 0.2 * units[:, :n, 3], dim=1)
    return (weights * agents_q).sum(dim=1, keepdim=True)
'''


def test_a_function_that_reads_the_units_of_a_battle_is_accepted() -> None:
    env = make_env(SmaxConfig(task="3m"), 8, 0)
    accepted = verify(BATTLE, env, enforce=True)
    assert accepted.affine
    state = env.reset().state[:1]
    dead = state.clone()
    dead[:, env.layout.find("agent", "health", 1).columns] = 0
    values = torch.tensor([[0.0, 1.0, 0.0]])
    assert accepted.program(values, dead).item() < 0.5 * accepted.program(values, state).item()
