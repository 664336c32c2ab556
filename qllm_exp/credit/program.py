"""A credit-assignment function as data: a list of ATen operations, which training runs instead of generated Python."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qllm_exp.credit import program_json
from qllm_exp.credit.bounds import CallBounds
from qllm_exp.credit.operations import DTYPES, FAST_CALLS, batch_innermost, find_operation
from qllm_exp.credit.program_json import AGENTS_Q, BATCH_SIZE, FIRST_CONSTANT, GLOBAL_STATE, refuse
from qllm_exp.credit.refused import Refused
from qllm_exp.utils.start_time import keep_compiler_out

MAX_ROW_ELEMENTS = 4_096  # of one value, for each row of the batch
MAX_TOTAL_ROW_ELEMENTS = 131_072  # of all values together, for each row of the batch
MAX_DIMENSIONS = 8
_PROBE_BATCH = 64
_LARGE_BATCH = 4_096
_TAKE_SHAPE = frozenset({"reshape.default", "view.default", "expand.default"})  # operations that take dimensions
_UNCHANGED: Mapping[int, Tensor] = MappingProxyType({})

# By the hash of a program that was checked: the batch sizes for which all of its values are known to be small enough. A process
# may load a program several times, for its own checks, for the mixer and for the tables, and the check takes most of that time.
_SMALL_ENOUGH: dict[str, set[int]] = {}


class _Step(NamedTuple):
    """One call of a compiled program.

    Attributes:
        name: operation and keyword arguments; steps with equal names do the same with equal arguments.
        call: the callable to run.
        inputs: slots of the positional arguments.
        slot: slot of the result.
    """

    name: str
    call: Callable[..., Any]
    inputs: tuple[int, ...]
    slot: int


class _Plan(NamedTuple):
    """A program compiled for one device. Slots hold the values of the program, then literals and lists.

    Attributes:
        initial: values of all slots before the first step.
        steps: per step the callable, the getter of its arguments, and the slot of its result.
        output: slot of the result of the program.
    """

    initial: list[Any]
    steps: list[tuple[Callable[..., Any], Callable[[list[Any]], Any], int]]
    output: int


class Program:
    """A checked tensor program. Immutable; `program(agents_q, global_state)` returns global_q.

    Args:
        data: the parsed JSON of the program.

    Attributes:
        n_agents: number of columns of agents_q.
        state_dim: number of columns of global_state.
        hash: SHA-256 of the canonical JSON, 64 hex digits.

    Raises:
        Refused: `data` is not a valid program; the stage is 'program'.
    """

    def __init__(self, data: Any) -> None:
        self._data = program_json.check_program(data)
        self.n_agents: int = self._data["n_agents"]
        self.state_dim: int = self._data["state_dim"]
        self.hash = hashlib.sha256(program_json.canonical_json(self._data).encode()).hexdigest()
        self._compiled: dict[torch.device, tuple[list[Any], list[_Step]]] = {}
        self._plans: dict[tuple[torch.device, frozenset[int]], _Plan] = {}
        self._batches: set[int] = _SMALL_ENOUGH.get(self.hash, set())
        if not self._batches:
            self._check_sizes()
            _SMALL_ENOUGH[self.hash] = self._batches
        # Unless a program calculates with sizes, what fits a large batch fits the smaller ones.
        self._small_enough_up_to = 0 if self._calculates_with_sizes() else _LARGE_BATCH

    @classmethod
    def from_json(cls, data: Any) -> "Program":
        """Load a program from the data that `to_json` returned; raises Refused('program', reason) for anything else."""
        return cls(data)

    def to_json(self) -> dict[str, Any]:
        """Return the program as plain JSON data; the caller owns the copy."""
        copy: dict[str, Any] = json.loads(program_json.canonical_json(self._data))
        return copy

    def __call__(self, agents_q: Tensor, global_state: Tensor, constants: Mapping[int, Tensor] = _UNCHANGED) -> Tensor:
        """Compute the team value divided by n_agents. Differentiable in all arguments.

        Args:
            agents_q: [B, n_agents], float32. The program runs on its device.
            global_state: [B, state_dim], float32.
            constants: values in place of constants, by the number of the constant as in `constants`.

        Returns:
            global_q [B, 1], float32.

        Raises:
            ValueError: an input has another shape.
            Refused: a value is too large for this batch size, though not for those checked so far; the stage is
                'program'.
        """
        batch = agents_q.shape[0]
        if agents_q.shape != (batch, self.n_agents) or global_state.shape != (batch, self.state_dim):
            raise ValueError(
                f"expected agents_q [B, {self.n_agents}] and global_state [B, {self.state_dim}], "
                f"got {list(agents_q.shape)} and {list(global_state.shape)}"
            )
        if batch > self._small_enough_up_to and batch not in self._batches:
            self._check_batch(batch)
        replaced = frozenset(constants)
        plan = self._plans.get((agents_q.device, replaced)) or self._plan(agents_q.device, replaced)
        values = plan.initial.copy()
        for number, tensor in constants.items():
            values[number] = tensor
        values[AGENTS_Q], values[GLOBAL_STATE] = batch_innermost(agents_q), batch_innermost(global_state)
        values[BATCH_SIZE] = batch
        for call, arguments, slot in plan.steps:
            values[slot] = call(*arguments(values))
        result: Tensor = values[plan.output]
        return result

    def all_values(self, agents_q: Tensor, global_state: Tensor) -> list[Any]:
        """Compute every value of the program, by its number: the inputs, the batch size, the constants, then the operations.

        Nothing is merged or precomputed, so each operation has its own value. Differentiable in both inputs.

        Args:
            agents_q: [B, n_agents], float32.
            global_state: [B, state_dim], float32.
        """
        values, steps = self._compile(agents_q.device)
        values[AGENTS_Q], values[GLOBAL_STATE] = batch_innermost(agents_q), batch_innermost(global_state)
        values[BATCH_SIZE] = agents_q.shape[0]
        for step in steps:
            values[step.slot] = step.call(*(values[k] for k in step.inputs))
        return values[: self.first_operation + len(self.operations)]

    @property
    def operations(self) -> list[list[Any]]:
        """The operations in order: name, positional and keyword-only arguments as JSON. Not to be changed."""
        operations: list[list[Any]] = self._data["operations"]
        return operations

    @property
    def first_operation(self) -> int:
        """Number of the value of the first operation."""
        return FIRST_CONSTANT + len(self._data["constants"])

    def weights_and_bias(
        self, global_state: Tensor, constants: Mapping[int, Tensor] = _UNCHANGED
    ) -> tuple[Tensor, Tensor]:
        """Compute w and b of a program that is affine in q: f(q, s) = sum_i w_i(s) q_i + b(s).

        b is f at q = 0, and w is the gradient there. That takes one call, whose backward pass visits only what depends
        on q.

        Args:
            global_state: [B, state_dim].
            constants: as for a call of the program.

        Returns:
            w [B, n_agents] and b [B, 1]; differentiable in `constants` only.
        """
        differentiable = bool(constants) and torch.is_grad_enabled()
        q = torch.zeros(global_state.shape[0], self.n_agents, device=global_state.device, requires_grad=True)
        with torch.enable_grad():
            bias = self(q, global_state.detach(), constants)
            (weights,) = torch.autograd.grad(bias.sum(), q, materialize_grads=True, create_graph=differentiable)
        return (weights, bias) if differentiable else (weights.detach(), bias.detach())

    @property
    def constants(self) -> dict[int, Tensor]:
        """The finite float32 constants by their number among the values, on the CPU."""
        cpu = torch.device("cpu")
        decoded = {
            number: program_json.decode_constant(constant, cpu)
            for number, constant in enumerate(self._data["constants"], start=FIRST_CONSTANT)
            if constant["dtype"] == "float32"
        }
        return {number: tensor for number, tensor in decoded.items() if bool(tensor.isfinite().all())}

    def with_literals_as_constants(self, smallest: float) -> "Program":
        """Return a program that computes the same, with the numbers of its arithmetic as constants.

        Args:
            smallest: numbers closer to 0 stay as they are, such as the 1e-6 that keeps a divisor from 0.

        Raises:
            Refused: the program has more numbers than a program may have constants; the stage is 'program'.
        """
        return Program(program_json.literals_to_constants(self._data, smallest))

    def with_constants(self, constants: Mapping[int, Tensor]) -> "Program":
        """Return the program with other values of constants.

        Args:
            constants: new values by number, of the shapes and dtypes of the old ones.
        """
        data = self.to_json()
        for number, tensor in constants.items():
            data["constants"][number - FIRST_CONSTANT] = program_json.encode_constant(tensor)
        return Program(data)

    def is_affine(self, states: Tensor, tolerance: float = 1e-4) -> bool:
        """Check whether f is affine in q, numerically.

        Compares f(q, s) with w(s) q + b(s) for random q of magnitudes 0.01 to 1000 and mixed signs.

        Args:
            states: the states [B, state_dim] to check.
            tolerance: largest error, relative to the terms of the sum.

        Returns:
            True if f is affine in q on each of the states.
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
                if not bool((error <= tolerance * terms).all()):  # also true if an error is NaN
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
        """Return the initial values of all slots, and the steps. Literals and lists have slots behind the values.

        The caller owns the list of values. Constants are created outside inference mode, so that autograd can use them later.
        """
        if device not in self._compiled:
            with torch.inference_mode(False), torch.no_grad():
                self._compiled[device] = self._compile_for(device)
        initial, steps = self._compiled[device]
        return initial.copy(), steps

    def _compile_for(self, device: torch.device) -> tuple[list[Any], list[_Step]]:
        """Compile for a device; see `_compile`."""
        constants = [program_json.decode_constant(constant, device) for constant in self._data["constants"]]
        first = FIRST_CONSTANT + len(constants)
        operations = self._data["operations"]
        initial = [None] * FIRST_CONSTANT + constants + [None] * len(operations)
        steps: list[_Step] = []
        literals: dict[str, int] = {}

        def slot_of(argument: Any) -> int:
            if isinstance(argument, dict) and "ref" in argument:
                return int(argument["ref"])
            if program_json.references(argument):  # a list that contains values
                inputs = tuple(slot_of(element) for element in argument)
                initial.append(None)
                steps.append(_Step("list", _as_list, inputs, len(initial) - 1))
                return len(initial) - 1
            text = program_json.canonical_json(argument)
            if text not in literals:
                literals[text] = len(initial)
                initial.append(program_json.decode(argument))
            return literals[text]

        for slot, (name, arguments, keywords) in enumerate(operations, start=first):
            operation = find_operation(name)
            assert operation is not None  # program_json.check_program refuses unknown names
            keyword_values = {key: program_json.decode(value) for key, value in keywords.items()}
            if operation.creates:
                keyword_values["device"] = device
            call = FAST_CALLS.get(name, operation.call)
            if keyword_values:
                call = partial(call, **keyword_values)
            step_name = f"{name} {program_json.canonical_json(keywords)}" if keywords else name
            steps.append(_Step(step_name, call, tuple(slot_of(argument) for argument in arguments), slot))
        return initial, steps

    def _plan(self, device: torch.device, replaced: frozenset[int]) -> _Plan:
        """Compile for a device: precompute what does not depend on the inputs, and merge equal steps.

        Args:
            device: the device.
            replaced: numbers of constants that are inputs too.
        """
        # Precomputed values outlive this call. Created outside inference mode, autograd can use them in later calls.
        with torch.inference_mode(False), torch.no_grad():
            initial, steps = self._compile(device)
            output: int = self._data["output"]
            if not self._writes_in_place():  # else a value may change after it was computed
                from_inputs = {AGENTS_Q, GLOBAL_STATE, BATCH_SIZE, *replaced}
                duplicates: dict[int, int] = {}  # slot to the slot that holds the same value
                computed: dict[tuple[str, tuple[int, ...]], int] = {}
                remaining = []
                for name, call, step_inputs, slot in steps:
                    inputs = tuple(duplicates.get(k, k) for k in step_inputs)
                    if (name, inputs) in computed:
                        duplicates[slot] = computed[name, inputs]
                    elif from_inputs.isdisjoint(inputs):
                        initial[slot] = call(*(initial[k] for k in inputs))
                    else:
                        from_inputs.add(slot)
                        remaining.append(_Step(name, call, inputs, slot))
                    computed.setdefault((name, inputs), slot)
                steps, output = remaining, duplicates.get(output, output)
        plan = _Plan(initial, [(step.call, _getter(step.inputs), step.slot) for step in steps], output)
        self._plans[device, replaced] = plan
        return plan

    def _writes_in_place(self) -> bool:
        """Whether any operation writes to its first argument."""
        operations = [find_operation(name) for name, _, _ in self._data["operations"]]
        return any(operation is not None and operation.in_place for operation in operations)

    def _check_sizes(self) -> None:
        """Run on the meta device, where tensors have shapes but no memory, and refuse values that are too large."""
        sizes, doubled_sizes = self._sizes(_PROBE_BATCH), self._sizes(2 * _PROBE_BATCH)
        if any(large > 2 * small for small, large in zip(sizes, doubled_sizes, strict=True)):
            refuse("a tensor grows faster than the batch: combine values within a row only, never across the batch")
        self._check_elements(_PROBE_BATCH, sizes)
        for batch in (1, _LARGE_BATCH):
            self._check_batch(batch)

    def _calculates_with_sizes(self) -> bool:
        """Whether a number that depends on the size of a tensor is used in another way than as a dimension."""
        return any(
            ("." not in name and name != "get")
            or (name not in _TAKE_SHAPE and BATCH_SIZE in program_json.references(arguments))
            for name, arguments, _ in self.operations
        )

    def _check_batch(self, batch: int) -> None:
        """Refuse values that are too large for this batch size, since a size can be any function of it."""
        self._check_elements(batch, self._sizes(batch))

    def _check_elements(self, batch: int, sizes: list[int]) -> None:
        """Refuse values that are too large, given the numbers of their elements for a batch size."""
        rows = max(batch, 2 * _PROBE_BATCH)  # at least this many, so that tables of a fixed size fit small batches too
        if max(sizes) > rows * MAX_ROW_ELEMENTS:
            refuse(f"a tensor has more than {MAX_ROW_ELEMENTS} elements per row of the batch")
        if sum(sizes) > rows * MAX_TOTAL_ROW_ELEMENTS:
            refuse(f"the tensors have more than {MAX_TOTAL_ROW_ELEMENTS} elements per row of the batch together")
        self._batches.add(batch)

    def _sizes(self, batch: int) -> list[int]:
        """Return the number of elements of the largest tensor of each step; refuse wrong arguments, dtypes and shapes."""
        device = torch.device("meta")
        keep_compiler_out()
        with torch.inference_mode(False), torch.no_grad(), _OperationMonitor() as monitor:
            values, steps = self._compile(device)
            values[AGENTS_Q] = batch_innermost(torch.empty(batch, self.n_agents, device=device))
            values[GLOBAL_STATE] = batch_innermost(torch.empty(batch, self.state_dim, device=device))
            values[BATCH_SIZE] = batch
            inputs_and_constants = [value for value in values if isinstance(value, Tensor)]
            sizes, call_bounds = [], CallBounds()
            for step in steps:
                monitor.largest = 0
                call_bounds.check(step.name.partition(" ")[0], [values[k] for k in step.inputs])
                try:
                    values[step.slot] = step.call(*(values[k] for k in step.inputs))
                except Refused:
                    raise
                except Exception as error:  # operations raise many kinds of errors for wrong arguments
                    message = str(error).splitlines()[0] if str(error) else repr(error)
                    refuse(f"operation {step.name} failed: {message}")
                sizes.append(max(monitor.largest, _elements(values[step.slot])))
        if any(tensor._version for tensor in inputs_and_constants):
            refuse("the function changes its inputs or constants in place: work on a clone()")
        output = values[self._data["output"]]
        if not isinstance(output, Tensor) or output.shape != (batch, 1) or output.dtype != torch.float32:
            actual = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            refuse(f"the result for a batch of {batch} must be torch.float32 [{batch}, 1], it is {actual}")
        return [inputs_and_constants[0].numel(), *sizes]


