"""Directed search for states in which a credit-assignment function is not finite, explodes or changes abruptly.

Random states miss a divisor that is 0 in a narrow window. So each operation that can go wrong, or that can take another branch,
is a *risk*: a divisor, the argument of a logarithm, root or exponential, a comparison, a relu or a clamp. Interval arithmetic
(intervals.py) rules out the risks that cannot occur within the ranges of the state. For each of the others, the search minimises
the divisor, the argument or the margin of the comparison within the ranges: by steps along the sign of its gradient that become
ever smaller, and by bisection between two states in which its sign differs. It returns the states that it ends in. Whether the
function is at fault there is for the caller to decide, from its values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.credit.program import Program
from qllm_exp.credit.program_json import decode
from qllm_exp.envs.layout import StateLayout
from qllm_exp.generation.intervals import Interval, bounds
from qllm_exp.utils.text import word_set

_STEPS = 36  # of the descent; each is smaller than the one before
_FIRST_STEP, _SHRINK = 0.25, 0.62  # share of a column's range; factor from step to step, down to 1e-8 of the range
_BISECTIONS = 40
_STARTS = 6  # states from which each risk is minimised
_MAX_RISKS = 96
_MAX_ELEMENTS = 4  # of the quantity of a risk that are minimised, those that come nearest to the fault
_SMALL = 1e-2  # a divisor that can be smaller is a risk, for it may make a weight too large
_LARGEST_EXPONENT = 80.0  # exp() of more overflows soon

_DIVISORS = {
    "div": 1,
    "divide": 1,
    "true_divide": 1,
    "floor_divide": 1,
    "remainder": 1,
    "fmod": 1,
    "reciprocal": 0,
    "rsqrt": 0,
}
_LOGARITHMS = word_set("log log1p log2 log10 logit special_logit xlogy special_xlogy acosh arccosh")
_LOWEST = {"log1p": -1.0, "acosh": 1.0, "arccosh": 1.0}  # of the argument, where it is not 0
_EXPONENTIALS = word_set("exp exp2 expm1 sinh cosh")
_ARCS = word_set("acos arccos asin arcsin atanh arctanh")
_COMPARISONS = word_set("gt greater ge greater_equal lt less le less_equal eq ne")
_BRANCHES = {  # functions that change their form at a value of the first argument: at 0, or at that of another argument
    **dict.fromkeys(("relu", "leaky_relu", "abs", "sign", "sgn", "heaviside"), None),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin", "clamp", "clamp_min", "clamp_max"), 1),
}


@dataclass(frozen=True)
class Risk:
    """An operation that can go wrong, or take another branch, for some state within the ranges.

    Attributes:
        number: number of the operation's result among the values of the program.
        kind: 'divisor', 'logarithm', 'root', 'exponent', 'power', 'arc', 'pole', 'comparison' or 'branch'.
        line: line of the source; 0 if it is not known.
    """

    number: int
    kind: str
    line: int


@dataclass(frozen=True)
class Ranges:
    """Ranges of the two inputs of a program.

    Attributes:
        state: bounds [1, state_dim]; columns whose values are codes are equal to the code in the states themselves.
        q: bounds [1, n_agents].
        fixed: the values of a column that have a meaning of their own and are kept, by column.
    """

    state: Interval
    q: Interval
    fixed: dict[int, tuple[float, ...]]

    def clip(self, q: Tensor, states: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """Return q and states within the ranges; columns that have a code in `origin` keep it."""
        states = torch.minimum(torch.maximum(states, self.state.low), self.state.high)
        for column, codes in self.fixed.items():
            is_code = (origin[:, column, None] == torch.tensor(codes)).any(1)
            states[:, column] = torch.where(is_code, origin[:, column], states[:, column])
        return torch.minimum(torch.maximum(q, self.q.low), self.q.high), states


def ranges(layout: StateLayout, n_agents: int, reach: float, q_reach: float) -> Ranges:
    """Return the ranges of a task.

    Args:
        layout: the layout of the state.
        n_agents: number of agents.
        reach: end of the range of a column without bounds.
        q_reach: end of the range of the agents' values.
    """
    low, high = torch.zeros(1, layout.size), torch.zeros(1, layout.size)
    fixed: dict[int, tuple[float, ...]] = {}
    for field in layout:
        codes = tuple(field.special)
        low[:, field.columns] = max(min((field.low, *codes)), -reach)
        high[:, field.columns] = min(max((field.high, *codes)), reach)
        if codes:
            fixed |= dict.fromkeys(range(field.start, field.stop), codes)
    q = torch.full((1, n_agents), q_reach)
    return Ranges(Interval(low, high), Interval(-q, q), fixed)


def risks(program: Program, lines: Sequence[int], within: Ranges) -> list[Risk]:
    """Return the operations that intervals cannot prove harmless within the ranges.

    Args:
        program: the program.
        lines: line of the source for each operation; empty if not known.
        within: the ranges of its inputs.
    """
    values = bounds(program, within.q, within.state)
    unproven: list[Risk] = []
    for index, (name, arguments, _) in enumerate(program.operations):
        number = program.first_operation + index
        kind = _kind(name.partition(".")[0], arguments, values)
        if kind:
            unproven.append(Risk(number, kind, lines[index] if index < len(lines) else 0))
    return unproven


def _kind(base: str, arguments: list[Any], values: list[Any]) -> str:
    """Return the kind of a risk; '' for an operation without risk, or proven to be harmless."""
    first = _value(arguments[0], values) if arguments else None
    second = _value(arguments[1], values) if len(arguments) > 1 else None
    if base == "pow":
        return _kind_of_power(first, second)
    if base in _DIVISORS:
        divisor = second if _DIVISORS[base] else first
        return "divisor" if isinstance(divisor, Interval) and _can_be_small(divisor) else ""
    if base in ("xlogy", "special_xlogy"):
        first = second
    if not isinstance(first, Interval):
        return ""
    if base in _LOGARITHMS:
        return "logarithm" if base == "logit" or bool((first.low <= _LOWEST.get(base, 0.0)).any()) else ""
    if base == "sqrt":
        return "root" if bool((first.low <= 0).any()) else ""
    if base in _EXPONENTIALS:
        return "exponent" if bool((first.high > _LARGEST_EXPONENT).any()) else ""
    if base in _ARCS:
        return "arc" if bool(((first.high > 1) | (first.low < -1)).any()) else ""
    if base == "tan":
        return "pole" if bool((first.high - first.low > 1).any()) else ""
    if base in _COMPARISONS:
        return "comparison"
    if base in _BRANCHES:
        threshold = 0.0 if _BRANCHES[base] is None else second
        return "branch" if _can_cross(first, threshold) else ""
    return ""


def _can_cross(value: Interval, threshold: Any) -> bool:
    """Whether an element of a value may lie on either side of a threshold; False for a threshold that is no number."""
    if isinstance(threshold, Interval):
        return bool(((value.low < threshold.high) & (value.high > threshold.low)).any())
    if not isinstance(threshold, int | float):
        return False
    return bool(((value.low < threshold) & (value.high > threshold)).any())


def _kind_of_power(base: Any, exponent: Any) -> str:
    """Return the kind of risk of a power; '' if it has none."""
    if isinstance(exponent, Interval):
        return "power" if bool((exponent.high > _LARGEST_EXPONENT / 4).any()) else ""
    if not isinstance(base, Interval) or not isinstance(exponent, int | float):
        return ""
    if exponent < 0:
        return "divisor" if _can_be_small(base) else ""
    return "root" if not float(exponent).is_integer() and bool((base.low <= 0).any()) else ""


def _can_be_small(divisor: Interval) -> bool:
    """Whether an element of a divisor can be small."""
    return bool(((divisor.low < _SMALL) & (divisor.high > -_SMALL)).any())


def _value(argument: Any, values: list[Any]) -> Any:
    """Return the value that an argument refers to, or the argument itself; None for a list."""
    if isinstance(argument, list):
        return None
    return values[argument["ref"]] if isinstance(argument, dict) and "ref" in argument else decode(argument)


def search(
    program: Program,
    unproven: Sequence[Risk],
    within: Ranges,
    q: Tensor,
    states: Tensor,
    check_time: Callable[[], None],
) -> tuple[Tensor, Tensor, list[Risk]]:
    """Search for inputs at which the risks occur.

    Args:
        program: the program.
        unproven: the risks.
        within: the ranges to stay in.
        q: values of the agents [M, n] to start from.
        states: states [M, state_dim] to start from, within the ranges.
        check_time: called often; raises an exception when the time is over.

    Returns:
        Values of the agents [R, n] and states [R, state_dim], and the risk that each row was searched for.
    """
    ordered = sorted(unproven, key=lambda risk: risk.kind in ("comparison", "branch"))  # of these there may be many
    targets = _targets(program, ordered[:_MAX_RISKS], q, states)
    if not targets:
        return q[:0], states[:0], []
    starts = torch.cat([target.starts for target in targets])
    owners = [target.risk for target in targets for _ in target.starts]
    found_q, found_states = _descend(program, targets, within, q[starts], states[starts], check_time)
    halved = [target for target in targets if target.pair is not None]
    zero_q, zero_states = _bisect(program, halved, q, states, check_time)
    owners += [target.risk for target in halved] * 2
    return torch.cat([found_q, zero_q]), torch.cat([found_states, zero_states]), owners


@dataclass(frozen=True)
class _Target:
    """What is minimised for a risk.

    Attributes:
        risk: the risk.
        sign: 1 to minimise the quantity itself, -1 to maximise it, 0 to minimise its size.
        element: the element of the flattened quantity.
        starts: rows to start from.
        pair: two rows in which the sign of the element differs, if there are such.
    """

    risk: Risk
    sign: int
    element: int
    starts: Tensor
    pair: tuple[int, int] | None


def _quantity(program: Program, risk: Risk, values: list[Any]) -> Tensor | None:
    """Return the divisor, argument or margin [B, k] of a risk; None if it does not depend on the inputs."""
    name, arguments, _ = program.operations[risk.number - program.first_operation]
    base = name.partition(".")[0]
    first, second = ([_value(argument, values) for argument in arguments[:2]] + [None])[:2]
    if risk.kind == "comparison":
        quantity = (
            torch.as_tensor(first, dtype=torch.float32) - second
            if not isinstance(first, Tensor)
            else first.float() - second
        )
    elif risk.kind == "branch":
        quantity = first if _BRANCHES[base] is None else first - second
    elif risk.kind == "arc":
        quantity = 1 - first.abs()
    elif risk.kind == "pole":
        quantity = first.cos()
    elif (
        risk.kind == "power"
        or base in ("xlogy", "special_xlogy")
        or (risk.kind == "divisor" and _DIVISORS.get(base) == 1)
    ):
        quantity = second
    elif base == "logit":
        quantity = torch.minimum(first, 1 - first)
    else:
        quantity = first - _LOWEST[base] if base in _LOWEST else first
    rows = values[0].shape[0]
    if not isinstance(quantity, Tensor) or quantity.dim() == 0 or quantity.shape[0] != rows:
        return None
    return quantity.float().reshape(rows, -1)


def _quantities(program: Program, targets: Sequence["_Target"], values: list[Any]) -> dict[Risk, Tensor]:
    """Return the quantity of every risk that is searched for."""
    quantities = {}
    for risk in dict.fromkeys(target.risk for target in targets):
        quantity = _quantity(program, risk, values)
        assert quantity is not None  # it was there for the starting rows
        quantities[risk] = quantity
    return quantities


_SIGNS = {
    "divisor": (0,),
    "pole": (0,),
    "logarithm": (1,),
    "root": (1,),
    "exponent": (-1,),
    "power": (-1,),
    "arc": (1,),
    "comparison": (1, -1),
    "branch": (1, -1),
}


def _targets(program: Program, unproven: list[Risk], q: Tensor, states: Tensor) -> list[_Target]:
    """Choose for each risk what to minimise, and the rows to start from."""
    with torch.no_grad():
        values = program.all_values(q, states)
    targets: list[_Target] = []
    for risk in unproven:
        quantity = _quantity(program, risk, values)
        if quantity is None or not quantity.numel():
            continue
        finite = quantity.nan_to_num(math.inf, math.inf, -math.inf)
        for sign in _SIGNS[risk.kind]:
            scores = _score(finite, sign)
            for element in scores.amin(0).argsort()[:_MAX_ELEMENTS].tolist():
                column = finite[:, element]
                pair = None
                if sign >= 0 and risk.kind != "exponent" and bool((column > 0).any() and (column < 0).any()):
                    pair = int(column.argmax()), int(column.argmin())
                targets.append(_Target(risk, sign, element, scores[:, element].argsort()[:_STARTS], pair))
    return targets


def _score(quantity: Tensor, sign: int) -> Tensor:
    """Return what is minimised, from a quantity of any shape."""
    return quantity.abs() if sign == 0 else sign * quantity


def _descend(
    program: Program,
    targets: list[_Target],
    within: Ranges,
    q: Tensor,
    states: Tensor,
    check_time: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Minimise the quantity of each target from its starting rows, which follow each other in `q` and `states`."""
    rows = torch.split(torch.arange(len(q)), [len(target.starts) for target in targets])
    spans = (within.q.high - within.q.low, within.state.high - within.state.low)
    best_q, best_states, origin = q, states, states
    best, moves = _objective(program, targets, rows, q, states)
    step = _FIRST_STEP
    for _ in range(_STEPS):
        check_time()
        next_q, next_states = within.clip(
            best_q - step * spans[0] * moves[0], best_states - step * spans[1] * moves[1], origin
        )
        objective, next_moves = _objective(program, targets, rows, next_q, next_states)
        better = (objective < best)[:, None]
        best = torch.minimum(objective, best)
        best_q, best_states = torch.where(better, next_q, best_q), torch.where(better, next_states, best_states)
        moves = tuple(torch.where(better, new, old) for new, old in zip(next_moves, moves, strict=True))
        step *= _SHRINK
    return best_q, best_states


