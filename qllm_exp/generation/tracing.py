"""Tracing of source to a tensor program. It executes the generated Python: use it only in a child process with limits.

A credit-assignment function is a function of one row, which holds the agents' values and the state of one time step. The source
is traced for one row, and torch.vmap makes the program for a batch from that. So the rows of a program cannot see each other,
their position or their number, whatever the source does. The source is also run row by row and in batches of several sizes,
which must agree; the program is compared with the rows afterwards (traced.py), so that it means what a reader expects.
"""

import ast
import builtins
import functools
import itertools
import math
import traceback
import warnings
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor

from qllm_exp.credit.refused import Refused
from qllm_exp.generation.allow_list import BUILTINS, EXCEPTIONS
from qllm_exp.generation.graph_to_program import RowGraph, convert
from qllm_exp.generation.row_graph import FILE, Function, SelectedByMask, row_graph
from qllm_exp.generation.static_check import MAX_TRIPS, Parsed, is_script_block, parse
from qllm_exp.generation.traced import ROWS, Traced, agree, random_q
from qllm_exp.utils.start_time import keep_compiler_out

_BATCHES = (1, 2, 7, 64, 100, 800, 1024, 5120)  # training calls a program with hundreds to thousands of rows
_TRACED_BATCHES = (61, 67)  # two sizes whose difference shows which numbers of a graph are the batch size
_TOTAL_TRIPS = 4 * MAX_TRIPS  # iterations of all range() loops in one call


def trace(source: str, states: Tensor, n_agents: int) -> Traced:
    """Trace a source.

    Args:
        source: Python source with one credit-assignment function.
        states: [M, state_dim], the states to run it on.
        n_agents: columns of agents_q.

    Raises:
        Refused: the function is not accepted; the stage is 'static', 'run', 'trace', 'convert' or 'limits'.
    """
    parsed = parse(source)
    function = _load(parsed, asserts=True)
    q = random_q(len(states), n_agents)
    value, gradient = _run_rows(function, source, q, states)
    data, lines = convert(_graphs(parsed, source, q, states), n_agents, states.shape[1])
    _check_batches(function, source, q, states, value)
    return Traced(data, parsed.function.name, lines, value, gradient)


def _load(parsed: Parsed, asserts: bool) -> Function:
    """Execute a checked source and return its function.

    Args:
        parsed: the checked source.
        asserts: whether its assert statements are executed. They cannot be traced, and change no value.
    """
    tree = ast.fix_missing_locations(_Cleaner(asserts).visit(parsed.copy()))
    names: dict[str, Any] = {alias: _import(path) for alias, path in parsed.imports.items()}
    builtin_names = {name: getattr(builtins, name) for name in (*BUILTINS, *EXCEPTIONS)}
    builtin_names["__import__"] = builtins.__import__  # for the C code of torch; checked source cannot name it
    names |= {"__builtins__": builtin_names, "__name__": "credit_assignment"}
    counter = builtin_names["range"] = _CountingRange()
    exec(compile(tree, FILE, "exec"), names)
    function = names[parsed.function.name]

    def call(agents_q: Tensor, global_state: Tensor) -> Any:
        counter.left = _TOTAL_TRIPS
        return function(agents_q, global_state)

    return call


_ROOTS = {"torch": torch, "math": math, "itertools": itertools, "functools": functools, "numpy": numpy}


def _import(path: str) -> Any:
    """Return what an allowed import refers to, e.g. 'torch.nn.functional'; None for names that only annotations use."""
    root, *names = path.split(".")
    value: Any = _ROOTS.get(root)
    for name in names:
        value = getattr(value, name, None)
    return value


