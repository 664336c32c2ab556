"""Intervals and directed search: what is proven harmless, and what is found in windows that random states miss."""

import math
import re
from typing import NamedTuple

import pytest
import torch
from tfcaf_functions import ALL, Written

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.envs import StateField, StateLayout, TeamEnv, make_env
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.generation.directed_search import ranges, risks
from qllm_exp.generation.intervals import Interval, bounds
from qllm_exp.generation.probes import Probe
from qllm_exp.generation.tracing import trace

HEAD = "import torch\nimport torch.nn.functional as F\n\ndef credit_assignment(agents_q, global_state):\n"
MEAN = "agents_q.mean(1, keepdim=True)"


@pytest.fixture(scope="module")
def env() -> TeamEnv:
    return make_env(MpeConfig(task="simple_spread"), 8, 0)


class Example(NamedTuple):
    program: Program
    lines: list[int]


def traced_for(env: TeamEnv, body: str) -> Example:
    states = torch.rand(60, env.state_dim)
    traced = trace(HEAD + body, states, env.n_agents)
    return Example(traced.program(states), traced.lines)


@pytest.mark.parametrize("written", ALL, ids=lambda written: written.name)
def test_every_value_of_a_program_lies_within_its_interval(written: Written) -> None:
    program = trace(written.source, written.states(60), written.n_agents).program(written.states(60))
    low, high = torch.full((1, written.state_dim), -1.0), torch.full((1, written.state_dim), 6.0)
    q_reach = torch.full((1, written.n_agents), 3.0)
    intervals = bounds(program, Interval(-q_reach, q_reach), Interval(low, high))
    q = torch.rand(300, written.n_agents) * 6 - 3
    values = program.all_values(q, written.states(300, seed=5))
    checked = 0
    for value, interval in zip(values, intervals, strict=True):
        if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == 300:
            tolerance = 1e-4 * (1 + value.double().abs())
            inside = (value >= interval.low - tolerance) & (value <= interval.high + tolerance)
            assert bool((inside | value.isnan()).all())
            checked += 1
    assert checked > len(program.operations) / 2


@pytest.mark.parametrize(
    "expression",
    [
        "1 / (global_state[:, :1].abs() + 0.1)",
        "1 / global_state[:, :3].square().sum(1, keepdim=True).add(1)",
        "torch.log(1 + torch.exp(-global_state[:, :1].abs()))",
        "torch.sqrt((global_state[:, :2] ** 2).sum(1, keepdim=True) + 1e-6)",
        "torch.exp(-global_state[:, 2:4].abs().sum(1, keepdim=True)) / (1.5 + torch.cos(global_state[:, :1]))",
        "1 / global_state[:, :3].softmax(1).clamp(min=0.01).sum(1, keepdim=True)",
        "1 / (torch.cdist(global_state[:, None, :2], global_state[:, None, 2:4])[:, 0] + 0.5)",
        "1 / (2 + torch.sigmoid(global_state[:, :1]))",
        "1 / (global_state[:, :4].abs().quantile(0.3, 1, keepdim=True) + 0.1)",
        "1 / (global_state[:, :4].abs().nanquantile(0.9, 1, keepdim=True, interpolation='midpoint') + 0.1)",
        "1 / (global_state[:, :1].abs() // 0.5 + 1)",
        "1 / torch.lerp(1 + global_state[:, :1].abs(), torch.ones(1, 1), 0.25)",
    ],
)
def test_what_intervals_prove_is_no_risk(env: TeamEnv, expression: str) -> None:
    traced = traced_for(env, f"    return {MEAN} + 0.01 * {expression}")
    unproven = risks(traced.program, traced.lines, ranges(env.layout, env.n_agents, 10.0, 3.0))
    assert [risk for risk in unproven if risk.kind != "branch"] == []


