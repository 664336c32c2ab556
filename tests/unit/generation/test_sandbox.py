"""The sandbox: results of good, broken, hostile and endless functions."""

import re
import tempfile
import time
from pathlib import Path

import pytest
import torch
from tfcaf_functions import GRF, SPREAD

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation.sandbox import export, export_all

HEAD = "def credit_assignment(agents_q, global_state):\n"

BROKEN = [  # body of the function, stage that refuses it, fragment of the reason
    ("    return agents_q.sum(1)", "run", r"returns shape \[7\] for a batch of 7 instead of \[7, 1\]"),
    ("    return agents_q", "run", r"shape \[7, 3\]"),
    ("    return (agents_q.sum(1, keepdim=True), 0)", "run", "returns tuple: return one tensor"),
    ("    agents_q.sum()", "run", "returns NoneType"),
    ("    return agents_q.sum(1, keepdim=True).double()", "run", "torch.float64 instead of torch.float32"),
    ("    return agents_q[:, :1].squeeze().unsqueeze(-1)", "run", r"squeeze\(\) without a dim"),
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
    ("    return agents_q[:, :1] * float(global_state.max())", "trace|convert", r"Python number"),
    ("    return agents_q[:, :1] * max(global_state[0, 0], 0)", "trace", r"torch\.maximum"),
    ("    return agents_q[global_state[:, 0] > -99][:, :1]", "convert", r"torch\.where"),
    ("    rows = [row.sum() for row in agents_q]\n    return torch.stack(rows).unsqueeze(1)", "trace", "fixes the batch size"),
    ("    return (agents_q / agents_q.sum()).sum(1, keepdim=True)", "run", "never along dim=0"),
    ("    return torch.softmax(agents_q, dim=0).sum(1, keepdim=True)", "run", "never along dim=0"),
    ("    return agents_q[:, :1] * agents_q.shape[0]", "run", "size of the batch"),
    ("    return agents_q[:, :1] if agents_q.shape[0] > 4 else agents_q[:, 1:2]", "run", "size of the batch"),
    ("    return (agents_q @ agents_q.T).diagonal().unsqueeze(1)", "program", "grows faster than the batch"),
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
def answers() -> list[Program | Refused]:
    """Results of one child for the broken functions and two good ones, run on states in which every column is 5."""
    sources = [*(HEAD + body for body, _, _ in BROKEN), SPREAD.source, HEAD + LOOKED_UP]
    return export_all(sources, n_agents=3, state_dim=18, states=torch.full((2, 18), 5.0))


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_broken_function_is_refused_with_a_reason(answers: list[Program | Refused], number: int) -> None:
    answer, (_, stages, reason) = answers[number], BROKEN[number]
    assert isinstance(answer, Refused)
    assert answer.stage in stages.split("|"), answer
    assert re.search(reason, answer.reason), answer.reason


def test_good_functions_are_returned_as_programs_in_order(answers: list[Program | Refused]) -> None:
    spread, looked_up = answers[len(BROKEN) :]
    assert isinstance(spread, Program) and isinstance(looked_up, Program)
    q, states = torch.randn(9, 3), SPREAD.states(9)
    torch.testing.assert_close(spread(q, states), SPREAD.function()(q, states))
    torch.testing.assert_close(looked_up(q, torch.full((9, 18), 2.5)), 2 * q.sum(1, keepdim=True))


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
    assert not list(tmp_path.iterdir())


def test_export_raises_what_export_all_returns() -> None:
    with pytest.raises(Refused, match="'import os'") as refused:
        export(HEAD + "    import os\n    return agents_q", 3, 18)
    assert refused.value.stage == "static"


def test_states_of_another_width_raise_value_error() -> None:
    with pytest.raises(ValueError, match=r"\[M, 24\]"):
        export(GRF.source, 4, 24, states=torch.zeros(5, 3))
