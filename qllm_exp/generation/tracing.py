"""Tracing of source to a tensor program. It executes the generated Python: use it only in a child process with limits.

The source is run on probe states and checked for the properties of a credit-assignment function (shape, independent rows,
unchanged inputs, credit that depends on the agents' values). Then torch.export traces it with a dynamic batch size, the graph
is converted to a program (graph_to_program.py), and the program is compared with the source in values and gradients.
"""

import ast
import builtins
import logging
import math
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation.allow_list import BUILTINS
from qllm_exp.generation.graph_to_program import convert
from qllm_exp.generation.static_check import MAX_TRIPS, parse

_FILE = "<credit assignment>"
_BATCHES = (1, 2, 7)
_TOTAL_TRIPS = 16 * MAX_TRIPS  # iterations of all range() loops in one call
_Function = Callable[[Tensor, Tensor], Any]


def trace(source: str, states: Tensor, n_agents: int) -> Program:
    """Trace a source.

    Args:
        source: Python source with one credit-assignment function.
        states: [M, state_dim], M >= 7, the states to run it on.
        n_agents: columns of agents_q.

    Returns:
        The tensor program.

    Raises:
        Refused: the function is not accepted; the stage is 'static', 'run', 'trace', 'convert', 'program' or 'limits'.
    """
    function = _load(source)
    _check_results(function, source, states, n_agents)
    exported = _export(function, source, states, n_agents)
    _check_rows(function, source, states, n_agents)
    program = Program(convert(exported, n_agents, states.shape[1]))
    _check_equal(function, source, program, states)
    return program


def _load(source: str) -> _Function:
    """Execute the checked source and return its function. Imports are removed, since the modules are defined already."""
    tree, definition = parse(source)
    tree = ast.fix_missing_locations(_ImportRemover().visit(tree))
    builtin_names = {name: getattr(builtins, name) for name in BUILTINS} | {"len": _length}
    builtin_names["__import__"] = builtins.__import__  # for the C code of torch; checked source cannot name it
    names: dict[str, Any] = {"__builtins__": builtin_names, "torch": torch, "th": torch, "math": math, "F": F}
    exec(compile(tree, _FILE, "exec"), names)

    def call(agents_q: Tensor, global_state: Tensor) -> Any:
        builtin_names["range"] = _CountingRange()
        return names[definition.name](agents_q, global_state)

    return call


class _ImportRemover(ast.NodeTransformer):
    """Replaces imports by `pass`."""

    def visit_Import(self, node: ast.Import) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)


