"""Faster ways to do some operations of a tensor program, with the same results up to rounding.

The tensors of a credit-assignment function are long in the batch and short in all else. A loop over elements is fast where
it runs along the batch with neighbours in memory, so a program is given its inputs laid out that way, batch innermost.
Elementwise operations keep the layout; the operations here would lose it, or are slow for short rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def batch_innermost(tensor: Tensor) -> Tensor:
    """The same tensor [B, k], the elements of a column next to each other in memory."""
    return tensor.t().contiguous().t()


def _reduced(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction over `dim`, a number or a list, done with the first dimension moved to the end."""

    def call(x: Tensor, dim: Any = None, *more: Any, **keywords: Any) -> Any:
        dims = dim if isinstance(dim, list) else [dim]
        # Where the first dimension takes part, or a wrong one is given, there is nothing to move.
        if not dims or any(one is None or not -x.dim() < one < x.dim() or one == 0 for one in dims):
            return reduce(x, dim, *more, **keywords)
        places = [one % x.dim() - 1 for one in dims]
        found = reduce(x.movedim(0, -1), places if isinstance(dim, list) else places[0], *more, **keywords)
        return found.movedim(-1, 0) if isinstance(found, Tensor) else tuple(one.movedim(-1, 0) for one in found)

    return call


def _joined(join: Callable[..., Tensor], new: int) -> Callable[..., Tensor]:
    """torch.stack (`new` = 1 dimension) or torch.cat (0), done with the first dimension moved to the end."""

    def call(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        dimensions = tensors[0].dim() + new
        if not -dimensions < dim < dimensions or dim == 0 or any(one.dim() + new != dimensions for one in tensors):
            return join(tensors, dim)
        return join([one.movedim(0, -1) for one in tensors], dim % dimensions - 1).movedim(-1, 0)

    return call


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    if x.dim() < 2 or not x.numel():
        return torch.softmax(x, dim, dtype)
    if dtype is not None:
        x = x.to(dtype)
    e = (x - _amax(x.detach(), [dim], True)).exp()
    return e / _sum(e, [dim], True)


_amax, _sum = _reduced(torch.amax), _reduced(torch.sum)
# The functions of torch itself take half the time of torch.ops.aten to get to the same code.
FASTER: dict[str, Callable[..., Any]] = {
    "abs.default": torch.abs,
    "add.Tensor": torch.add,
    "amax.default": _amax,
    "amin.default": _reduced(torch.amin),
    "cat.default": _joined(torch.cat, 0),
    "clamp.default": torch.clamp,
    "div.Tensor": torch.div,
    "exp.default": torch.exp,
    "gt.Scalar": torch.gt,
    "lt.Scalar": torch.lt,
    "max.dim": _reduced(torch.max),
    "maximum.default": torch.maximum,
    "mean.dim": _reduced(torch.mean),
    "min.dim": _reduced(torch.min),
    "minimum.default": torch.minimum,
    "mul.Tensor": torch.mul,
    "neg.default": torch.neg,
    "reshape.default": torch.reshape,
    "rsub.Scalar": torch.rsub,
    "select.int": torch.select,
    "sigmoid.default": torch.sigmoid,
    "softmax.int": _softmax,
    "sqrt.default": torch.sqrt,
    "stack.default": _joined(torch.stack, 1),
    "sub.Tensor": torch.sub,
    "sum.dim_IntList": _sum,
    "unsqueeze.default": torch.unsqueeze,
    "where.self": torch.where,
}
