"""One line on what a function changed, from two tensor programs."""

import pytest
import torch
from searches import weighted_sum

from qllm_exp.credit.program import Program
from qllm_exp.generation.sandbox import export_all
from qllm_exp.search.differences import describe_difference

HEAD = "import torch\n\ndef credit_assignment(agents_q, global_state):\n    "
BODIES = {
    "softmax": "return (torch.softmax(2.0 * global_state[:, :2], 1) * agents_q).sum(1, keepdim=True)",
    "other number": "return (torch.softmax(2.5 * global_state[:, :2], 1) * agents_q).sum(1, keepdim=True)",
    "exp": "return (torch.exp(-global_state[:, :2].abs()) * agents_q).sum(1, keepdim=True)",
    "other column": "return (torch.softmax(2.0 * global_state[:, 2:4], 1) * agents_q).sum(1, keepdim=True)",
    "twice": "return (torch.softmax(torch.softmax(2.0 * global_state[:, :2], 1), 1) * agents_q).sum(1, keepdim=True)",
}


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    exported = export_all([HEAD + body for body in BODIES.values()], 2, 4, 60, torch.zeros(4, 4))
    return {name: function.program for name, function in zip(BODIES, exported, strict=True)}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("softmax", "other number", "2 is now 2.5"),
        ("softmax", "exp", "adds abs, neg, exp; drops softmax; fewer mul"),
        ("softmax", "twice", "more softmax"),
        ("twice", "softmax", "fewer softmax"),
        ("softmax", "softmax", "the same program"),
        ("softmax", "other column", "the same operations in another arrangement"),
    ],
)
def test_operations_and_numbers(programs: dict[str, Program], before: str, after: str, line: str) -> None:
    assert describe_difference(programs[before], programs[after], [], []) == line


def test_fields_that_only_one_of_them_reads(programs: dict[str, Program]) -> None:
    program = programs["softmax"]
    assert describe_difference(program, programs["other column"], ["food position"], ["agent level"]) == (
        "reads agent level; no longer reads food position"
    )
    assert describe_difference(program, program, [], list("abcdef")) == "reads a, b, c, d and 2 more"


def test_many_numbers_are_counted() -> None:
    before, after = (weighted_sum(f"{a} {b}", 4) for a, b in (("0.5", "0.25"), ("0.75", "0.125")))
    assert describe_difference(before, after, [], []) == "0.5 is now 0.75, 0.25 is now 0.125"