NARROW = [  # expression that goes wrong only in a narrow window, and what the refusal names
    ("torch.where((global_state[:, :1] - 0.1234).abs() < 1e-5, float('nan'), 0.0)", "value is nan .*from line 5"),
    ("1 / (global_state[:, :1] - 0.777)", "line 5"),
    ("1e-3 / (global_state[:, :1] - global_state[:, 4:5] + 0.3)", "line 5"),
    ("torch.log(global_state[:, 5:6] + 9.9999)", "value is (nan|-inf).*from line 5"),
    ("torch.sqrt(global_state[:, :1] + 9.999)", "value is nan.*from line 5"),
    ("torch.acos(global_state[:, :1] * 0.10001)", "value is nan.*from line 5"),
    ("torch.where(global_state[:, 2:3] > 9.99, 1e9, 0.0)", "at 0 it gives"),
    ("global_state[:, :1] % (global_state[:, 1:2] + 3.21)", "line 5"),
    ("torch.tan(global_state[:, :1] * global_state[:, 1:2])", "line 5|at 0 it gives"),
    ("torch.acosh(global_state[:, :1] + 10.99)", "value is nan.*from line 5"),
    ("torch.log1p(global_state[:, :1] * 0.1 - 1e-4)", "value is (nan|-inf).*from line 5"),
    ("(global_state[:, :1] + 9.999).pow(0.5)", "value is nan.*from line 5"),
    ("10.0 ** (4 * global_state[:, :1])", "line 5|at 0 it gives"),
    ("torch.special.xlogy(global_state[:, :1], global_state[:, 1:2] + 9.99)", "value is nan.*from line 5"),
    ("1e-4 / F.leaky_relu(global_state[:, :1] * global_state[:, 1:2] - 0.3, -1.0)", "line 5"),
    ("0.01 / ((global_state[:, :1] * 100).long().bitwise_and(1023).float() - 700).abs()", "from line 5|at 0"),
    ("torch.relu(global_state[:, :1] - 0.3) * torch.relu(0.3002 - global_state[:, :1]) * 1e13", "at 0 it gives"),
    (
        "(torch.sign(global_state[:, :1] - 0.3) + torch.sign(0.30004 - global_state[:, :1])).clamp(min=0) * 1e5",
        "at 0 it gives",
    ),
    (
        "(global_state[:, :1].clamp(0.3, 0.3001) - 0.3) * (0.3001 - global_state[:, :1]).clamp(min=0) * 1e17",
        "at 0 it gives",
    ),
    ("torch.relu(0.003 - (global_state[:, :1] - 0.3).abs()) * 1e8", "at 0 it gives"),
    ("1e-3 / (global_state[:, :1] // 0.5 + global_state[:, 1:2] - 0.123)", "line 5"),
    ("1e-3 / (torch.heaviside(global_state[:, :1], torch.ones(1)) + global_state[:, 1:2] - 0.123)", "line 5"),
]


@pytest.mark.parametrize(("expression", "reason"), NARROW)
def test_a_narrow_window_is_found_and_the_line_is_named(env: TeamEnv, expression: str, reason: str) -> None:
    traced = traced_for(env, f"    x = {expression}\n    return {MEAN} + x")
    with pytest.raises(Refused, match=reason) as refused:
        Probe(env, enforce=True, timeout_s=60).check(traced.program, traced.lines)
    assert refused.value.stage == "probe"


def test_the_columns_in_which_a_fault_lies_are_named_first(env: TeamEnv) -> None:
    traced = traced_for(env, f"    x = torch.log(global_state[:, 9:10] + 9.99)\n    return {MEAN} + x")
    (field,) = [field for field in env.layout if field.start <= 9 < field.stop]
    with pytest.raises(Refused, match=rf"within the ranges of the table \({re.escape(field.label)} [^;]*-10"):
        Probe(env, enforce=True, timeout_s=60).check(traced.program, traced.lines)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("0.3 / (global_state[:, :3] * global_state[:, 3:6] - 0.3).abs().clamp(min=1e-5)", "weight"),
        ("torch.softmax(torch.zeros(1, 3), 1) / (global_state[:, :1] - 0.3).abs().clamp(min=1e-3)", "weight"),
        (
            "torch.ones(3)[((global_state[:, 12] * global_state[:, 13] - 0.31).abs() < 1e-5).long() * 3][:, None].expand(-1, 3)",
            "fails",
        ),
        (
            "(k := torch.exp(-60 * (global_state[:, :3] - global_state[:, 4:7]) ** 2)) / k.sum(1, keepdim=True)",
            "value is nan",
        ),
    ],
)
def test_weights_that_explode_or_fail_in_a_window_are_refused(env: TeamEnv, weights: str, reason: str) -> None:
    traced = traced_for(env, f"    w = {weights}\n    return (w * agents_q).sum(1, keepdim=True)")
    with pytest.raises(Refused, match=reason):
        Probe(env, enforce=True, timeout_s=60).check(traced.program, traced.lines)


