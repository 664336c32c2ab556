"""Interval arithmetic over a tensor program: bounds of every value for all states and Qs within given ranges.

The bounds are sound, but not tight: a value lies within its interval, and an interval may be wider than the values that occur.
What is not known about an operation is (-inf, inf). Rounding errors are ignored.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qllm_exp.credit.operations import find_operation
from qllm_exp.credit.program import Program
from qllm_exp.credit.program_json import AGENTS_Q, BATCH_SIZE, GLOBAL_STATE, decode, references
from qllm_exp.utils.text import word_set

_TINY = 1e-30


class Interval(NamedTuple):
    """Bounds of a tensor, element by element. A truth value has bounds 0 and 1.

    Attributes:
        low: lower bounds.
        high: upper bounds, of the same shape.
    """

    low: Tensor
    high: Tensor

    def excludes_zero(self) -> bool:
        """Whether no element can be 0, or so small that it is 0 in float32."""
        return bool(((self.low > _TINY) | (self.high < -_TINY)).all())


_MOVING = word_set("""
alias broadcast_to cat chunk clone column_stack concat concatenate contiguous copy detach diag diag_embed diagonal
dstack expand expand_as fill flatten flip full_like get hstack index_select lift_fresh_copy mT moveaxis movedim
narrow new_full new_ones new_zeros numpy_T ones_like permute ravel repeat repeat_interleave reshape reshape_as roll
select select_scatter slice slice_scatter split split_with_sizes squeeze stack swapaxes swapdims t tensor_split tile
transpose tril triu unbind unflatten unsqueeze view view_as vstack zeros_like
""")  # they copy elements, or fill with constants
_INCREASING = word_set("""
amax amin arcsinh arctan asinh atan ceil clamp_max clamp_min cummax cummin cumsum deg2rad erf exp exp2 expm1
floor hardsigmoid hardtanh log log10 log1p log2 log_sigmoid logaddexp logcumsumexp logsumexp max maximum
mean median min minimum rad2deg relu relu6 round selu sgn sigmoid sign sinh softplus softsign sort special_expit
sqrt sum tanh tanhshrink topk trunc
""")
_COMPARISONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "gt": (torch.gt, False),
    "greater": (torch.gt, False),
    "ge": (torch.ge, False),
    "greater_equal": (torch.ge, False),
    "lt": (torch.lt, True),
    "less": (torch.lt, True),
    "le": (torch.le, True),
    "less_equal": (torch.le, True),
}


_BITWISE = ("bitwise_", "__and__", "__or__", "__xor__")


def bounds(program: Program, q: Interval, state: Interval) -> list[Any]:
    """Return an interval for every value of a program that is a tensor, and the value itself for every other one.

    Args:
        program: the program.
        q: bounds [1, n_agents] of the agents' values.
        state: bounds [1, state_dim] of the global state.
    """
    middle = ((bound.low.clamp(-1e6, 1e6) + bound.high.clamp(-1e6, 1e6)) / 2 for bound in (q, state))
    with torch.no_grad():
        values = program.all_values(*middle)
        results: list[Any] = list(values)
        for number in range(BATCH_SIZE + 1, program.first_operation):
            results[number] = _exact(values[number])
        results[AGENTS_Q], results[GLOBAL_STATE] = q, state
        for number, (name, arguments, keywords) in enumerate(program.operations, start=program.first_operation):
            if isinstance(values[number], Tensor | tuple | list):
                results[number] = _bound(name, arguments, keywords, results, values[number])
    return results


def _exact(value: Any) -> Any:
    return Interval(_number(value), _number(value)) if isinstance(value, Tensor) else value


def _number(tensor: Tensor) -> Tensor:
    """Return a tensor of truth values as 0 and 1, and any other as it is."""
    return tensor.float() if tensor.dtype == torch.bool else tensor


def _bound(name: str, arguments: list[Any], keywords: dict[str, Any], results: list[Any], value: Any) -> Any:
    """Bound the result of an operation; `value` is its result for one input, which has the same shape."""
    if name.startswith("arange") and references(arguments):
        return _unknown(value)  # its values depend on the batch size
    if name == "view.dtype" or (name.startswith(_BITWISE) and value.dtype != torch.bool):
        return _unknown(value)  # bits of numbers
    resolved = [_resolve(argument, results) for argument in arguments]
    named = {key: decode(argument) for key, argument in keywords.items()}
    try:
        result = _apply(name.partition(".")[0], name, resolved, named)
        return _unknown(value) if result is None else _fitted(result, value)
    except Exception:  # a rule that does not fit the arguments says nothing
        return _unknown(value)


def _resolve(argument: Any, results: list[Any]) -> Any:
    """Return the bounds that an argument refers to, or its value."""
    if isinstance(argument, dict) and "ref" in argument:
        return results[argument["ref"]]
    if isinstance(argument, list):
        return [_resolve(element, results) for element in argument]
    return decode(argument)


def _unknown(value: Any) -> Any:
    """Return the bounds of a value of which nothing is known but its shape."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bool:
            return Interval(torch.zeros(value.shape), torch.ones(value.shape))
        return Interval(torch.full(value.shape, -torch.inf), torch.full(value.shape, torch.inf))
    if isinstance(value, tuple | list):
        return tuple(_unknown(element) for element in value)
    return value


