"""The credit that a credit-assignment function gives to each agent in a state, and how it depends on the fields of the state.

The credit of agent i in state s is dQ_tot/dQ_i, with Q_tot = n * f(q, s) as in qllm_exp/mixers/tfcaf.py: n times the gradient
of f, after the IGM gate if that is on. For f affine in q this is n times the agent's weight, for every q. Equal credit, as in
VDN, is 1 for every agent.

Dependence is permutation importance (Breiman 2001; Fisher et al. 2019), here of the credit instead of an error:

    I[g, i] = mean over states s and draws s' of |c_i(s) - c_i(s with the columns of g taken from s')|

where s' is another state of the task. It is in units of credit, and 0 if credit i does not read g. All columns of a field
are permuted together, and so are all those of a kind of entity. Where a state contains the same information twice (an offset
and the two positions behind it), the two are permuted separately. The function is then also evaluated on states that cannot
occur, and such fields share the importance of their common information.

Shapes: T states of an episode, n agents, S columns of the state, M sampled states, V values of a curve.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.errors import UserError

_MAX_CURVE_POINTS = 25


@dataclass(frozen=True)
class Importance:
    """How much each agent's credit depends on a group of columns, in units of credit.

    Attributes:
        grouping: 'field', or 'kind' for all fields of a kind of entity together.
        label: of the field ('agent 1 position') or of the kind ('all agent fields').
        columns: indices of the columns of the state.
        by_agent: I[g, i] for each agent i.
    """

    grouping: str
    label: str
    columns: tuple[int, ...]
    by_agent: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Partial dependence: the mean credit over the sampled states with one column set to each of `values`.

    Attributes:
        label: of field and component, with the unit.
        values: [V] values of the column.
        credit: [V, n] mean credit.
    """

    label: str
    values: Tensor
    credit: Tensor


