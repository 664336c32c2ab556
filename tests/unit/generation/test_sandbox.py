"""The sandbox: results of good, broken, hostile and endless functions, and what a candidate can do to the others."""

import ast
import logging
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tfcaf_functions import GRF, SPREAD

from qllm_exp.credit.refused import Refused
from qllm_exp.generation import confinement, sandbox
from qllm_exp.generation.sandbox import Exported, export_all

HEAD = "def credit_assignment(agents_q, global_state):\n"

BROKEN = [  # body of the function, stage that refuses it, fragment of the reason
    ("    return agents_q", "run", r"shape \[1, 3\]"),
    ("    return (agents_q.sum(1, keepdim=True), 0)", "run", "returns tuple: return one tensor"),
    ("    agents_q.sum()", "run", "returns NoneType"),
    ("    return agents_q.sum(1, keepdim=True).double()", "run", "torch.float64 instead of torch.float32"),
    ("    return global_state[:, :1]", "run", "does not depend on agents_q"),
    ("    return agents_q.detach()[:, :1]", "run", "does not depend on agents_q"),
    ("    agents_q += 1\n    return agents_q[:, :1]", "run", "changes its inputs in place"),
    ("    global_state[:, 0] = 0\n    return agents_q[:, :1]", "run", "changes its inputs in place"),
    ("    return (agents_q * global_state).sum(1, keepdim=True)", "run", r"line 2, 'return .*': RuntimeError: The size of"),
    ("    w = torch.tensor([1.0, 2.0])\n    return (agents_q @ w).unsqueeze(1)", "run", "line 3, "),
    ("    return agents_q[:, 5:6].sum(2)", "run", "IndexError"),
    ("    return agents_q[:, :1] * torch.tensor([1.0])[global_state[:, :1].long()]", "run", "index 5 is out of bounds"),
    ("    assert agents_q.shape[1] == 4, 'four agents'\n    return agents_q[:, :1]", "run", "AssertionError: four agents"),
    ("    def h(x):\n        return h(x)\n    return h(agents_q)", "run", "calls itself without end"),
    ("    return agents_q[:, :1] * (1 / len([]))", "run", "ZeroDivisionError"),
    ("    if agents_q.sum() > 0:\n        return agents_q[:, :1]\n    return agents_q[:, 1:2]", "trace", r"torch\.where"),
    ("    c = (global_state > 9).all()\n    return agents_q[:, :1] if c else agents_q[:, 1:2]", "trace", r"torch\.where"),
    ("    return agents_q[:, :1] * float(global_state.max())", "trace", "line 2, "),
    ("    return agents_q[:, :1] * max(global_state[0, 0], 0)", "trace", r"torch\.maximum"),
    ("    return agents_q[global_state[:, 0] > -99][:, :1]", "trace", "line 2, "),
    ("    return (agents_q / agents_q.sum()).sum(1, keepdim=True)", "run", "never along dim=0"),
    ("    return torch.softmax(agents_q, dim=0).sum(1, keepdim=True)", "run", "never along dim=0"),
    ("    return agents_q[:, :1] * agents_q.shape[0]", "run", "number of rows"),
    ("    return agents_q[:, :1] if agents_q.shape[0] > 4 else agents_q[:, 1:2]", "run", "number of rows"),
    ("    return agents_q[:, :1] + torch.zeros(10**6).sum()", "program", "more than 4096 elements per row"),
    ("    return agents_q[:, :1] + torch.zeros(10**12).sum()", "run", "more memory"),
    ("    x = [0.0] * 10**10\n    return agents_q[:, :1]", "limits", "more memory"),
    ("    for i in range(10**9):\n        agents_q = agents_q + 1\n    return agents_q[:, :1]", "run", "range of 1000000000"),
    ("    n = agents_q.shape[1] * 1000\n    [1 for i in range(n) for j in range(n)]\n    return agents_q", "run", "too often"),
    ("    import os\n    return agents_q", "static", "import os"),
]  # fmt: skip


ENDLESS = [
    ("    x = [1]\n    for i in x:\n        x.append(i)\n    return agents_q[:, :1]", "limits", "memory|did not finish within 1 s"),
    ("    x = 9**9**9\n    return agents_q[:, :1]", "limits", "did not finish within 1 s"),
    ("    h = lambda k: k and h(k - 1) + h(k - 1)\n    return agents_q[:, :1] * h(60)", "limits", "did not finish within 1 s"),
]  # fmt: skip


LOOKED_UP = "    table = torch.arange(6.0)\n    return (agents_q * table[global_state[:, :3].long()]).sum(1, True)"


@pytest.fixture(scope="module")
def answers() -> list[Exported | Refused]:
    """Results of one child for the broken functions and two good ones, run on states in which every column is 5."""
    sources = [*(HEAD + body for body, _, _ in BROKEN), SPREAD.source, HEAD + LOOKED_UP]
    return export_all(sources, n_agents=3, state_dim=18, states=torch.full((2, 18), 5.0))


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_broken_function_is_refused_with_a_reason(answers: list[Exported | Refused], number: int) -> None:
    answer, (_, stages, reason) = answers[number], BROKEN[number]
    assert isinstance(answer, Refused)
    assert answer.stage in stages.split("|"), answer
    assert re.search(reason, answer.reason), answer.reason