class _Cleaner(ast.NodeTransformer):
    """Removes what is not executed: imports, annotations, the block of a script, and asserts unless they are kept.

    Args:
        asserts: whether assert statements are kept.
    """

    def __init__(self, asserts: bool) -> None:
        self._asserts = asserts

    def visit_Import(self, node: ast.Import) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        return node if self._asserts else ast.copy_location(ast.Pass(), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        self.generic_visit(node)
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_If(self, node: ast.If) -> ast.stmt:
        if is_script_block(node):
            return ast.copy_location(ast.Pass(), node)
        self.generic_visit(node)
        return node


class _CountingRange:
    """A range() that limits the iterations of all loops in one call of the function."""

    def __init__(self) -> None:
        self.left = _TOTAL_TRIPS

    def __call__(self, *bounds: int) -> range:
        numbers = range(*bounds)
        size = max(0, -(-(numbers.stop - numbers.start) // numbers.step))  # len() fails beyond 2**63
        self.left -= size
        if self.left < 0:
            raise Refused("run", f"its loops run too often (range of {size}): use tensor operations instead of loops")
        return numbers


def _run_rows(function: Function, source: str, q: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Run the source on one row at a time.

    Returns:
        The values [rows, 1], and their gradients in q [rows, n_agents], for the first rows.
    """
    rows = min(ROWS, len(states))
    leaf = q[:rows].clone().requires_grad_()
    results = []
    for row in range(rows):
        value = _run(function, source, leaf[row : row + 1], states[row : row + 1])
        if value.numel() != 1:
            _refuse_shape(value, 1)
        results.append(value.reshape(1, 1))
        if row == 0:
            repeated = _run(function, source, leaf[:1], states[:1])
            if not torch.allclose(value, repeated, equal_nan=True):
                _refuse_run("two calls with equal inputs give different results")
    values = torch.cat(results)
    if not values.requires_grad:
        _refuse_run("the result does not depend on agents_q: combine the agents' values (without detach on them)")
    try:
        (gradient,) = torch.autograd.grad(values.sum(), leaf, materialize_grads=True)
    except RuntimeError as error:
        raise _explain(error, source, "run") from None
    return values.detach(), gradient


def _check_batches(function: Function, source: str, q: Tensor, states: Tensor, expected: Tensor) -> None:
    """Refuse a source that, called with several rows, gives other values than for each row alone."""
    for batch in _BATCHES:
        rows = torch.arange(batch) % len(expected)
        value = _run(function, source, q[rows], states[rows])
        if value.shape not in ((batch, 1), (batch,)) and value.numel() != batch:
            _refuse_shape(value, batch)
        if not agree(expected[rows], value.detach().reshape(batch, 1)):
            _refuse_run(
                f"called with {batch} rows, it gives other values than for each row alone: each row is a time step of its own, so "
                "reduce, normalise and index along dim=1 or dim=-1, never along dim=0 or over all elements, and let nothing depend "
                "on the number of rows"
            )


def _run(function: Function, source: str, q: Tensor, states: Tensor) -> Tensor:
    """Run the source; refuse errors, changed inputs and results that are not float32."""
    # The clone of q is not a leaf, so changing it in place raises no error and is detected here.
    q_copy, states_copy = q.clone(), states.clone()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = function(q_copy, states_copy)
    except Exception as error:  # generated code may raise anything
        raise _explain(error, source, "run") from None
    if not (torch.equal(q_copy, q) and torch.equal(states_copy, states)):
        _refuse_run("it changes its inputs in place: write x = x + 1 instead of x += 1, or work on a clone()")
    if not isinstance(value, Tensor):
        _refuse_run(f"it returns {type(value).__name__}: return one tensor of shape [B, 1]")
    if value.dtype != torch.float32:
        _refuse_run(f"it returns {value.dtype} instead of torch.float32: keep to float32, or end with .float()")
    return value


def _refuse_run(reason: str) -> NoReturn:
    """Raise Refused('run', reason)."""
    raise Refused("run", reason)


def _refuse_shape(value: Tensor, batch: int) -> NoReturn:
    """Refuse a result that is not [batch, 1]."""
    _refuse_run(
        f"it returns shape {list(value.shape)} for a batch of {batch} instead of [{batch}, 1]: end with e.g. "
        "(weights * agents_q).sum(dim=1, keepdim=True)"
    )


def _graphs(parsed: Parsed, source: str, q: Tensor, states: Tensor) -> dict[int, RowGraph]:
    """Trace the function for one row, as graphs for _TRACED_BATCHES of these rows; refuse what cannot be traced."""
    graphs: dict[int, RowGraph] = {}
    for batch in _TRACED_BATCHES:
        rows = torch.arange(batch) % len(states)
        try:
            graphs[batch] = row_graph(_load(parsed, asserts=False), q[rows], states[rows])
        except Exception as error:  # torch does not document which errors tracing raises
            raise _explain(error, source, "trace") from None
    return graphs


def warm_up() -> None:
    """Trace one function, so that the limits of a forked process need not cover torch's imports.

    Starts no thread: this process is forked afterwards, and autograd does not work in a fork of a process in which it has
    started its threads.
    """
    source = (
        "def credit_assignment(agents_q, global_state):\n    q = agents_q.clone()\n    q.abs_()\n"
        "    return q.mean(1, keepdim=True)"
    )  # a change in place needs more of torch than other operations
    keep_compiler_out()
    convert(_graphs(parse(source), source, torch.rand(7, 2), torch.rand(7, 1)), 2, 1)


def start_autograd() -> None:
    """Start the threads of autograd before new threads are forbidden. Torch with CUDA has them even without a GPU."""
    value = torch.ones(1, requires_grad=True)
    torch.autograd.grad(value.sum(), value)


_MASKED = (
    "it selects elements by a boolean mask, and their number depends on tensor values: use torch.where(mask, a, b), or "
    "multiply by mask.float()"
)
_EXPLANATIONS = (  # fragments of an error message, and what it means for the author of the function
    (("dynamic shape", "masked_select", "nonzero", "_unique"), _MASKED),
    (
        (
            "data-dependent",
            "Boolean value of Tensor",
            "only one element tensors can be converted",
            "_local_scalar_dense",
            "calling .item()",
            "call .item()",
            "a Tensor with",
        ),
        "it branches on tensor values, or turns them into Python numbers (if, while, and/or/not, a < b < c, int(), float(), max() "
        "of tensors): use torch.where(condition, a, b), &, |, ~ and torch.maximum instead",
    ),
    (
        ("data is not allocated yet",),
        "it makes a constant of tensor values: use torch.stack([a, b]) instead of torch.tensor([a, b])",
    ),
    (
        ("numpy() on Tensor",),
        "numpy takes numbers and arrays, not tensors: use the function of torch instead",
    ),
    (
        ("derivative for aten::",),
        "an operation on agents_q has no gradient in torch, such as // (floor_divide) or heaviside: use torch.floor(a / b) or "
        "(a > b).float(), or detach() on values that carry no credit",
    ),
    (
        ("can't allocate memory", "Unable to allocate", "not enough memory", "Storage size calculation overflowed"),
        "it requests more memory than is allowed: tensors may have the size of the batch times a few hundred",
    ),
    (
        ("atching rule not implemented", "vmap fallback", "ustom (non-ATen) operator", "vmap: "),
        "an operation on this line is not supported for rows of a batch: use basic torch arithmetic",
    ),
)


def _explain(error: Exception, source: str, stage: str) -> Refused:
    """Build the refusal that explains an error, with the line of the source that raised it."""
    if isinstance(error, Refused):
        return error
    lines = source.splitlines()
    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
    number = numbers[-1] if numbers else None
    location = f"line {number}, '{lines[number - 1].strip()}': " if number and number <= len(lines) else ""
    if isinstance(error, SelectedByMask):
        return Refused(stage, location + _MASKED)
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
