"""Allow-list of the ATen operations in a tensor program, by name with overload, e.g. 'mul.Tensor'.

Only operations that compute tensors from tensors are allowed. Excluded are random operations, operations that read or
write anything else, operations whose result size depends on tensor values, and operations that address memory
(as_strided, set_).

Names without a dot are operations on sizes: 'size', 'get' (one of several results), 'int_add', 'int_sub', 'int_mul'
and 'int_floordiv'.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qllm_exp.utils.text import word_set

DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
}

_PURE = word_set("""
__and__ __or__ __xor__ abs absolute acos acosh add alias all amax amin angle any arange arccos arcsin arctan arctan2
argmax argmin argsort asin asinh atan atan2 atanh baddbmm bitwise_and bitwise_not bitwise_or bitwise_xor bmm
broadcast_tensors broadcast_to bucketize cat cdist ceil celu chunk clamp clamp_max clamp_min clip clone column_stack
concat concatenate constant_pad_nd contiguous copy copysign cos cosh cosine_similarity count_nonzero cross cummax
cummin cumprod cumsum deg2rad detach diag diag_embed diagonal diagonal_scatter diff div divide dot dstack einsum elu
eq erf erfc exp exp2 expand expand_as expm1 eye fill flatten flip floor floor_divide fmax fmin fmod frac full
full_like gather ge gelu greater greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hstack
huber_loss hypot index index_add index_copy index_fill index_put index_select inner isclose isfinite isinf isnan
kron kthvalue layer_norm le leaky_relu lerp less less_equal lift_fresh_copy linalg_cross linalg_norm linalg_vecdot
linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logcumsumexp logical_and
logical_not logical_or logical_xor logit logspace logsumexp lt mT masked_fill matmul max maximum mean median
meshgrid min minimum mish mm moveaxis movedim mse_loss mul multiply mv nan_to_num nanmean nansum narrow ne neg
negative new_full new_ones new_zeros norm not_equal numpy_T ones ones_like outer pad pairwise_distance permute
positive pow prod rad2deg ravel reciprocal relu relu6 remainder repeat repeat_interleave reshape reshape_as roll
round rsqrt rsub scalar_tensor scatter scatter_add scatter_reduce searchsorted select select_scatter selu sgn
sigmoid sign silu sin sinc sinh slice slice_scatter smooth_l1_loss softmax softplus softshrink sort special_expit
special_logit special_xlogy split split_with_sizes sqrt square squeeze stack std std_mean sub subtract sum swapaxes
swapdims t take_along_dim tan tanh tensor_split tensordot tile to topk transpose tril tril_indices triu triu_indices
true_divide trunc type_as unbind unflatten unsqueeze var var_mean view view_as vstack where xlogy zero zeros
zeros_like
""")
# Programs that were traced before version 0.2 have assignments to parts of a tensor (w[:, 0] = ...) as they are.
_IN_PLACE = word_set("""
__iand__ __ior__ __ixor__ add_ bitwise_and_ bitwise_or_ bitwise_xor_ copy_ div_ fill_ floor_divide_ index_put_
masked_fill_ mul_ pow_ remainder_ sub_ zero_
""")


_EXCLUDED = frozenset(
    {
        # The result size depends on tensor values.
        "repeat_interleave.Tensor",
        "repeat_interleave.self_Tensor",
        # Wrong arguments abort the process.
        "to.prim_Device",
        "to.prim_dtype",
        "to.prim_other",
        # Takes a dictionary, which a program does not have.
        "copy.Dict_Tensor",
    }
)


def _integers_only(call: Callable[[int, int], int]) -> Callable[[Any, Any], int]:
    """Wrap an operation on sizes so that it raises TypeError for anything but integers."""

    def checked_call(a: Any, b: Any) -> int:
        if not (isinstance(a, int) and isinstance(b, int)):
            raise TypeError("sizes must be integers")
        return call(a, b)

    return checked_call


_SIZE_OPERATIONS: dict[str, Callable[..., Any]] = {
    "size": Tensor.size,
    "get": operator.getitem,
    "int_add": _integers_only(operator.add),
    "int_sub": _integers_only(operator.sub),
    "int_mul": _integers_only(operator.mul),
    "int_floordiv": _integers_only(operator.floordiv),
}
_DEFAULTED_KEYWORDS = frozenset({"layout", "pin_memory", "device", "memory_format", "generator", "non_blocking"})


@dataclass(frozen=True)
class Operation:
    """An allowed operation.

    Attributes:
        call: the callable that executes the operation.
        keywords: names of the keyword-only arguments that a program may pass.
        creates: whether the operation creates a tensor and so needs a device (zeros, arange, ...).
        in_place: whether the operation writes to its first argument.
        dtypes: arguments that are dtypes: the name of a keyword-only argument, the index of a positional one.
    """

    call: Callable[..., Any]
    keywords: frozenset[str]
    creates: bool
    in_place: bool
    dtypes: frozenset[str | int] = frozenset()


@lru_cache(maxsize=4_096)
def find_operation(name: str) -> Operation | None:
    """Return the operation called `name`, or None if it is not allowed."""
    if name in _SIZE_OPERATIONS:
        return Operation(_SIZE_OPERATIONS[name], frozenset(), creates=False, in_place=False)
    base, _, overload = name.partition(".")
    in_place = base in _IN_PLACE
    if not (in_place or base in _PURE) or not overload:
        return None
    packet = getattr(torch.ops.aten, base)
    if overload not in packet.overloads():
        return None
    if name in _EXCLUDED:
        return None
    call = getattr(packet, overload)
    arguments = call._schema.arguments
    if any(a.is_out or "Dimname" in str(a.type) or ("Device" in str(a.type) and not a.kwarg_only) for a in arguments):
        return None
    returns = call._schema.returns
    if not returns or any("Tensor" not in str(value.type) for value in returns):
        return None  # made for the numbers and lists of TorchScript: some abort the process on a division by zero
    keywords = frozenset(a.name for a in arguments if a.kwarg_only) - _DEFAULTED_KEYWORDS
    has_tensor = any("Tensor" in str(a.type) for a in arguments)
    creates = not has_tensor and any(a.name == "device" for a in arguments)
    if not (has_tensor or creates):
        return None
    dtypes = frozenset(
        a.name if a.kwarg_only else index for index, a in enumerate(arguments) if "ScalarType" in str(a.real_type)
    )
    return Operation(call, keywords, creates, in_place, dtypes)


def batch_innermost(tensor: Tensor) -> Tensor:
    """Return the same tensor [B, k] stored column by column: the batch is the innermost dimension in memory."""
    return tensor.t().contiguous().t()


def _reduce_batch_last(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a reduction over `dim` (an integer or a list) so that it runs with the first dimension moved to the end."""

    def call(x: Tensor, dim: Any = None, *more: Any, **keywords: Any) -> Any:
        dims = dim if isinstance(dim, list) else [dim]
        # Nothing can be moved where the first dimension is reduced itself, or where a dimension is invalid.
        if not dims or any(d is None or not -x.dim() < d < x.dim() or d == 0 for d in dims):
            return reduce(x, dim, *more, **keywords)
        moved_dims = [d % x.dim() - 1 for d in dims]
        result = reduce(x.movedim(0, -1), moved_dims if isinstance(dim, list) else moved_dims[0], *more, **keywords)
        if isinstance(result, Tensor):
            return result.movedim(-1, 0)
        return tuple(part.movedim(-1, 0) for part in result)

    return call