def test_good_functions_are_returned_as_programs_in_order(answers: list[Exported | Refused]) -> None:
    spread, looked_up = answers[len(BROKEN) :]
    assert isinstance(spread, Exported) and isinstance(looked_up, Exported)
    assert spread.function == looked_up.function == "credit_assignment"
    q, states = torch.randn(9, 3), SPREAD.states(9)
    torch.testing.assert_close(spread.program(q, states), SPREAD.function()(q, states))
    torch.testing.assert_close(looked_up.program(q, torch.full((9, 18), 2.5)), 2 * q.sum(1, keepdim=True))


@pytest.mark.slow
def test_endless_functions_end_in_time_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    start = time.monotonic()
    results = export_all([HEAD + body for body, _, _ in ENDLESS], n_agents=3, state_dim=4, timeout_s=1)
    assert time.monotonic() - start < 90
    for answer, (_, stage, reason) in zip(results, ENDLESS, strict=True):
        assert isinstance(answer, Refused) and answer.stage == stage
        assert re.search(reason, answer.reason), answer.reason
    sandbox.end_child()
    assert not list(tmp_path.iterdir())


def test_states_of_another_width_raise_value_error() -> None:
    with pytest.raises(ValueError, match=r"\[M, 24\]"):
        export_all([GRF.source], 4, 24, states=torch.zeros(5, 3))


GOOD = HEAD + "    return agents_q.mean(1, True)\n"

# Arbitrary Python in the place of tracing and of parsing, chosen by a comment at the end of the source.
ATTACKED = """
import json, os, signal, time
import qllm_exp.generation.static_check as static_check
import qllm_exp.generation.tracing as tracing
from qllm_exp.credit.refused import Refused
from qllm_exp.generation import confinement, sandbox_child

{change}
sandbox_child.wall_limit = lambda seconds: 10
honest_parse, honest_trace, honest_run = static_check.parse, tracing.trace, sandbox_child._run_in_fork

def write_everywhere(data):
    for descriptor in range(64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass

def succeeds(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True

ATTACKS = {{
    "answers": lambda: write_everywhere(b'{{"results": []}}\\n{{"failure": "forged", "record": ""}}\\n'),
    "flood": lambda: write_everywhere(bytes(64 << 20)),
    "nested": lambda: write_everywhere(b'{{"data": ' + b"[" * 1000000),
    "program": lambda: write_everywhere(b'{{"data": {{}}, "function": "credit_assignment", "lines": []}}\\n'),
    "numbers": lambda: write_everywhere(b'{{"data": ' + b"9" * 1000000 + b'}}\\n'),
    "list": lambda: write_everywhere(b'{{"stage": ["run"], "reason": {{}}}}\\n'),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}}

def parse(source):
    kind = source.rpartition("# ")[2]
    if kind == "slow to read":
        while True:
            pass
    if kind == "large to read":
        os.kill(os.getpid(), signal.SIGSEGV)
    return honest_parse(source)

def trace(source, states, n_agents):
    kind = source.rpartition("# ")[2]
    if kind in ATTACKS:
        ATTACKS[kind]()
        os._exit(0)
    if kind == "terminal":
        raise Refused("run", "\\x1b[2J\\u202e red")
    if kind == "stage":
        raise Refused("accepted", "of a stage that there is not")
    if kind == "other value":
        return honest_trace(source, states, n_agents)._replace(value=states[:48, :1] + 9)
    if kind == "fewer rows":
        traced = honest_trace(source, states, n_agents)
        return traced._replace(value=traced.value[:3])
    if kind == "other name":
        return honest_trace(source, states, n_agents)._replace(function="system")
    if kind == "parent":
        attempts = {{
            "kill": lambda: os.kill(os.getppid(), 0),
            "stdout": lambda: os.open("/proc/" + str(os.getppid()) + "/fd/1", os.O_WRONLY),
            "checkout": lambda: open({checkout!r}),
        }}
        raise Refused("run", json.dumps([name for name, attempt in attempts.items() if succeeds(attempt)]))
    return honest_trace(source, states, n_agents)

def run(source, *rest):
    if source.endswith("# end of the child"):
        os._exit(3)
    return honest_run(source, *rest)

static_check.parse, tracing.trace, sandbox_child._run_in_fork = parse, trace, run
sandbox_child.main()
"""
KINDS = {  # kind of attack: stage and fragment of the reason
    "answers": ("limits", "aborted the process"),
    "flood": ("limits", "aborted the process"),
    "nested": ("limits", "aborted the process"),
    "program": ("program", "invalid values"),
    "numbers": ("limits", "aborted the process"),
    "list": ("limits", "aborted the process"),
    "killed": ("limits", "more memory"),
    "stopped": ("limits", "did not finish within 2 s"),
    "slow to read": ("limits", "Python could not read it within 2 s"),
    "large to read": ("limits", "Python could not read it within the allowed memory"),
    "terminal": ("run", "^\ufffd\\[2J\ufffd red$"),
    "stage": ("limits", ""),
    "other value": ("trace", "other values than the source"),
    "fewer rows": ("program", "invalid values"),
    "other name": ("program", "invalid program"),
    "end of the child": ("limits", "ended the process"),
}