def _fitted(result: Any, value: Any) -> Any:
    """Return bounds in the shape of the value, with NaN replaced by nothing known."""
    if isinstance(value, tuple | list):
        return tuple(_fitted(*pair) for pair in zip(result, value, strict=True))
    if not isinstance(value, Tensor):
        return result
    low, high = (bound.to(torch.float64).expand(value.shape) for bound in result)
    return Interval(
        low.nan_to_num(-torch.inf, torch.inf, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -torch.inf)
    )


def _call(name: str, arguments: list[Any], keywords: dict[str, Any], side: int) -> Any:
    """Run an operation on the lower (side 0) or the upper (side 1) bounds of its arguments."""
    operation = find_operation(name)
    assert operation is not None

    def pick(argument: Any) -> Any:
        if isinstance(argument, Interval):
            return argument[side]
        return [pick(element) for element in argument] if isinstance(argument, list | tuple) else argument

    return operation.call(*map(pick, arguments), **keywords)


def _both(name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Run an operation that is monotonic in all of its tensors on the lower and the upper bounds."""
    low, high = (_call(name, arguments, keywords, side) for side in (0, 1))
    if isinstance(low, Tensor):
        return Interval(low, high)
    pairs = [Interval(*pair) for pair in zip(low, high, strict=True)]
    if not low[-1].is_floating_point() and name.partition(".")[0] in _INCREASING:  # values and their indices
        pairs[-1] = Interval(torch.zeros_like(low[-1]), torch.full_like(low[-1], 2**31))
    return tuple(pairs)


def _apply(base: str, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Return the bounds of an operation's result, or None if no rule is known."""
    if base in _MOVING or base in _INCREASING:
        return _both(name, arguments, keywords)
    rule = _RULES.get(base)
    if rule is not None:
        return rule(*arguments, **keywords)
    if base in _COMPARISONS:
        return _compare(base, *arguments)
    if base in ("index", "gather", "take_along_dim"):
        return _take(arguments[0])
    if base in ("arange", "eye", "zeros", "ones", "full", "scalar_tensor", "linspace", "tril_indices", "triu_indices"):
        operation = find_operation(name)
        assert operation is not None
        return _exact(operation.call(*arguments, **keywords))
    if base in ("bmm", "mm", "mv", "matmul", "dot", "inner"):
        return _product(name, arguments, keywords)
    return None


def _interval(value: Any) -> Interval:
    """Return a number as an interval."""
    if isinstance(value, Interval):
        return value
    tensor = torch.as_tensor(float(value), dtype=torch.float64)
    return Interval(tensor, tensor)


def _add(a: Any, b: Any, alpha: float = 1) -> Interval:
    a, b = _interval(a), _multiply(b, alpha) if alpha != 1 else _interval(b)
    return Interval(a.low + b.low, a.high + b.high)


def _subtract(a: Any, b: Any, alpha: float = 1) -> Interval:
    return _add(a, _negative(_multiply(b, alpha) if alpha != 1 else _interval(b)))


def _reverse_subtract(a: Any, b: Any, alpha: float = 1) -> Interval:
    return _subtract(b, a, alpha)


def _negative(a: Any) -> Interval:
    a = _interval(a)
    return Interval(-a.high, -a.low)


def _multiply(a: Any, b: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    products = [
        (x.double() * y.double()).nan_to_num(0.0, torch.inf, -torch.inf) for x in a for y in b
    ]  # 0 * inf is 0 here
    stacked = torch.stack([product.expand_as(products[0]) for product in products])
    return Interval(stacked.amin(0), stacked.amax(0))


def _reciprocal(a: Any) -> Interval:
    a = _interval(a)
    contains_zero = (a.low <= 0) & (a.high >= 0)
    low = torch.where(contains_zero, -torch.inf, 1 / a.high.double())
    return Interval(low, torch.where(contains_zero, torch.inf, 1 / a.low.double()))


def _divide(a: Any, b: Any, rounding_mode: str | None = None) -> Interval:
    low, high = _multiply(a, _reciprocal(b))
    if rounding_mode is None:
        return Interval(low, high)
    rounded = torch.floor if rounding_mode == "floor" else torch.trunc
    return Interval(rounded(low), rounded(high))


def _fraction(a: Any) -> Interval:
    a = _interval(a)
    return Interval(torch.where(a.low >= 0, 0.0, -1.0), torch.where(a.high <= 0, 0.0, 1.0))


def _interpolate(a: Any, b: Any, weight: Any) -> Interval:
    a, b, weight = _interval(a), _interval(b), _interval(weight)
    if bool((weight.low >= 0).all() and (weight.high <= 1).all()):
        return Interval(torch.minimum(a.low, b.low), torch.maximum(a.high, b.high))
    return _add(a, _multiply(weight, _subtract(b, a)))


def _absolute(a: Any) -> Interval:
    a = _interval(a)
    high = torch.maximum(a.low.abs(), a.high.abs())
    inside = (a.low <= 0) & (a.high >= 0)
    return Interval(torch.where(inside, 0.0, torch.minimum(a.low.abs(), a.high.abs())), high)


def _power(a: Any, exponent: Any) -> Interval | None:
    if isinstance(exponent, Interval):
        return None
    a = _interval(a)
    if exponent < 0:
        positive = _power(a, -exponent)
        return None if positive is None else _reciprocal(positive)
    if float(exponent).is_integer():
        if exponent % 2:
            return Interval(a.low.double() ** exponent, a.high.double() ** exponent)
        size = _absolute(a)
        return Interval(size.low.double() ** exponent, size.high.double() ** exponent)
    if bool((a.low < 0).any()):
        return None
    return Interval(a.low.double() ** exponent, a.high.double() ** exponent)


def _clamp(a: Any, low: Any = None, high: Any = None) -> Interval:
    a = _interval(a)
    lower, upper = a.low, a.high
    if low is not None:
        bound = _interval(low)
        lower, upper = torch.maximum(lower, bound.low), torch.maximum(upper, bound.high)
    if high is not None:
        bound = _interval(high)
        lower, upper = torch.minimum(lower, bound.low), torch.minimum(upper, bound.high)
    return Interval(lower, upper)


def _where(condition: Any, a: Any, b: Any) -> Interval:
    condition, a, b = _interval(condition), _interval(a), _interval(b)
    always, never = condition.low > 0, condition.high <= 0
    low = torch.where(always, a.low, torch.where(never, b.low, torch.minimum(a.low, b.low)))
    return Interval(low, torch.where(always, a.high, torch.where(never, b.high, torch.maximum(a.high, b.high))))


def _masked_fill(a: Any, mask: Any, value: Any) -> Interval:
    return _where(mask, value, a)


def _unit(a: Any, *_: Any, **__: Any) -> Interval:
    shape = _interval(a).low.shape
    return Interval(torch.zeros(shape), torch.ones(shape))


def _wave(a: Any) -> Interval:
    shape = _interval(a).low.shape
    return Interval(torch.full(shape, -1.0), torch.ones(shape))


def _and(a: Any, b: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    return Interval(torch.minimum(a.low, b.low), torch.minimum(a.high, b.high))


def _or(a: Any, b: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    return Interval(torch.maximum(a.low, b.low), torch.maximum(a.high, b.high))


def _not(a: Any) -> Interval:
    a = _interval(a)
    return Interval(1.0 - a.high.double(), 1.0 - a.low.double())


def _norm(a: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Interval:
    size = _absolute(a)
    low, high = (torch.linalg.vector_norm(bound.double(), order, dim, keepdim) for bound in size)
    return Interval(low, high)


def _distances(a: Any, b: Any, p: float = 2.0, *_: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    first, second = (Interval(*(bound.double() for bound in x)) for x in (a, b))
    gap = _absolute(
        Interval(
            first.low.unsqueeze(-2) - second.high.unsqueeze(-3), first.high.unsqueeze(-2) - second.low.unsqueeze(-3)
        )
    )
    low, high = (torch.linalg.vector_norm(bound, p, -1) for bound in gap)
    return Interval(low, high)


def _compare(base: str, a: Any, b: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    compare, is_less = _COMPARISONS[base]
    if is_less:
        certain, possible = compare(a.high, b.low), compare(a.low, b.high)
    else:
        certain, possible = compare(a.low, b.high), compare(a.high, b.low)
    return Interval(certain.float(), possible.float())


def _equal(a: Any, b: Any) -> Interval:
    a, b = _interval(a), _interval(b)
    certain = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return Interval(certain.float(), ((a.low <= b.high) & (b.low <= a.high)).float())


def _not_equal(a: Any, b: Any) -> Interval:
    return _not(_equal(a, b))


def _truth(a: Any) -> Interval:
    """Return the truth values of numbers."""
    return _not_equal(a, 0.0)


def _to(a: Any, dtype: Any = None, *_: Any) -> Interval:
    before = _interval(a)
    if dtype == torch.bool:
        return _not(_equal(before, 0.0))
    if dtype is not None and not dtype.is_floating_point:
        return Interval(before.low.trunc(), before.high.trunc())
    return before


def _take(a: Any) -> Interval:
    """Elements of a table: all of them lie within the bounds of the table."""
    a = _interval(a)
    return Interval(a.low.min(), a.high.max())


def _product(name: str, arguments: list[Any], keywords: dict[str, Any]) -> Interval | None:
    """Bound a sum of products: the products of the middles, plus and minus what the radii can change."""
    operation = find_operation(name)
    assert operation is not None
    intervals = [argument for argument in arguments if isinstance(argument, Interval)]
    if len(intervals) != 2 or any(not bool(bound.isfinite().all()) for interval in intervals for bound in interval):
        return None
    middle = [(interval.low.double() + interval.high.double()) / 2 for interval in intervals]
    radius = [(interval.high.double() - interval.low.double()) / 2 for interval in intervals]

    def call(first: Tensor, second: Tensor) -> Tensor:
        tensors = iter((first, second))
        picked = [next(tensors) if isinstance(argument, Interval) else argument for argument in arguments]
        result: Tensor = operation.call(*picked, **keywords)
        return result

    centre = call(*middle)
    spread = call(middle[0].abs(), radius[1]) + call(radius[0], middle[1].abs()) + call(radius[0], radius[1])
    return Interval(centre - spread, centre + spread)


_RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _subtract,
    "subtract": _subtract,
    "rsub": _reverse_subtract,
    "neg": _negative,
    "negative": _negative,
    "mul": _multiply,
    "multiply": _multiply,
    "div": _divide,
    "divide": _divide,
    "true_divide": _divide,
    "frac": _fraction,
    "lerp": _interpolate,
    "reciprocal": _reciprocal,
    "abs": _absolute,
    "absolute": _absolute,
    "square": lambda a: _power(a, 2),
    "pow": _power,
    "clamp": _clamp,
    "clip": _clamp,
    "where": _where,
    "masked_fill": _masked_fill,
    "softmax": _unit,
    "sin": _wave,
    "cos": _wave,
    "bitwise_and": _and,
    "logical_and": lambda a, b: _and(_truth(a), _truth(b)),
    "__and__": _and,
    "bitwise_or": _or,
    "logical_or": lambda a, b: _or(_truth(a), _truth(b)),
    "__or__": _or,
    "bitwise_not": _not,
    "logical_not": lambda a: _equal(a, 0.0),
    "linalg_vector_norm": _norm,
    "norm": lambda a, p=2, dim=None, keepdim=False: _norm(a, p, dim, keepdim),
    "cdist": _distances,
    "eq": _equal,
    "ne": _not_equal,
    "to": _to,
}