def _objective(
    program: Program, targets: list[_Target], rows: Sequence[Tensor], q: Tensor, states: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute the objective of every row, and the signs of its gradients in q and in the states."""
    leaf_q, leaf_states = q.clone().requires_grad_(), states.clone().requires_grad_()
    with torch.enable_grad():
        values = program.all_values(leaf_q, leaf_states)
        quantities = _quantities(program, targets, values)
        parts = [
            _score(quantities[target.risk][numbers, target.element], target.sign)
            for target, numbers in zip(targets, rows, strict=True)
        ]
        objective = torch.cat(parts)
        if not objective.requires_grad:
            return objective, (torch.zeros_like(q), torch.zeros_like(states))
        gradients = torch.autograd.grad(objective.sum(), (leaf_q, leaf_states), materialize_grads=True)
    return objective.detach().nan_to_num(math.inf), tuple(gradient.nan_to_num().sign() for gradient in gradients)


def _bisect(
    program: Program, targets: list[_Target], q: Tensor, states: Tensor, check_time: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Return the two neighbouring points between which the quantity of each target changes its sign.

    They lie on the line between the two rows of `target.pair`. The result holds the points at which the quantity is positive,
    then those at which it is not.
    """
    if not targets:
        return q[:0], states[:0]
    pairs = torch.tensor([target.pair for target in targets])
    ends_q, ends_states = q[pairs].clone(), states[pairs].clone()  # [T, 2, n], [T, 2, state_dim]
    index = torch.arange(len(targets))
    with torch.no_grad():
        for _ in range(_BISECTIONS):
            check_time()
            middle_q, middle_states = ends_q.mean(1), ends_states.mean(1)
            quantities = _quantities(program, targets, program.all_values(middle_q, middle_states))
            column = torch.stack([quantities[target.risk][row, target.element] for row, target in enumerate(targets)])
            side = torch.where(column > 0, 0, 1)
            ends_q[index, side], ends_states[index, side] = middle_q, middle_states
    return ends_q.transpose(0, 1).flatten(0, 1), ends_states.transpose(0, 1).flatten(0, 1)