def _join_batch_last(join: Callable[..., Tensor], new_dims: int) -> Callable[..., Tensor]:
    """Wrap torch.stack (`new_dims` = 1) or torch.cat (0) so that it runs with the first dimension moved to the end."""

    def call(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        dimensions = tensors[0].dim() + new_dims
        if (
            not -dimensions < dim < dimensions
            or dim == 0
            or any(tensor.dim() + new_dims != dimensions for tensor in tensors)
        ):
            return join(tensors, dim)
        return join([tensor.movedim(0, -1) for tensor in tensors], dim % dimensions - 1).movedim(-1, 0)

    return call


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """torch.softmax made of the reductions above, which are faster with the batch innermost."""
    if x.dim() < 2 or not x.numel():
        return torch.softmax(x, dim, dtype)
    if dtype is not None:
        x = x.to(dtype)
    exponentials = (x - _amax(x.detach(), [dim], True)).exp()
    return exponentials / _sum(exponentials, [dim], True)


_amax, _sum = _reduce_batch_last(torch.amax), _reduce_batch_last(torch.sum)
# The functions of torch itself reach the same kernels in half the time that torch.ops.aten needs.
FAST_CALLS: dict[str, Callable[..., Any]] = {
    "abs.default": torch.abs,
    "add.Tensor": torch.add,
    "amax.default": _amax,
    "amin.default": _reduce_batch_last(torch.amin),
    "cat.default": _join_batch_last(torch.cat, 0),
    "clamp.default": torch.clamp,
    "div.Tensor": torch.div,
    "exp.default": torch.exp,
    "gt.Scalar": torch.gt,
    "lt.Scalar": torch.lt,
    "max.dim": _reduce_batch_last(torch.max),
    "maximum.default": torch.maximum,
    "mean.dim": _reduce_batch_last(torch.mean),
    "min.dim": _reduce_batch_last(torch.min),
    "minimum.default": torch.minimum,
    "mul.Tensor": torch.mul,
    "neg.default": torch.neg,
    "reshape.default": torch.reshape,
    "rsub.Scalar": torch.rsub,
    "select.int": torch.select,
    "sigmoid.default": torch.sigmoid,
    "softmax.int": _softmax,
    "sqrt.default": torch.sqrt,
    "stack.default": _join_batch_last(torch.stack, 1),
    "sub.Tensor": torch.sub,
    "sum.dim_IntList": _sum,
    "unsqueeze.default": torch.unsqueeze,
    "where.self": torch.where,
}