def attack(monkeypatch: pytest.MonkeyPatch, kinds: list[str], change: str = "") -> list[Exported | Refused]:
    """Run attacks on the child, and a good function after each."""
    checkout = str(Path(__file__).parents[3] / "pyproject.toml")
    code = ATTACKED.format(change=change, checkout=checkout)
    monkeypatch.setattr(
        sandbox, "_START", "import sys; sys.path.insert(0, {root!r})\n" + code.replace("{", "{{").replace("}", "}}")
    )
    sources = [source for kind in kinds for source in (f"{GOOD}# {kind}", GOOD)]
    return export_all(sources, n_agents=3, state_dim=4, timeout_s=2)


@pytest.mark.slow
def test_an_attack_on_the_answers_fails_its_own_candidate_only(monkeypatch: pytest.MonkeyPatch) -> None:
    results = attack(monkeypatch, list(KINDS))
    for (kind, (stage, reason)), refused, good in zip(KINDS.items(), results[::2], results[1::2], strict=True):
        assert isinstance(refused, Refused) and refused.stage == stage, (kind, refused)
        assert re.search(reason, refused.reason), (kind, refused.reason)
        assert isinstance(good, Exported), (kind, good)


def test_a_candidate_reaches_neither_its_parent_nor_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = attack(monkeypatch, ["parent"])
    assert isinstance(result, Refused) and result.stage == "run"
    if confinement.landlock_version() >= 6:
        assert result.reason == "[]"


def test_missing_layers_are_named_once_in_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox._warn_once.cache_clear()
    change = "confinement.landlock_version = lambda: 0; confinement.enter_namespaces = lambda: False"
    with caplog.at_level(logging.WARNING, "qllm_exp"):
        assert isinstance(attack(monkeypatch, ["answers"], change)[1], Exported)
    sandbox._warn_once.cache_clear()
    (record,) = caplog.records
    assert "works without namespaces and Landlock" in record.getMessage()


@pytest.mark.slow
def test_a_child_that_cannot_start_is_an_error_and_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in ("raise ImportError('no torch here')", "tracing.start_autograd = lambda: os._exit(7)"):
        with pytest.raises(RuntimeError, match=r"no torch here|set up \(exit code 7\)"):
            attack(monkeypatch, ["answers"], change)


def test_no_source_is_parsed_outside_of_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("parsed outside of the child")

    bombs = [
        HEAD
        + "".join(f"{' ' * k}try:\n{' ' * (k + 1)}pass\n{' ' * k}finally:\n" for k in range(1, 19))
        + " " * 19
        + "pass",
        HEAD + "    return " + "(" * 150 + "agents_q" + ")" * 150,
        HEAD + "    return " + "not " * 4_900 + "agents_q",
        HEAD + "    return " + "[" * 9_000,
        HEAD + "    return agents_q" + "[0]" * 6_000,
        HEAD + "    x = " + "lambda: " * 2_400 + "0",
        HEAD + "    return f'" + "{agents_q}" * 1_900 + "'",
        HEAD + "    return '\ud800'",
        HEAD + "    return \0",
        "x" * 10**7,
    ]
    monkeypatch.setattr(ast, "parse", fail)
    start = time.monotonic()
    *refused, good = export_all([*bombs, GOOD], n_agents=3, state_dim=4, timeout_s=20)
    assert time.monotonic() - start < 120
    assert all(isinstance(result, Refused) for result in refused), refused
    assert isinstance(good, Exported)


def test_a_child_answers_further_requests_until_none_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.end_child()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = []
    popen = subprocess.Popen

    def count(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(sandbox.subprocess, "Popen", count)
    big = [HEAD + f"    return agents_q.mean(1, True)  # {'x' * 15_000}\n"] * 9  # more than a pipe holds
    broken = [GOOD, HEAD + "    return missing\n"]
    kinds = [
        [isinstance(result, Exported) for result in export_all(sources, 3, 4, 20)] for sources in ([GOOD], big, broken)
    ]
    assert kinds == [[True], [True] * 9, [True, False]] and len(started) == 1
    started[0].kill()
    started[0].wait()
    assert isinstance(export_all([GOOD], n_agents=3, state_dim=4)[0], Exported) and len(started) == 2, "it has ended"
    sandbox.end_child()
    start = sandbox._START.replace("main()", "import qllm_exp.generation.sandbox_child as c; c.IDLE_S = 0.2; main()")
    monkeypatch.setattr(sandbox, "_START", start)
    export_all([GOOD], n_agents=3, state_dim=4)
    assert started[-1].wait(20) == 0, "no request came"
    assert not list(tmp_path.iterdir()), "it has removed its folder, in case that this process was killed"
    assert isinstance(export_all([GOOD], n_agents=3, state_dim=4)[0], Exported) and len(started) == 4
    sandbox.end_child()
    assert all(process.poll() is not None for process in started)
