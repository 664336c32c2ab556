"""The ATen operations a tensor program may consist of, by name, e.g. 'mul.Tensor'.

Only operations that compute tensors from tensors: nothing random, nothing that reads or writes anything else, nothing
whose result size depends on tensor values, nothing that addresses memory (as_strided, set_). AuxiliaryUpdate operations without
a dot in the name work on sizes: 'size', 'get' (one result of several), 'int_add', 'int_sub', 'int_mul', 'int_floordiv'.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.utils.text import words

DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
}

_PURE = words("""
__and__ __or__ __xor__ abs absolute acos acosh add alias all amax amin angle any arange arccos arcsin arctan arctan2
argmax argmin argsort asin asinh atan atan2 atanh baddbmm bitwise_and bitwise_not bitwise_or bitwise_xor bmm
broadcast_tensors broadcast_to bucketize cat cdist ceil celu chunk clamp clamp_max clamp_min clip clone column_stack
concat concatenate constant_pad_nd contiguous copysign cos cosh cosine_similarity count_nonzero cross cummax cummin
cumprod cumsum deg2rad detach diag diag_embed diagonal diff div divide dot dstack einsum elu eq erf erfc exp exp2
expand expand_as expm1 eye flatten flip floor floor_divide fmax fmin fmod frac full full_like gather ge gelu greater
greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hstack huber_loss hypot index index_put
index_select inner isclose isfinite isinf isnan kron layer_norm le leaky_relu lerp less less_equal lift_fresh_copy
linalg_cross linalg_norm linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp
logcumsumexp logical_and logical_not logical_or logical_xor logit logspace logsumexp lt masked_fill matmul max maximum
mean median meshgrid min minimum mish mm moveaxis movedim mse_loss mul multiply mv nan_to_num nanmean nansum narrow ne
neg negative new_full new_ones new_zeros norm not_equal numpy_T mT ones ones_like outer pad pairwise_distance permute
positive pow prod rad2deg ravel reciprocal relu relu6 remainder repeat repeat_interleave reshape reshape_as roll round
rsqrt rsub scatter scatter_add searchsorted select selu sgn sigmoid sign silu sin sinc sinh slice smooth_l1_loss
softmax softplus softshrink sort special_expit special_logit special_xlogy split split_with_sizes sqrt square squeeze
stack std std_mean sub subtract sum swapaxes swapdims t take_along_dim tan tanh tensor_split tensordot tile to topk
transpose tril tril_indices triu triu_indices true_divide trunc type_as unbind unflatten unsqueeze var var_mean view
view_as vstack where xlogy zeros zeros_like
""")
# Assignments to parts of a tensor (w[:, 0] = ...) and augmented ones (w *= ...) stay what they are in the raw graph.
_IN_PLACE = words("""
__iand__ __ior__ __ixor__ add_ bitwise_and_ bitwise_or_ bitwise_xor_ copy_ div_ fill_ floor_divide_ index_put_
masked_fill_ mul_ pow_ remainder_ sub_ zero_
""")


_EXCLUDED = frozenset(
    {
        *("repeat_interleave.Tensor", "repeat_interleave.self_Tensor"),  # the size depends on tensor values
        *("to.prim_Device", "to.prim_dtype", "to.prim_other"),  # end the process on wrong arguments
    }
)


def _of_whole_numbers(call: Callable[[int, int], int]) -> Callable[[Any, Any], int]:
    def checked(a: Any, b: Any) -> int:
        if not (isinstance(a, int) and isinstance(b, int)):
            raise TypeError("sizes are whole numbers")
        return call(a, b)

    return checked


_ON_SIZES: dict[str, Callable[..., Any]] = {
    "size": Tensor.size,
    "get": operator.getitem,
    "int_add": _of_whole_numbers(operator.add),
    "int_sub": _of_whole_numbers(operator.sub),
    "int_mul": _of_whole_numbers(operator.mul),
    "int_floordiv": _of_whole_numbers(operator.floordiv),
}
_DEFAULTED_KEYWORDS = frozenset({"layout", "pin_memory", "device", "memory_format", "generator", "non_blocking"})


@dataclass(frozen=True)
class Operation:
    """One allowed operation.

    Attributes:
        call: does it.
        keywords: names of keyword-only arguments that a program may give.
        creates: whether the result lives on a device that must be named (zeros, arange, ...).
        dtypes: names and, for positional ones, places of the arguments that are dtypes.
        in_place: whether it writes to its first argument.
    """

    call: Callable[..., Any]
    keywords: frozenset[str]
    creates: bool
    in_place: bool
    dtypes: frozenset[str | int] = frozenset()


def find(name: str) -> Operation | None:
    """The operation of that name, or None where it is not allowed."""
    if name in _ON_SIZES:
        return Operation(_ON_SIZES[name], frozenset(), creates=False, in_place=False)
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
    if not call._schema.returns or any("Tensor" not in str(one.type) for one in call._schema.returns):
        return None  # made for the numbers and lists of TorchScript: some end the process on a division by zero
    keywords = frozenset(a.name for a in arguments if a.kwarg_only) - _DEFAULTED_KEYWORDS
    has_tensor = any("Tensor" in str(a.type) for a in arguments)
    creates = not has_tensor and any(a.name == "device" for a in arguments)
    if not (has_tensor or creates):
        return None
    dtypes = frozenset(
        a.name if a.kwarg_only else k for k, a in enumerate(arguments) if "ScalarType" in str(a.real_type)
    )
    return Operation(call, keywords, creates, in_place, dtypes)


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