class _CountingRange:
    """A range() that limits the iterations of all loops in one call of the function."""

    def __init__(self) -> None:
        self.left = _TOTAL_TRIPS

    def __call__(self, *bounds: int) -> range:
        numbers = range(*bounds)
        size = max(0, -(-(numbers.stop - numbers.start) // numbers.step))  # len() fails beyond 2**63
        self.left -= size
        if size > MAX_TRIPS or self.left < 0:
            raise Refused("run", f"its loops run too often (range of {size}): use tensor operations instead of loops")
        return numbers


def _length(value: Any) -> Any:
    """A len() that keeps the batch size of a tensor symbolic."""
    return value.shape[0] if isinstance(value, Tensor) else len(value)


def _check_results(function: _Function, source: str, states: Tensor, n_agents: int) -> None:
    """Run the source on real tensors and refuse results that are not a global_q [B, 1]."""
    for batch in reversed(_BATCHES):
        value = _run(function, source, _random_q(batch, n_agents), states[:batch])
        _check_result(value, batch)
        if not value.requires_grad:
            _refuse_run("the result does not depend on agents_q: combine the agents' values (without detach on them)")


def _check_rows(function: _Function, source: str, states: Tensor, n_agents: int) -> None:
    """Refuse a function whose result for a row depends on the other rows, or that differs from call to call."""
    batch = max(_BATCHES)
    q = _random_q(batch, n_agents)
    value, repeated = (_run(function, source, q, states[:batch]) for _ in range(2))
    if not torch.allclose(value, repeated, equal_nan=True):
        _refuse_run("two calls with equal inputs give different results")
    rows = [_run(function, source, q[i : i + 1], states[i : i + 1]) for i in range(batch)]
    if not torch.allclose(value, torch.cat(rows), rtol=1e-3, atol=1e-4, equal_nan=True):
        _refuse_run(
            "a row of the result depends on the other rows or on the size of the batch: each row is a time step of "
            "its own, so reduce, normalise and index along dim=1 or dim=-1, never along dim=0 or over all elements"
        )


def _random_q(batch: int, n_agents: int) -> Tensor:
    """Return random values [batch, n_agents], equal for equal sizes."""
    return torch.randn(batch, n_agents, generator=torch.Generator().manual_seed(batch)).requires_grad_()


def _run(function: _Function, source: str, q: Tensor, state: Tensor) -> Any:
    """Run the source; refuse errors and changed inputs."""
    # The clone of q is not a leaf, so changing it in place raises no error and is detected here.
    q_copy, state_copy = q.clone(), state.clone()
    try:
        value = function(q_copy, state_copy)
    except Exception as error:  # generated code may raise anything
        raise _explain(error, source, "run") from None
    if not (torch.equal(q_copy, q) and torch.equal(state_copy, state)):
        _refuse_run("it changes its inputs in place: write x = x + 1 instead of x += 1, or work on a clone()")
    return value


def _check_result(value: Any, batch: int) -> None:
    """Refuse a result that is not a float32 tensor [batch, 1]."""
    if not isinstance(value, Tensor):
        _refuse_run(f"it returns {type(value).__name__}: return one tensor of shape [B, 1]")
    if value.shape != (batch, 1):
        hint = ""
        if batch == 1:
            hint = "; squeeze() without a dim also removes the batch dimension of a batch of 1: use squeeze(-1)"
        _refuse_run(
            f"it returns shape {list(value.shape)} for a batch of {batch} instead of [{batch}, 1]: end with e.g. "
            f"(weights * agents_q).sum(dim=1, keepdim=True){hint}"
        )
    if value.dtype != torch.float32:
        _refuse_run(f"it returns {value.dtype} instead of torch.float32: keep to float32, or end with .float()")


def _refuse_run(reason: str) -> NoReturn:
    """Raise Refused('run', reason)."""
    raise Refused("run", reason)


class _FunctionModule(torch.nn.Module):
    """The function as a module, which torch.export requires."""

    def __init__(self, function: _Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, agents_q: Tensor, global_state: Tensor) -> Any:
        return self.function(agents_q, global_state)


def _export(function: _Function, source: str, states: Tensor, n_agents: int) -> torch.export.ExportedProgram:
    """Run torch.export with a dynamic batch size."""
    example = torch.randn(5, n_agents, generator=torch.Generator().manual_seed(1)), states[:5].clone()
    dynamic = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    logging.disable(logging.CRITICAL)  # failures are explained by _explain
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(_FunctionModule(function), example, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch.export does not document which errors it raises
        raise _explain(error, source, "trace") from None
    finally:
        logging.disable(logging.NOTSET)


def warm_up() -> None:
    """Do one export, so that the limits of a forked process need not cover the imports of torch.export.

    Starts no thread: this process is forked afterwards, and autograd does not work in a fork of a process in which it has
    started its threads.
    """
    source = "def credit_assignment(agents_q, global_state):\n    return agents_q.mean(1, keepdim=True)"
    q, states = torch.rand(7, 2), torch.rand(7, 1)
    with torch.no_grad():
        Program(convert(_export(_load(source), source, states, 2), 2, 1))(q, states)


def start_autograd() -> None:
    """Start the threads of autograd before new threads are forbidden. Torch with CUDA has them even without a GPU."""
    value = torch.ones(1, requires_grad=True)
    torch.autograd.grad(value.sum(), value)


_EXPLANATIONS = (  # fragments of an error message, and what it means for the author of the function
    (
        (
            "data-dependent",
            "Boolean value of Tensor",
            "only one element tensors can be converted",
            "_local_scalar_dense",
        ),
        "it branches on tensor values, or turns them into Python numbers (if, while, and/or/not, int(), float(), max() "
        "of tensors, indexing by a mask): use torch.where(condition, a, b), &, |, ~ and torch.maximum instead",
    ),
    (
        ("specialized it to be a constant", "Constraints violated"),
        "it fixes the batch size: take it from agents_q.shape[0], and do not loop over the rows of a tensor",
    ),
    (
        ("can't allocate memory", "Unable to allocate", "not enough memory", "Storage size calculation overflowed"),
        "it requests more memory than is allowed: tensors may have the size of the batch times a few hundred",
    ),
)


def _explain(error: Exception, source: str, stage: str) -> Refused:
    """Build the refusal that explains an error, with the line of the source that raised it."""
    if isinstance(error, Refused):
        return error
    lines = source.splitlines()
    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _FILE]
    number = numbers[-1] if numbers else None
    location = f"line {number}, '{lines[number - 1].strip()}': " if number and number <= len(lines) else ""
    if isinstance(error, MemoryError):
        return Refused("limits", f"{location}it requests more memory than is allowed")
    if isinstance(error, RecursionError):
        return Refused(stage, f"{location}it calls itself without end")
    message = str(error)
    for fragments, explanation in _EXPLANATIONS:
        if any(fragment in message for fragment in fragments):
            return Refused(stage, location + explanation)
    first_line = next(iter(message.splitlines()), "")[:300]
    return Refused(stage, f"{location}{type(error).__name__}: {first_line}")


def _check_equal(function: _Function, source: str, program: Program, states: Tensor) -> None:
    """Refuse a program whose values or gradients differ from the source, for several batch sizes and on all states."""
    generator = torch.Generator().manual_seed(2)
    for batch in (*_BATCHES, len(states)):
        q = 3.0 * torch.randn(batch, program.n_agents, generator=generator)
        leaf = q.clone().requires_grad_()
        value = _run(function, source, leaf, states[:batch])
        _check_result(value, batch)
        (gradient,) = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
        program_value, program_gradient = _value_and_gradient(program, q, states[:batch])
        for expected, actual in ((value.detach(), program_value), (gradient, program_gradient)):
            if not torch.allclose(expected, actual, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise Refused("trace", "its tensor program returns other values than the source: simplify the function")


def _value_and_gradient(program: Program, q: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value [B, 1] of a program and its gradient in q [B, n_agents]."""
    q = q.clone().requires_grad_()
    value = program(q, states.clone())
    (gradient,) = torch.autograd.grad(value.sum(), q, materialize_grads=True)
    return value.detach(), gradient
