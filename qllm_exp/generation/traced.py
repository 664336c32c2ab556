"""What the child process sends of a function that it has traced, and the comparison of program and source.

The comparison is not made in the child: a program checks itself with more of torch than a trace needs, importing which takes half
the time of a verification.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused

ROWS = 48  # rows at most on which the source is run one at a time
_MAX_DIFFERING = 0.02  # share of rows in which rounding may flip a comparison of the source


class Traced(NamedTuple):
    """A traced function.

    Attributes:
        data: JSON of its tensor program.
        function: its name in the source.
        lines: for each operation of the program its line in the source, 0 if it has none.
        value: [R, 1], results of the source for each of the first R states alone, with the values of `random_q`.
        gradient: [R, n_agents], their gradients in these values.
    """

    data: dict[str, Any]
    function: str
    lines: list[int]
    value: Tensor
    gradient: Tensor

    def program(self, states: Tensor) -> Program:
        """Return the tensor program.

        Args:
            states: [M, state_dim], the states on which the source was run.

        Raises:
            Refused: the data is not a valid program, the program fails, or its values or gradients differ from those of the source;
            the stage is 'program' or 'trace'.
        """
        program = Program(self.data)
        rows = len(self.value)
        for repeats in (1, 7):
            leaf = random_q(len(states), program.n_agents)[:rows].repeat(repeats, 1).requires_grad_()
            try:
                result = program(leaf, states[:rows].repeat(repeats, 1))
                (gradient,) = torch.autograd.grad(result.sum(), leaf, materialize_grads=True)
            except Refused:
                raise
            except Exception as error:  # operations raise many kinds of errors for unsuitable values
                first_line = next(iter(str(error).splitlines()), type(error).__name__)[:300]
                raise Refused(
                    "trace", f"its tensor program fails with '{first_line}': use basic torch arithmetic"
                ) from None
            for expected, actual in ((self.value, result.detach()), (self.gradient, gradient)):
                if not agree(expected.repeat(repeats, 1), actual):
                    raise Refused(
                        "trace",
                        "its tensor program gives other values than the source: write it with fewer in-place changes and with "
                        "plain tensor arithmetic",
                    )
        return program


def random_q(rows: int, n_agents: int) -> Tensor:
    """Return random values [rows, n_agents], equal for equal sizes."""
    return 3.0 * torch.randn(rows, n_agents, generator=torch.Generator().manual_seed(2))


def agree(expected: Tensor, actual: Tensor) -> bool:
    """Whether two results are equal up to rounding, except in a few rows in which rounding may flip a comparison."""
    close = torch.isclose(expected, actual, rtol=1e-4, atol=1e-5, equal_nan=True).all(1)
    return bool((~close).float().mean() <= _MAX_DIFFERING)
