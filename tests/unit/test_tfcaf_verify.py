"""The probes of the verifier, on programs written by hand, and the whole cascade on a task."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qllm_exp.credit.operations import FASTER
from qllm_exp.credit.probe_states import describe, extreme_states, moderate, task_states
from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.envs import Observation, StateField, StateLayout, Step, TaskDescription, TeamEnv, make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.generation import verify as verifier
from qllm_exp.generation.verify import MAX_BIAS, MAX_WEIGHT, Accepted, verify, verify_all

HEAD = "def credit_assignment(agents_q, global_state):\n"
N, LENGTH = 3, 10
INF = math.inf


class Counting(TeamEnv):
    """State [copy, episode, step, code]; copy k ends after LENGTH - k steps."""

    layout = StateLayout.of(
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


def test_task_states_come_from_many_steps_and_episodes_and_from_copies_in_play() -> None:
    states = task_states(Counting(), 256)
    assert states.shape == (256, 4)
    assert len(states[:, 1].unique()) >= 3 and states[:, 2].unique().tolist() == list(range(9))
    assert (states[:, 2] < LENGTH - states[:, 0]).all()
    assert len(task_states(Counting(), 5)) == 5
    assert torch.equal(task_states(Counting(), 100), task_states(Counting(), 100))


def test_extreme_states_meet_every_end_and_code_alone_and_together_without_an_episode() -> None:
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
    assert torch.equal(moderate(env.layout, states), (states[:, 1].abs() <= 10) & (states[:, 2] <= 10))


def test_extreme_states_of_a_large_layout_stay_few() -> None:
    fields = [StateField("agent", i, "position", ("x", "y"), -INF, INF) for i in range(300)]
    env = SimpleNamespace(layout=StateLayout.of(fields), device=torch.device("cpu"))
    states = extreme_states(env)  # type: ignore[arg-type]
    assert states.shape == (200, 600) and states.isfinite().all()


def test_a_description_names_what_stands_out_first() -> None:
    fields = [StateField("agent", i, "level", ("level",), 0.0, 9.0, special={5.0: "gone"}) for i in range(20)]
    state = torch.full((20,), 2.0)
    state[17], state[18] = 9.0, 5.0
    text = describe(StateLayout.of(fields), state)
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
AT = [{"ref": k} for k in range(12)]


def column(value: dict[str, int], k: int) -> list[Any]:
    return op("slice.Tensor", value, 1, k, k + 1, 1)


PROBED = [  # operations, whether the gate is on, what the reason says
    ([op("mean.dim", Q, [0], True), op("expand.default", AT[3], [B, N]), op("mean.dim", AT[4], [1], True)], "batch of 1 than"),
    ([MEAN, op("mul.Tensor", AT[3], 1e3)], r"agent 0 \(agents_q\[:, 0\]\) has weight 333.3 .*up to 100 / n = 33.33: normalise"),
    ([MEAN, op("add.Tensor", AT[3], 400)], r"at 0 it gives 400 .*1000 / n = 333.3"),
    ([column(Q, 0)], "agent 1 .* never gets credit"),
    ([MEAN, op("neg.default", AT[3])], "agent 0 .* negative weight, or none, in every state"),
    ([op("amax.default", Q, [1], True)], "weights depend on global_state alone"),
    ([op("exp.default", Q), op("mean.dim", AT[3], [1], True)], r"value is inf with agents_q = \[.*\] in a state of the task"),
    ([op("abs.default", Q), op("sqrt.default", AT[3]), op("mean.dim", AT[4], [1], True)], "gradient in agents_q is nan"),
    ([column(S, 3), op("sqrt.default", AT[3]), MEAN, op("mul.Tensor", AT[4], AT[5])], "value is nan .*match code -1"),
    ([column(S, 2), op("sub.Tensor", AT[3], 4.5), MEAN, op("mul.Tensor", AT[4], AT[5])], r"in \d+.\d % of the task's states"),
    ([op("to.dtype", S, {"dtype": "int64"}), column(AT[3], 1), op("gather.default", Q, 1, AT[4])], "fails with 'index .* out of"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(PROBED)))
def test_the_probe_refuses_in_words(number: int) -> None:
    operations, reason = PROBED[number]
    with pytest.raises(Refused, match=reason) as refused:
        judge(program(*operations))
    assert refused.value.stage == "probe"


def judge(tried: Any, enforce: bool = True, timeout_s: float = 60) -> tuple[bool, tuple[str, ...]]:
    return verifier._Probe(Counting(), enforce, timeout_s).judge(tried)


SIGNED = [column(S, 2), op("sub.Tensor", AT[3], 4.5), column(Q, 0), op("mul.Tensor", AT[4], AT[5]), MEAN]


def test_the_gate_notes_which_agent_it_mutes_where_and_relax_leaves_signs_free() -> None:
    signed = program(*SIGNED, op("add.Tensor", AT[6], AT[7]))
    states = task_states(Counting(), 256)
    share = 100 * float((states[:, 2] - 4.5 + 1 / N < 0).float().mean())
    affine, (note,) = judge(signed)
    assert affine and note.startswith(f"the IGM gate mutes agent 0 in {share:.1f} % of the task's states")
    assert judge(signed, enforce=False) == (True, ())
    assert judge(program(MEAN, op("neg.default", AT[3])), enforce=False) == (True, ())
    assert judge(program(op("amax.default", Q, [1], True)), enforce=False) == (False, ())


def test_scale_is_measured_within_reach_and_not_at_a_thousand() -> None:
    grows = (column(S, 1), op("abs.default", AT[3]), MEAN)
    assert judge(program(*grows, op("add.Tensor", AT[5], AT[4])))[0]  # |n b| = 30 within reach, 3000 beyond
    with pytest.raises(Refused, match="weight"):  # |n w| = 1000 within reach
        judge(program(*grows, op("mul.Tensor", AT[5], AT[4]), op("mul.Tensor", AT[6], 100)))
    assert MAX_WEIGHT == 100 and MAX_BIAS == 1000


class Faulty:
    """The mean, spoilt: what no program does today and the probe would notice."""

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
def test_the_probe_notices_results_that_are_not_the_rows_own(spoil: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        judge(Faulty(spoil))


def test_the_gpu_must_give_what_the_cpu_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self.clone())
    assert judge(program(MEAN)) == (True, ())
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self + 0.1)
    with pytest.raises(Refused, match="on a GPU"):
        judge(program(MEAN))


def test_slow_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="did not finish within 0 s") as refused:
        judge(program(MEAN), timeout_s=0)
    assert refused.value.stage == "limits"
    monkeypatch.setattr(verifier, "MAX_SECONDS", 0.0)
    with pytest.raises(Refused, match="for 64 rows"):
        judge(program(MEAN))


def square(rows: int) -> list[list[Any]]:
    """Operations that spread a column of the state over [B, rows, rows]; the result is value 5."""
    return [column(S, 0), op("expand.default", AT[3], [B, rows * rows]), op("reshape.default", AT[4], [B, rows, rows])]


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (
            [*square(20), op("einsum.default", "bij,bkl,bik,bjl->b", [AT[5]] * 4), op("unsqueeze.default", AT[6], 1)],
            "more than 4096 elements per row",
        ),
        ([*square(3), op("linalg_norm.ord_str", AT[5], "nuc", [1, 2])], "norm of vectors"),
        (
            [op("to.dtype", S, {"dtype": "int64"}), op("div.Tensor_mode", AT[3], -1, rounding_mode="trunc")],
            "divide float",
        ),
        ([op("contiguous.default", S), op("view.dtype", AT[3], {"dtype": "bool"})], "compare with 0"),
        ([op("zeros.default", [3], dtype=6)], "in the place of a dtype"),
        ([op("to.dtype", Q, 6)], "in the place of a dtype"),
        ([op("to.prim_dtype", Q, 6, True)], "not allowed"),
        ([op("remainder.int", -1, 0)], "not allowed"),
        ([op("repeat_interleave.self_Tensor", Q, AT[3], 1)], "not allowed"),
        ([op("to.device", Q, "cuda:0", {"dtype": "float32"})], "not allowed"),
    ],
)
def test_programs_that_would_take_the_process_down_are_refused(operations: list[Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        program(*operations)
    assert refused.value.stage == "program"


def test_a_size_that_explodes_for_some_batch_sizes_only_is_refused_when_it_would() -> None:
    """A tent over the batch size: no elements up to 5000 and from 7000 on, 10**9 in between."""
    starts = [op("slice.Tensor", Q, 0, at, 2**62, 1) for at in (5000, 6000, 7000)]
    sizes = [op("size", {"ref": 3 + k}, 0) for k in range(3)]
    tent = [
        op("int_mul", AT[7], 2),
        op("int_add", AT[6], AT[8]),
        op("int_sub", AT[10], AT[9]),
        op("int_mul", AT[11], 10**6),
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
    found = FASTER[name](x, *arguments)
    for one, other in zip(*((r if isinstance(r, tuple) else (r,)) for r in (expected, found)), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("name", ["stack", "cat"])
def test_joining_in_another_layout_gives_the_same(name: str, dim: int) -> None:
    parts = [torch.randn(3, 4, 5).movedim(0, -1).contiguous().movedim(-1, 0), torch.randn(3, 4, 5)]
    assert torch.equal(FASTER[f"{name}.default"](parts, dim), getattr(torch, name)(parts, dim))


def test_softmax_has_the_gradient_of_softmax() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: FASTER["softmax.int"](x, 1), x)
    torch.testing.assert_close(FASTER["softmax.int"](1e4 * x, -1), torch.softmax(1e4 * x, -1))


def test_what_is_written_twice_is_computed_once() -> None:
    twice = program(column(S, 2), column(S, 2), MEAN, op("mul.Tensor", AT[5], AT[3]), op("mul.Tensor", AT[6], AT[4]))
    states, q = task_states(Counting(), 7), torch.randn(7, N)
    torch.testing.assert_close(twice(q, states), q.mean(1, keepdim=True) * states[:, 2:3] ** 2)
    assert len(twice._plans[q.device].steps) == 4


BODIES = {
    "mean": "    return agents_q.mean(1, keepdim=True)",
    "extreme": "    w = torch.where(global_state[:, 12:14] < 0, 0.5, float('nan'))\n    return (w * agents_q).sum(1, True)",
    "attack": "    import os\n    return agents_q",
    "table": "    t = torch.ones(4)\n    return (t[global_state[:, 12:14].long() + 1] * agents_q).sum(1, True)",
    "loaded": "    near = torch.where(global_state[:, 8:9] > 0, 0.7, 0.3)\n    return (near * agents_q).sum(1, True)",
}


def test_the_whole_cascade_judges_each_candidate_apart() -> None:
    env = make_env(LbfConfig(), 8, 0)
    verdicts = dict(zip(BODIES, verify_all([HEAD + body for body in BODIES.values()], env, enforce=True), strict=True))
    mean, loaded = verdicts["mean"], verdicts["loaded"]
    assert isinstance(mean, Accepted) and isinstance(loaded, Accepted)
    assert (mean.function, mean.affine, mean.notes) == ("credit_assignment", True, ())
    assert mean.source == HEAD + BODIES["mean"] and mean.program.n_agents == env.n_agents
    refused = {name: str(one.stage) for name, one in verdicts.items() if isinstance(one, Refused)}
    assert refused == {"extreme": "probe", "attack": "static", "table": "run"}
    with pytest.raises(Refused, match="'import os'"):
        verify(HEAD + BODIES["attack"], env, enforce=True)