@dataclass(frozen=True)
class Dependence:
    """The dependence of credit on the state.

    Attributes:
        rows: importance of all kinds and then of all fields, each grouping in descending order.
        curves: partial dependence on the most important fields.
        n_states: number of sampled states.
    """

    rows: tuple[Importance, ...]
    curves: tuple[Curve, ...]
    n_states: int

    def by_grouping(self, grouping: str) -> list[Importance]:
        """Return the rows of a grouping, 'kind' or 'field', the most important first."""
        return [row for row in self.rows if row.grouping == grouping]

    def markdown(self) -> str:
        """Return a table with a row per group and a column per agent."""
        agents = [f"agent {i}" for i in range(len(self.rows[0].by_agent))]
        lines = [["state", *agents], ["---", *["---:"] * len(agents)]]
        lines += [[row.label, *(f"{value:.4f}" for value in row.by_agent)] for row in self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def csv(self) -> str:
        """Return the same table as CSV, with all digits; columns of the state are counted from 0."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["grouping", "label", "columns", *(f"agent_{i}" for i in range(len(self.rows[0].by_agent)))])
        for row in self.rows:
            writer.writerow([row.grouping, row.label, " ".join(map(str, row.columns)), *row.by_agent])
        return text.getvalue()


def credits(
    function: StoredFunction | Any, affine: bool, enforce: bool, states: Tensor, q: Tensor | None = None
) -> Tensor:
    """Return the credit of each agent in each state.

    Args:
        function: a StoredFunction, or its tensor program.
        affine: whether it is affine in q.
        enforce: whether the IGM gate is on, which sets negative weights to 0.
        states: [T, S].
        q: [T, n] individual Qs, at which the gradient is taken; None: 0. Irrelevant for an affine function.

    Returns:
        [T, n] credit.

    Raises:
        UserError: the gate is on and the function is not affine, so that there are no weights to gate.
    """
    program = function.program if isinstance(function, StoredFunction) else function
    if affine:
        weights: Tensor = program.weights_and_bias(states)[0]
        n = weights.shape[1]
        return n * (weights.clamp(min=0) if enforce else weights)
    if enforce:
        raise UserError(
            "mixer.igm=enforce needs a credit-assignment function that is affine in the agents' Qs, and this one is not. "
            "Use mixer.igm=relax, or another function."
        )
    n = program.n_agents
    q = torch.zeros(len(states), n, device=states.device) if q is None else q.detach().clone()
    with torch.enable_grad():
        value = program(q.requires_grad_(), states.detach())
        (gradient,) = torch.autograd.grad(value.sum(), q, materialize_grads=True)
    return n * gradient


def dependence(
    credit: Callable[[Tensor], Tensor],
    layout: StateLayout,
    states: Tensor,
    seed: int = 0,
    draws: int = 4,
    curves: int = 3,
) -> Dependence:
    """Measure the importance of every kind of entity and of every field, and the curves of the most important fields.

    Args:
        credit: [M, S] -> [M, n], the credit in states; row m must not depend on other rows.
        layout: of the state.
        states: [M, S] states of the task, M at least 2.
        seed: of the permutations.
        draws: number of other states that each state is compared with.
        curves: maximum number of curves; fields that no credit depends on get none.
    """
    generator = torch.Generator().manual_seed(seed)
    permutations = [_derangement(len(states), generator).to(states.device) for _ in range(draws)]
    base = credit(states)

    def importance(grouping: str, label: str, fields: Sequence[StateField]) -> Importance:
        columns = [column for field in fields for column in range(field.start, field.stop)]
        total = torch.zeros_like(base[0])
        for permutation in permutations:
            permuted = states.clone()
            permuted[:, columns] = states[permutation][:, columns]
            total += (credit(permuted) - base).abs().mean(0)
        return Importance(grouping, label, tuple(columns), tuple((total / draws).tolist()))

    kinds: dict[str, list[StateField]] = {}
    for field in layout:
        kinds.setdefault(field.entity, []).append(field)
    by_kind = [importance("kind", f"all {kind} fields", fields) for kind, fields in kinds.items()]
    by_field = [(importance("field", field.label, [field]), field) for field in layout]
    by_kind.sort(key=_strongest, reverse=True)
    by_field.sort(key=lambda pair: _strongest(pair[0]), reverse=True)
    leading = [field for row, field in by_field[:curves] if max(row.by_agent) > 0]
    return Dependence(
        rows=(*by_kind, *(row for row, _ in by_field)),
        curves=tuple(_steepest_curve(credit, field, states) for field in leading),
        n_states=len(states),
    )


def _strongest(row: Importance) -> float:
    """The importance for the agent whose credit depends most on the group."""
    return max(row.by_agent)


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """[count] A random permutation without fixed points."""
    order = torch.randperm(count, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _steepest_curve(credit: Callable[[Tensor], Tensor], field: StateField, states: Tensor) -> Curve:
    """The curve of the component of the field along which the mean credit of an agent varies most."""
    candidates = [curve(credit, field, component, states) for component in range(len(field.components))]
    return max(candidates, key=lambda drawn: float((drawn.credit.amax(0) - drawn.credit.amin(0)).max()))


def curve(credit: Callable[[Tensor], Tensor], field: StateField, component: int, states: Tensor) -> Curve:
    """Measure the partial dependence on a component of a field, over the values that occur in the states.

    Special values of the field are left out. If few values occur, they are the points of the curve; otherwise the points
    are evenly spaced between the lowest and the highest.

    Args:
        credit: [M, S] -> [M, n], the credit in states.
        field: of the state.
        component: index of the component.
        states: [M, S] states of the task.
    """
    column = field.start + component
    occurring = sorted(set(states[:, column].tolist()))
    ordinary = [value for value in occurring if value not in field.special]
    if len(ordinary) > 1:
        occurring = ordinary
    if len(occurring) <= _MAX_CURVE_POINTS:
        values = torch.tensor(occurring)
    else:
        values = torch.linspace(occurring[0], occurring[-1], _MAX_CURVE_POINTS)
    means = []
    for value in values.tolist():
        modified = states.clone()
        modified[:, column] = value
        means.append(credit(modified).mean(0))
    name = field.label if len(field.components) == 1 else f"{field.label}, {field.components[component]}"
    unit = field.unit.partition(":")[0]
    return Curve(f"{name} ({unit})" if unit else name, values, torch.stack(means).cpu())
