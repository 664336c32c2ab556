"""A credit-assignment function as data: a list of ATen operations that training runs instead of generated Python."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qllm_exp.credit import program_json
from qllm_exp.credit.operations import DTYPES, FASTER, batch_innermost, find
from qllm_exp.credit.program_json import AGENTS_Q, BATCH_SIZE, FIRST_CONSTANT, GLOBAL_STATE, refuse
from qllm_exp.credit.refused import Refused

MAX_ROW_ELEMENTS = 4_096  # of one value, for each row of the batch
MAX_TOTAL_ROW_ELEMENTS = 131_072  # of all values together, for each row of the batch
MAX_DIMENSIONS = 8
_PROBE_BATCH = 64
_LARGE_BATCH = 4_096


class _Step(NamedTuple):
    name: str  # equal for steps that do the same with the same values
    call: Callable[..., Any]
    used: tuple[int, ...]  # slots of its positional arguments
    slot: int  # where its result goes


class _Plan(NamedTuple):
    """A program made ready for one device. Slots are the values of the program, then literals and lists."""

    initial: list[Any]
    steps: list[tuple[Callable[..., Any], Callable[[list[Any]], Any], int]]  # call, its arguments' getter, slot
    output: int


class Program:
    """A checked tensor program. Immutable; `program(agents_q, global_state)` gives global_q.

    Attributes:
        n_agents: columns of agents_q. state_dim: columns of global_state.
        hash: SHA-256 of the canonical JSON, 64 hex digits.
    """

    def __init__(self, data: Any) -> None:
        """Check `data`, the parsed JSON; raises Refused('program', reason) where it is not a valid program."""
        self._data = program_json.checked(data)
        self.n_agents: int = self._data["n_agents"]
        self.state_dim: int = self._data["state_dim"]
        self.hash = hashlib.sha256(program_json.canonical(self._data).encode()).hexdigest()
        self._plans: dict[torch.device, _Plan] = {}
        self._batches: set[int] = set()  # batch sizes for which every value is known to keep to the caps
        self._check_sizes()

    @classmethod
    def from_json(cls, data: Any) -> "Program":
        """The program that `to_json` wrote; raises Refused('program', reason) for anything else."""
        return cls(data)

    def to_json(self) -> dict[str, Any]:
        """The program as plain JSON data, a copy of the caller's own."""
        copied: dict[str, Any] = json.loads(program_json.canonical(self._data))
        return copied

    def __call__(self, agents_q: Tensor, global_state: Tensor) -> Tensor:
        """Team value / n_agents: agents_q [B, n_agents], global_state [B, state_dim] -> [B, 1], all float32.

        Differentiable in both. Runs on the device of agents_q. Raises ValueError for other shapes, and
        Refused('program', reason) where the size of a value leaves its caps for this batch size only.
        """
        batch = agents_q.shape[0]
        if agents_q.shape != (batch, self.n_agents) or global_state.shape != (batch, self.state_dim):
            raise ValueError(
                f"expected agents_q [B, {self.n_agents}] and global_state [B, {self.state_dim}], "
                f"got {list(agents_q.shape)} and {list(global_state.shape)}"
            )
        if batch not in self._batches:
            self._check_batch(batch)
        plan = self._plans.get(agents_q.device) or self._plan(agents_q.device)
        values = plan.initial.copy()
        values[AGENTS_Q], values[GLOBAL_STATE] = batch_innermost(agents_q), batch_innermost(global_state)
        values[BATCH_SIZE] = batch
        for call, arguments, slot in plan.steps:
            values[slot] = call(*arguments(values))
        result: Tensor = values[plan.output]
        return result

    def weights_and_bias(self, global_state: Tensor) -> tuple[Tensor, Tensor]:
        """For a program that is affine in q: w [B, n_agents] and b [B, 1] with f(q, s) = sum_i w_i(s) q_i + b(s).

        b is f at q = 0, and w its gradient there: one call, whose backward pass runs only through what depends on q.
        global_state [B, state_dim]; the results carry no gradient.
        """
        q = torch.zeros(global_state.shape[0], self.n_agents, device=global_state.device, requires_grad=True)
        with torch.enable_grad():
            bias = self(q, global_state.detach())
            (weights,) = torch.autograd.grad(bias.sum(), q, materialize_grads=True)
        return weights, bias.detach()

    def affine(self, states: Tensor, tolerance: float = 1e-4) -> bool:
        """Whether f is affine in q on each of the given states [B, state_dim].

        Compares f(q, s) with w(s) q + b(s) for random q of sizes 0.01 to 1000 and of mixed signs; `tolerance` is
        relative to the terms of the sum.
        """
        weights, bias = self.weights_and_bias(states)
        generator = torch.Generator().manual_seed(0)
        for scale in (0.01, 1.0, 30.0, 1000.0):
            noise = scale * torch.randn(states.shape[0], self.n_agents, generator=generator).to(states)
            for q in (noise, noise.abs(), -noise.abs()):
                with torch.no_grad():
                    value = self(q, states)
                terms = (weights * q).abs().sum(1, keepdim=True) + bias.abs() + value.abs()
                error = (value - (weights * q).sum(1, keepdim=True) - bias).abs()
                if not bool((error <= tolerance * terms).all()):  # also where error is nan
                    return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and other.hash == self.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        return self  # immutable: the target copy of a mixer shares it

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self._data,)

    def _compile(self, device: torch.device) -> tuple[list[Any], list[_Step]]:
        """Initial values and steps. Literals and lists of values take slots of their own behind the values."""
        constants = [program_json.decode_constant(one, device) for one in self._data["constants"]]
        first = FIRST_CONSTANT + len(constants)
        operations = self._data["operations"]
        initial = [None] * FIRST_CONSTANT + constants + [None] * len(operations)
        steps: list[_Step] = []
        literals: dict[str, int] = {}

        def slot_of(argument: Any) -> int:
            if isinstance(argument, dict) and "ref" in argument:
                return int(argument["ref"])
            if program_json.references(argument):  # a list with values in it
                used = tuple(slot_of(one) for one in argument)
                initial.append(None)
                steps.append(_Step("list", _as_list, used, len(initial) - 1))
                return len(initial) - 1
            text = program_json.canonical(argument)
            if text not in literals:
                literals[text] = len(initial)
                initial.append(program_json.decode(argument))
            return literals[text]

        for slot, (name, arguments, keywords) in enumerate(operations, start=first):
            operation = find(name)
            assert operation is not None  # program_json.checked refuses unknown names
            named = {key: program_json.decode(value) for key, value in keywords.items()}
            if operation.creates:
                named["device"] = device
            call = FASTER.get(name, operation.call)
            call = partial(call, **named) if named else call
            identity = f"{name} {program_json.canonical(keywords)}" if keywords else name
            steps.append(_Step(identity, call, tuple(slot_of(one) for one in arguments), slot))
        return initial, steps

    def _plan(self, device: torch.device) -> _Plan:
        """Make ready for a device: what does not depend on the inputs is computed here, and nothing is computed twice."""
        # Values computed ahead outlive the call: outside inference mode autograd may use them in later ones.
        with torch.inference_mode(False), torch.no_grad():
            initial, steps = self._compile(device)
            output: int = self._data["output"]
            if not any(self._in_place()):  # else a value may change after it was computed
                from_inputs = {AGENTS_Q, GLOBAL_STATE, BATCH_SIZE}
                same: dict[int, int] = {}  # slots of values that another slot holds already
                done: dict[tuple[str, tuple[int, ...]], int] = {}
                remaining = []
                for name, call, given, slot in steps:
                    used = tuple(same.get(k, k) for k in given)
                    if (name, used) in done:
                        same[slot] = done[name, used]
                    elif from_inputs.isdisjoint(used):
                        initial[slot] = call(*(initial[k] for k in used))
                    else:
                        from_inputs.add(slot)
                        remaining.append(_Step(name, call, used, slot))
                    done.setdefault((name, used), slot)
                steps, output = remaining, same.get(output, output)
        plan = _Plan(initial, [(s.call, _getter(s.used), s.slot) for s in steps], output)
        self._plans[device] = plan
        return plan

    def _in_place(self) -> list[bool]:
        found = [find(name) for name, _, _ in self._data["operations"]]
        return [operation is not None and operation.in_place for operation in found]

    def _check_sizes(self) -> None:
        """Run on the meta device, where tensors have shapes but no memory, and refuse what would grow too large."""
        once, twice = self._shapes(_PROBE_BATCH), self._shapes(2 * _PROBE_BATCH)
        if any(large > 2 * small for small, large in zip(once, twice, strict=True)):
            refuse("a tensor grows faster than the batch: combine values within a row only, never across the batch")
        for batch in (_PROBE_BATCH, 1, _LARGE_BATCH):
            self._check_batch(batch)

    def _check_batch(self, batch: int) -> None:
        """Refuse a program whose values are too large for this batch size: a size can be any function of it."""
        sizes, rows = self._shapes(batch), max(batch, 2 * _PROBE_BATCH)  # fixed tables have the room of a small batch
        if max(sizes) > rows * MAX_ROW_ELEMENTS:
            refuse(f"a tensor has more than {MAX_ROW_ELEMENTS} elements per row of the batch")
        if sum(sizes) > rows * MAX_TOTAL_ROW_ELEMENTS:
            refuse(f"the tensors have more than {MAX_TOTAL_ROW_ELEMENTS} elements per row of the batch together")
        self._batches.add(batch)

    def _shapes(self, batch: int) -> list[int]:
        """Elements of the largest tensor that each step makes; refuses wrong arguments, dtypes and shapes."""
        device = torch.device("meta")
        with torch.inference_mode(False), torch.no_grad(), _Watch() as watch:
            values, steps = self._compile(device)
            values[AGENTS_Q] = batch_innermost(torch.empty(batch, self.n_agents, device=device))
            values[GLOBAL_STATE] = batch_innermost(torch.empty(batch, self.state_dim, device=device))
            values[BATCH_SIZE] = batch
            fixed = [value for value in values if isinstance(value, Tensor)]
            sizes = []
            for step in steps:
                watch.largest = 0
                try:
                    values[step.slot] = step.call(*(values[k] for k in step.used))
                except Refused:
                    raise
                except Exception as error:  # whatever a wrong argument makes an operation raise
                    refuse(
                        f"operation {step.name} cannot be done: {str(error).splitlines()[0] if str(error) else error!r}"
                    )
                sizes.append(max(watch.largest, _elements(values[step.slot])))
        if any(value._version for value in fixed):
            refuse("the function changes its inputs or constants in place: work on a clone()")
        output = values[self._data["output"]]
        if not isinstance(output, Tensor) or output.shape != (batch, 1) or output.dtype != torch.float32:
            given = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            refuse(f"the result for a batch of {batch} must be torch.float32 [{batch}, 1], it is {given}")
        return [fixed[0].numel(), *sizes]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives its parts no types
    """Sees the basic operations that others are made of: the largest tensor among them, and those to refuse.

    An einsum, say, may multiply out far larger tensors than it takes and gives.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if "svd" in name or "eig" in name:
            refuse("matrix norms with ord=2, -2 or 'nuc' are not allowed: use the norm of vectors, dim=-1")
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        if (
            name in _INTEGER_TRAPS
            and (kwargs or {}).get("rounding_mode") == "trunc"
            and not made[0].is_floating_point()
        ):
            refuse("dividing whole numbers with rounding_mode='trunc' is not allowed: use // or divide float tensors")
        if name == "aten::view" and torch.bool in args:
            refuse("reading bits as bool is not allowed: compare with 0 instead")  # bits other than 0 and 1 are no bool
        if not any(one.alias_info for one in func._schema.returns):  # a view takes no memory
            self.largest = max([self.largest, *(one.numel() for one in made)])
        return result


# The processor ends the process where the smallest whole number is divided by -1.
_INTEGER_TRAPS = frozenset({"aten::div", "aten::div_"})


def _as_list(*values: Any) -> list[Any]:
    return list(values)


def _getter(used: tuple[int, ...]) -> Callable[[list[Any]], Any]:
    """A function from the list of values to the arguments at these slots."""
    if len(used) > 1:
        return itemgetter(*used)
    return itemgetter(slice(used[0], used[0] + 1) if used else slice(0))


def _elements(value: Any) -> int:
    """Number of elements of a result; refuses results that are not tensors, tuples of tensors or sizes."""
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES.values() or value.dim() > MAX_DIMENSIONS:
            refuse(f"a tensor is {value.dtype} of {value.dim()} dimensions")
        return value.numel()
    if isinstance(value, list | tuple) and len(value) <= 1024:
        return sum(_elements(one) for one in value)
    if value is None or (isinstance(value, int) and abs(value) < 2**53):
        return 0
    return refuse(f"an operation gives {type(value).__name__} of no allowed size")
