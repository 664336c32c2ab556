"""Bounds of calls: what would take gigabytes or minutes is refused before it runs."""

import time
from typing import Any

import pytest
import torch

from qllm_exp.credit.bounds import MAX_RESULTS, MAX_TOTAL_RESULTS, CallBounds
from qllm_exp.credit.operations import find_operation
from qllm_exp.credit.refused import Refused

WIDE = torch.empty(1, device="meta").expand(10**8)
EMPTY = torch.empty(4, 0, device="meta")
SMALL = torch.empty(4, 3, device="meta")

HARMFUL: list[tuple[str, list[Any]]] = [
    ("unbind.int", [WIDE]),
    ("unbind.int", [WIDE, -1]),
    ("split.Tensor", [WIDE, 1]),
    ("split.Tensor", [WIDE, 50_000, 0]),
    ("chunk.default", [WIDE, 10**12]),
    ("chunk.default", [EMPTY, 10**12, 1]),
    ("tensor_split.sections", [SMALL, 2_000_000, 1]),
    ("tensor_split.indices", [SMALL, [1] * 1_024, 0]),
    ("diff.default", [WIDE, 10**8]),
    # Torch makes a list of a tensor element by element.
    ("expand.default", [SMALL, WIDE]),
    ("stack.default", [WIDE]),
    ("index.Tensor", [SMALL, WIDE]),
    ("zeros.default", [WIDE]),
    ("split.sizes", [SMALL, WIDE]),
    ("pad.default", [SMALL, WIDE]),
    ("roll.default", [SMALL, WIDE, WIDE]),
]


@pytest.mark.parametrize(("name", "arguments"), HARMFUL)
def test_a_call_without_bounds_is_refused_before_it_runs(name: str, arguments: list[Any]) -> None:
    start = time.process_time()
    with pytest.raises(Refused, match=r"tensors; 1,024 are allowed|in the place of a list") as refused:
        CallBounds().check(name, arguments)
    assert refused.value.stage == "program" and time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("name", "arguments", "results"),
    [
        ("unbind.int", [SMALL, 1], 3),
        ("unbind.int", [SMALL], 4),
        ("split.Tensor", [SMALL, 2, 1], 2),
        ("split.Tensor", [EMPTY, 0, 1], 1),
        ("split.sizes", [SMALL, [1, 2], 1], 2),
        ("chunk.default", [SMALL, 8, 1], 3),
        ("chunk.default", [EMPTY, 5, 1], 5),
        ("tensor_split.sections", [SMALL, 7, 1], 7),
        ("tensor_split.indices", [SMALL, [1, 2], 1], 3),
        ("broadcast_tensors.default", [[SMALL, SMALL]], 2),
        ("stack.default", [[SMALL, SMALL], 1], 1),
    ],
)
def test_the_bound_is_at_least_the_number_of_results(name: str, arguments: list[Any], results: int) -> None:
    operation = find_operation(name)
    assert operation is not None
    returned = operation.call(*arguments)
    assert (len(returned) if isinstance(returned, list | tuple) else 1) == results
    bounds = CallBounds()
    for _ in range(MAX_TOTAL_RESULTS // (results + 1)):
        bounds.check(name, arguments)
    with pytest.raises(Refused, match=f"more than {MAX_TOTAL_RESULTS:,} tensors together"):
        for _ in range(MAX_TOTAL_RESULTS):
            bounds.check(name, arguments)


def test_calls_of_ordinary_functions_are_within_the_bounds() -> None:
    bounds = CallBounds()
    row = torch.empty(64, MAX_RESULTS, device="meta")
    calls: list[tuple[str, list[Any]]] = [
        ("unbind.int", [row, 1]),
        ("diff.default", [SMALL, 1, 1]),
        ("sum.dim_IntList", [SMALL, [1], True]),
        ("get", [[SMALL, SMALL], 1]),
        ("size", [SMALL]),
        ("expand.default", [SMALL, [4, 3]]),
    ]
    for name, arguments in calls:
        bounds.check(name, arguments)


@pytest.mark.parametrize(
    "name", ["unbind.int", "split.Tensor", "chunk.default", "tensor_split.sections", "diff.default"]
)
@pytest.mark.parametrize("arguments", [[], [None], [SMALL, "x", "y"], [3, 3], [SMALL, -5, 9], [SMALL, 1.5]])
def test_invalid_arguments_are_left_to_torch(name: str, arguments: list[Any]) -> None:
    CallBounds().check(name, arguments)
