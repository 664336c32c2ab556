"""What a credit-assignment function gives to each agent in a state, and how that depends on the fields of the state.

The credit of agent i in state s is dQ_tot/dQ_i, Q per Q, with Q_tot = n * f(q, s) as in qllm_exp/mixers/tfcaf.py: n times
the gradient of f, after the IGM gate where that is on. For f affine in q this is n times the agent's weight, whatever q
is. Equal credit, which is VDN, is 1 for every agent.

Dependence is permutation importance (Breiman 2001; Fisher et al. 2019), here of the credit instead of an error:

    I[g, i] = mean over states s and draws s' of |c_i(s) - c_i(s with the columns of g taken from s')|

where s' is another state of the task. It is in units of credit, and 0 where credit i does not read g. All columns of a
field go together, and so do all those of a kind of entity. What is told twice in a state (an offset and the two positions
behind it) is taken apart, so that a function is also asked about states that cannot occur, and fields share what they
say together.

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

_CURVE_POINTS = 25


@dataclass(frozen=True)
class Importance:
    """How much each agent's credit depends on a group of columns, in units of credit.

    Attributes:
        grouping: 'field' or 'kind' (all fields of a kind of entity together).
        label: of the field ('agent 1 position'), or of the kind ('all agent fields').
        columns: of the state. by_agent: I[g, i] for each agent.
    """

    grouping: str
    label: str
    columns: tuple[int, ...]
    by_agent: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Partial dependence: the mean credit over the sampled states with one column set to each of `values`.

    Attributes:
        label: of field and component, with the unit. values: [V]. credit: [V, n].
    """

    label: str
    values: Tensor
    credit: Tensor


@dataclass(frozen=True)
class Dependence:
    """Importance of all kinds and fields, the most important first in each grouping; curves of the leading fields."""

    rows: tuple[Importance, ...]
    curves: tuple[Curve, ...]
    n_states: int

    def of(self, grouping: str) -> list[Importance]:
        return [row for row in self.rows if row.grouping == grouping]

    def markdown(self) -> str:
        """A table with a row per group and a column per agent."""
        agents = [f"agent {i}" for i in range(len(self.rows[0].by_agent))]
        lines = [["state", *agents], ["---", *["---:"] * len(agents)]]
        lines += [[row.label, *(f"{value:.4f}" for value in row.by_agent)] for row in self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def csv(self) -> str:
        """The same with all digits; columns of the state are counted from 0."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["grouping", "label", "columns", *(f"agent_{i}" for i in range(len(self.rows[0].by_agent)))])
        for row in self.rows:
            writer.writerow([row.grouping, row.label, " ".join(map(str, row.columns)), *row.by_agent])
        return text.getvalue()


def credits(
    function: StoredFunction | Any, affine: bool, enforce: bool, states: Tensor, q: Tensor | None = None
) -> Tensor:
    """[T, n] credit in each of the states [T, S].

    Args:
        function: an StoredFunction, or its tensor program. affine: whether it is affine in q.
        enforce: whether the IGM gate is on: negative weights are 0 then.
        q: [T, n], where the gradient of a function that is not affine is taken; None: at 0. Else it makes no difference.

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
    """Importance of every kind of entity and of every field, as the module says, and curves of the leading fields.

    Args:
        credit: [M, S] -> [M, n], the credit in states; row m must not depend on other rows.
        states: [M, S] of the task, M at least 2. draws: other states for each of them.
        curves: at most how many fields get a curve; those that no credit depends on get none.
    """
    generator = torch.Generator().manual_seed(seed)
    others = [_derangement(len(states), generator).to(states.device) for _ in range(draws)]
    base = credit(states)

    def importance(grouping: str, label: str, fields: Sequence[StateField]) -> Importance:
        columns = [column for one in fields for column in range(one.start, one.stop)]
        total = torch.zeros_like(base[0])
        for other in others:
            mixed = states.clone()
            mixed[:, columns] = states[other][:, columns]
            total += (credit(mixed) - base).abs().mean(0)
        return Importance(grouping, label, tuple(columns), tuple((total / draws).tolist()))

    kinds: dict[str, list[StateField]] = {}
    for one in layout:
        kinds.setdefault(one.entity, []).append(one)
    by_kind = [importance("kind", f"all {kind} fields", fields) for kind, fields in kinds.items()]
    by_field = [(importance("field", one.label, [one]), one) for one in layout]
    by_kind.sort(key=_strength)
    by_field.sort(key=lambda pair: _strength(pair[0]))
    leading = [one for row, one in by_field[:curves] if max(row.by_agent) > 0]
    return Dependence(
        rows=(*by_kind, *(row for row, _ in by_field)),
        curves=tuple(_steepest(credit, one, states) for one in leading),
        n_states=len(states),
    )


def _strength(row: Importance) -> float:
    """For sorting: the strongest dependence first, in the order of the state where equal."""
    return -max(row.by_agent)


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """[count] a random permutation that leaves nothing in its place."""
    order = torch.randperm(count, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _steepest(credit: Callable[[Tensor], Tensor], one: StateField, states: Tensor) -> Curve:
    """The curve of the field's component along which some mean credit changes most."""
    every = [curve(credit, one, place, states) for place in range(len(one.components))]
    return max(every, key=lambda drawn: float((drawn.credit.amax(0) - drawn.credit.amin(0)).max()))


def curve(credit: Callable[[Tensor], Tensor], one: StateField, component: int, states: Tensor) -> Curve:
    """Partial dependence on a component of a field, over the values it takes in `states` [M, S], special ones left out.

    Few different values are the points themselves; otherwise the points lie evenly between the lowest and the highest.
    """
    column = one.start + component
    seen = sorted(set(states[:, column].tolist()))
    usual = [value for value in seen if value not in one.special]
    seen = usual if len(usual) > 1 else seen
    values = torch.tensor(seen) if len(seen) <= _CURVE_POINTS else torch.linspace(seen[0], seen[-1], _CURVE_POINTS)
    means = []
    for value in values.tolist():
        there = states.clone()
        there[:, column] = value
        means.append(credit(there).mean(0))
    name = one.label if len(one.components) == 1 else f"{one.label}, {one.components[component]}"
    unit = one.unit.partition(":")[0]
    return Curve(f"{name} ({unit})" if unit else name, values, torch.stack(means).cpu())
