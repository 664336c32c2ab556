"""Bounds on what an operation does in Python or C++ before its result is known: the number of tensors, and of repetitions.

`Program` bounds the numbers of elements by running a program on the meta device. Some calls take gigabytes or minutes even
there: unbind() of an expanded tensor makes a view for each of 10^8 rows, in no memory of their own.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qllm_exp.credit.operations import find_operation
from qllm_exp.credit.program_json import refuse

MAX_RESULTS = 1_024  # tensors that one call returns, or repetitions that it makes
MAX_TOTAL_RESULTS = 32_768  # of all calls of a program together


class CallBounds:
    """Checks the calls of one pass through a program, each before it runs."""

    def __init__(self) -> None:
        self._total = 0

    def check(self, name: str, arguments: Sequence[Any]) -> None:
        """Refuse a call that would take too long or too much memory.

        Args:
            name: operation of the call, e.g. 'unbind.int'.
            arguments: values of the positional arguments, of any type.

        Raises:
            Refused: the call returns too many tensors or repeats its work too often, or a tensor stands in the place of a
                list, for which torch would take it apart.
        """
        for position in _list_positions(name) & set(range(len(arguments))):
            if isinstance(arguments[position], Tensor):
                refuse(f"operation {name!r} has a tensor in the place of a list")
        results = max(1, _count_results(name, arguments))
        self._total += results
        if results > MAX_RESULTS:
            refuse(f"operation {name!r} returns {results:,} tensors; {MAX_RESULTS:,} are allowed")
        if self._total > MAX_TOTAL_RESULTS:
            refuse(f"the operations return more than {MAX_TOTAL_RESULTS:,} tensors together")


@cache
def _list_positions(name: str) -> frozenset[int]:
    """Return the positional arguments of an operation that are lists or dictionaries."""
    operation = find_operation(name)
    schema = getattr(operation.call, "_schema", None) if operation is not None else None
    arguments = schema.arguments if schema is not None else ()
    return frozenset(index for index, argument in enumerate(arguments) if _is_collection(argument.type))


def _is_collection(kind: Any) -> bool:
    """Whether a type of an operation's schema is a list or a dictionary, or one of them or None."""
    if isinstance(kind, torch.OptionalType):
        kind = kind.getElementType()
    return isinstance(kind, torch.ListType | torch.DictType)


def _count_results(name: str, arguments: Sequence[Any]) -> int:
    """Return how many tensors a call returns, or how often it repeats its work: 1 for most operations.

    A call with invalid arguments counts as 1: torch refuses it.
    """
    first, second, third = (*arguments, None, None, None)[:3]
    match name:
        case "broadcast_tensors.default" | "meshgrid.default" | "meshgrid.indexing":
            return len(first) if isinstance(first, list | tuple) else 1
        case "split.sizes" | "split_with_sizes.default" | "tensor_split.indices":
            return 1 + len(second) if isinstance(second, list | tuple) else 1
        case "tensor_split.sections" | "diff.default":  # the second repeats its work
            return _count(second)
        case "unbind.int":
            return _length(first, second)
        case "chunk.default":
            length = _length(first, third)
            return (
                min(_count(second), length) if length else _count(second)
            )  # an empty tensor has as many as are asked for
        case "split.Tensor":
            return -(-_length(first, third) // _count(second))
    return 1


def _count(value: Any) -> int:
    """Return a positive integer as it is, and 1 for anything else."""
    return value if isinstance(value, int) and value > 0 else 1


def _length(tensor: Any, dim: Any) -> int:
    """Return the size of a tensor along a dimension, the first by default; 1 if there is no such dimension."""
    dim = 0 if dim is None else dim
    if not isinstance(tensor, Tensor) or not isinstance(dim, int) or not -tensor.dim() <= dim < tensor.dim():
        return 1
    return tensor.shape[dim]
