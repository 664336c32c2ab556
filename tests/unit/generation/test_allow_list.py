"""Allow-list: every name on it can be used, and means the same in the tensor program as in the source."""

from collections.abc import Sequence

import pytest
import torch
from allow_list_examples import EXAMPLES, OTHER_FORMS, PREAMBLE
from tfcaf_functions import Written
from torch.utils._pytree import tree_leaves

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation import sandbox
from qllm_exp.generation.allow_list import BUILTINS, METHODS, MODULES
from qllm_exp.generation.intervals import Interval, bounds

GROUP = 16  # examples in one function: tracing takes longer than the examples
N, STATE_DIM = 3, 4
LISTS = {
    "tensor": METHODS,
    "builtins": BUILTINS,
    **{module: MODULES[module] for module in EXAMPLES if module in MODULES},
}
CASES = [
    *((f"{module}: {name}", example) for module, names in EXAMPLES.items() for name, example in names.items()),
    *((example, example) for example in OTHER_FORMS),
]
GROUPS = [CASES[first : first + GROUP] for first in range(0, len(CASES), GROUP)]


def states(rows: int, seed: int) -> torch.Tensor:
    return torch.rand(rows, STATE_DIM, generator=torch.Generator().manual_seed(seed)) * 4 - 1


def source_of(examples: Sequence[str]) -> str:
    """Return the source of a function made of these examples."""
    lines = [example if "\n" in example else f"    total = total + {example}" for example in examples]
    return "\n".join([PREAMBLE, *lines, "    return total"])


def faults(sources: list[str]) -> list[str]:
    """Return for each source why it is refused, or how it differs from its program; '' if neither."""
    results = sandbox.export_all(sources, N, STATE_DIM, states=states(8, seed=1))
    return [
        f"{result.stage}: {result.reason}" if isinstance(result, Refused) else difference(source, result.program)
        for source, result in zip(sources, results, strict=True)
    ]


def difference(source: str, program: Program) -> str:
    """Return how a program differs from its source, or from its intervals; '' if it does not."""
    if outside := outside_bounds(program):
        return f"values of {outside} lie outside of their intervals"
    function = Written("examples", N, STATE_DIM, False, source).function()
    q, state = torch.randn(40, N, generator=torch.Generator().manual_seed(3)), states(40, seed=2)
    leaves = [q.clone().requires_grad_(), q.clone().requires_grad_()]
    results = [function(leaves[0], state), program(leaves[1], state)]
    gradients = [torch.autograd.grad(v.sum(), x)[0] for v, x in zip(results, leaves, strict=True)]
    for kind, pair in (("values", results), ("gradients", gradients)):
        if not bool(pair[0].isfinite().all()) or not torch.allclose(*pair, rtol=1e-4, atol=1e-4):
            return f"its {kind} differ by up to {(pair[0] - pair[1]).abs().max():.1e}"
    return ""


def outside_bounds(program: Program) -> set[str]:
    """Return the operations with values that lie outside of their intervals."""
    reach = torch.full((1, N), 3.0)
    low, high = torch.full((1, STATE_DIM), -1.0), torch.full((1, STATE_DIM), 3.0)
    intervals = bounds(program, Interval(-reach, reach), Interval(low, high))
    q = torch.rand(100, N, generator=torch.Generator().manual_seed(4)) * 6 - 3
    with torch.no_grad():
        values = program.all_values(q, states(100, seed=5))
    outside = set()
    for number, (name, _, _) in enumerate(program.operations, start=program.first_operation):
        for value, interval in zip(
            tree_leaves(values[number]), tree_leaves(intervals[number], is_interval), strict=True
        ):
            if isinstance(interval, Interval):
                tolerance = 1e-4 * (1 + value.double().abs())
                inside = (value >= interval.low - tolerance) & (value <= interval.high + tolerance)
                if not bool((inside | ~value.isfinite()).all()):
                    outside.add(name)
    return outside


def is_interval(value: object) -> bool:
    return isinstance(value, Interval)


@pytest.mark.parametrize("module", EXAMPLES)
def test_every_name_has_an_example(module: str) -> None:
    assert set(EXAMPLES[module]) == LISTS[module]


@pytest.fixture(scope="module")
def faults_of_groups() -> list[str]:
    """The faults of all groups, from one child process: each needs all that torch imports when it is first used."""
    return faults([source_of([example for _, example in group]) for group in GROUPS])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_every_name_is_traced_to_a_program_with_its_values_and_gradients(
    number: int, faults_of_groups: list[str]
) -> None:
    if faults_of_groups[number]:
        names = [name for name, _ in GROUPS[number]]
        texts = faults([source_of([example]) for _, example in GROUPS[number]])
        pytest.fail(
            "\n".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True) if text)
            or f"only together: {faults_of_groups[number]}"
        )
