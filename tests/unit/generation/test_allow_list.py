"""Allow-list: every name on it can be used, and means the same in the tensor program as in the source."""

import pytest
import torch
from allow_list_examples import EXAMPLES, OTHER_FORMS, PREAMBLE
from tfcaf_functions import Written
from torch.utils._pytree import tree_leaves

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation import tracing
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


def states(rows: int, seed: int) -> torch.Tensor:
    return torch.rand(rows, STATE_DIM, generator=torch.Generator().manual_seed(seed)) * 4 - 1


def fault(examples: list[str]) -> str:
    """Return why a function made of these examples is refused, or differs from its program; '' if neither."""
    lines = [example if "\n" in example else f"    total = total + {example}" for example in examples]
    source = "\n".join([PREAMBLE, *lines, "    return total"])
    try:
        program = tracing.trace(source, states(4, seed=1), N).program
    except Refused as refused:
        return f"{refused.stage}: {refused.reason}"
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


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(CASES), GROUP))
def test_every_name_is_traced_to_a_program_with_its_values_and_gradients(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_BATCHES", (1, 2, 7))
    group = CASES[first : first + GROUP]
    if fault([example for _, example in group]):
        faults = {name: fault([example]) for name, example in group}
        pytest.fail("\n".join(f"{name}: {text}" for name, text in faults.items() if text) or "only together")