class _OperationMonitor(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Observes the basic operations that others are composed of: measures their results and refuses some of them.

    An einsum, for example, may create far larger tensors than its inputs and its result.

    Attributes:
        largest: number of elements of the largest tensor so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if "svd" in name or "eig" in name:
            refuse("matrix norms with ord=2, -2 or 'nuc' are not allowed: use the norm of vectors, dim=-1")
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if (
            name in _INTEGER_TRAPS
            and (kwargs or {}).get("rounding_mode") == "trunc"
            and not tensors[0].is_floating_point()
        ):
            refuse("dividing integers with rounding_mode='trunc' is not allowed: use // or divide float tensors")
        if name == "aten::view" and torch.bool in args:
            # A byte other than 0 and 1 is not a valid bool.
            refuse("reinterpreting bytes as bool is not allowed: compare with 0 instead")
        if not any(value.alias_info for value in func._schema.returns):  # a view takes no memory
            self.largest = max([self.largest, *(tensor.numel() for tensor in tensors)])
        return result


# Dividing the smallest integer by -1 traps in the processor, which aborts the process.
_INTEGER_TRAPS = frozenset({"aten::div", "aten::div_"})


def _as_list(*values: Any) -> list[Any]:
    """Return the arguments as a list."""
    return list(values)


def _getter(slots: tuple[int, ...]) -> Callable[[list[Any]], Any]:
    """Return a function from the list of all values to the sequence of values in these slots."""
    if len(slots) > 1:
        return itemgetter(*slots)
    return itemgetter(slice(slots[0], slots[0] + 1) if slots else slice(0))


def _elements(value: Any) -> int:
    """Return the number of elements of a result; refuse results that are not tensors, tuples of tensors or sizes."""
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES.values() or value.dim() > MAX_DIMENSIONS:
            refuse(
                f"a tensor is {value.dtype} with {value.dim()} dimensions; allowed are {', '.join(DTYPES)} with at most "
                f"{MAX_DIMENSIONS} dimensions"
            )
        return value.numel()
    if isinstance(value, list | tuple) and len(value) <= 1024:
        return sum(_elements(element) for element in value)
    if value is None or (isinstance(value, int) and abs(value) < 2**53):
        return 0
    return refuse(f"an operation returns {type(value).__name__} of a size that is not allowed")