@pytest.mark.slow
def test_many_comparisons_hide_no_divisor_and_the_search_keeps_its_time(env: TeamEnv) -> None:
    comparisons = "".join(f"    x = x + (global_state[:, :1] > {k / 50}).float()\n" for k in range(108))
    curve = "(global_state[:, :1] * global_state[:, 1:2] - 0.3).abs()"
    body = f"    x = 0\n{comparisons}    x = x * 1e-3 + 1e-3 / {curve}\n    return {MEAN} + x"
    traced = traced_for(env, body)
    with pytest.raises(Refused, match="line 114"):
        Probe(env, enforce=True, timeout_s=60).check(traced.program, traced.lines)
    with pytest.raises(Refused, match="did not finish within 0 s"):
        Probe(env, enforce=True, timeout_s=0).check(traced.program, traced.lines)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("(agents_q[:, :1] - agents_q[:, 1:2] - 1).abs().sqrt()", "agent . .*weight|its gradient"),
        (
            "torch.where((agents_q[:, :1] - agents_q[:, 1:2] - 1).abs() < 1e-4, 1e6 * agents_q[:, :1], 0 * agents_q[:, :1])",
            "weight",
        ),
        ("(agents_q * torch.exp(agents_q.abs() / 25)).sum(1, keepdim=True)", "weight"),
        ("1 / (agents_q[:, :1] - 2.345)", "line 5|weight"),
    ],
)
def test_gradients_that_explode_in_the_agents_values_are_refused_with_the_gate_off(
    env: TeamEnv, expression: str, reason: str
) -> None:
    traced = traced_for(env, f"    x = {expression}\n    return {MEAN} - x")
    with pytest.raises(Refused, match=reason):
        Probe(env, enforce=False, timeout_s=60).check(traced.program, traced.lines)


@pytest.mark.parametrize(
    "body",
    [
        "    w = torch.exp(-global_state[:, 12:15].abs())\n    return (w / w.sum(1, keepdim=True) * agents_q).sum(1, keepdim=True)",
        "    near = torch.cdist(global_state[:, :6].view(-1, 3, 2), global_state[:, 12:18].view(-1, 3, 2)).amin(2)\n"
        "    return (agents_q / (near + 0.01)).sum(1, keepdim=True)",
        "    w = torch.where(global_state[:, :3] > 0.5, 0.1, 0.5)\n    return (w * agents_q).sum(1, keepdim=True)",
    ],
)
def test_honest_functions_pass(env: TeamEnv, body: str) -> None:
    traced = traced_for(env, body)
    affine, _ = Probe(env, enforce=True, timeout_s=60).check(traced.program, traced.lines)
    assert affine


def test_codes_stay_and_unbounded_columns_end_at_the_reach() -> None:
    layout = StateLayout.from_fields(
        (
            StateField("match", None, "x", ("x",), -math.inf, math.inf),
            StateField("match", None, "code", ("k",), 0.0, 4.0, special={-1.0: "none"}),
        )
    )
    within = ranges(layout, 2, 10.0, 3.0)
    assert (within.state.low.tolist(), within.state.high.tolist()) == ([[-10.0, -1.0]], [[10.0, 4.0]])
    origin = torch.tensor([[0.0, -1.0], [0.0, 2.0]])
    _, clipped = within.clip(torch.zeros(2, 2), origin + 100, origin)
    assert clipped.tolist() == [[10.0, -1.0], [10.0, 4.0]]
