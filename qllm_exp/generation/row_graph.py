"""The operations of a function of one row, as a graph for a batch of rows.

torch.vmap batches the function, so that rows cannot see each other. What vmap cannot trace is traced here: boolean masks,
torch.no_grad, and operations for which it has no rule, or a wrong one. It executes the generated Python: use it only in a child
process with limits.
"""

import logging
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from qllm_exp.generation.graph_to_program import LINE, VALUE, RowGraph

FILE = "<credit assignment>"  # name of the source in tracebacks
Function = Callable[[Tensor, Tensor], Any]


class SelectedByMask(Exception):
    """A number of elements that depends on tensor values is needed."""


def row_graph(function: Function, agents_q: Tensor, global_state: Tensor) -> RowGraph:
    """Trace a function for one row, as a graph for as many rows as there are here.

    Args:
        function: maps agents_q [1, n] and global_state [1, d] to a tensor with one element. It was compiled with the file name
            FILE.
        agents_q: [B, n].
        global_state: [B, d]. The values of both are those of the trace: none of them is in the graph.

    Raises:
        SelectedByMask: the function needs the elements that a boolean mask selects.
        Exception: whatever the function or torch raises.
    """

    def row(agents_q: Tensor, global_state: Tensor) -> Tensor:
        with _Rewriter():
            value: Tensor = function(agents_q, global_state)
            return value.reshape(1, 1)

    tape = _Tape((agents_q, global_state))
    with warnings.catch_warnings(), _batching_rules(), torch.enable_grad(), tape:
        warnings.simplefilter("ignore")
        result: Tensor = torch.vmap(_without_changes_in_place(row))(agents_q.unsqueeze(1), global_state.unsqueeze(1))
        return tape.finish(result.reshape(len(agents_q), 1))


def _without_changes_in_place(row: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function as torch.func.functionalize does, importing which takes longer than all else here."""
    functorch: Any = torch._C._functorch
    sync: Any = torch._sync  # type: ignore[attr-defined]

    def wrapped(*inputs: Tensor) -> Tensor:
        level = functorch._func_increment_nesting(True)
        try:
            value = row(*(functorch._wrap_functional_tensor(tensor, level) for tensor in inputs))
            if not torch._is_functional_tensor(value):  # a fixed tensor from outside the function
                return value
            sync(value)
            result: Tensor = functorch._unwrap_functional_tensor(value, True)
            return result
        finally:
            functorch._func_decrement_nesting()

    return wrapped


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Writes the ATen operations that are executed into a graph.

    What depends on an input is batched by torch.vmap, which refuses operations that turn values into Python numbers or sizes. So
    these occur here for fixed tensors only, and their results are fixed.

    Args:
        inputs: the inputs of the graph.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}  # by the id of a tensor, which is kept alive
        for index, tensor in enumerate(inputs):
            self._note(tensor, self._graph.placeholder(f"input_{index}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes longer than all else here

    def finish(self, output: Tensor) -> RowGraph:
        """Return the graph with this output."""
        self._graph.output(self._node(output))
        return RowGraph(self._graph, self._constants)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor or not _DEPENDS_ON_VALUES.intersection(func.tags):
            node = self._graph.call_function(
                func, *(tree_map_only(Tensor, self._node, tree) for tree in (tuple(args), kwargs))
            )
            if line := _line():
                node.meta[LINE] = line
            self._note(result, node)
        return result

    def _note(self, result: Any, node: fx.Node) -> None:
        """Note the node of a result, or those of its elements."""
        node.meta[VALUE] = result
        if isinstance(result, Tensor):
            self._nodes[id(result)] = result, node
        elif isinstance(result, tuple | list):
            for index, element in enumerate(result):
                self._note(element, self._graph.call_function(operator.getitem, (node, index)))

    def _node(self, tensor: Tensor) -> fx.Node:
        """Return the node of a tensor: a new one for a tensor that no operation of the graph has made."""
        if id(tensor) not in self._nodes:
            name = f"constant_{len(self._constants)}"
            self._constants[name] = tensor
            self._note(tensor, self._graph.create_node("get_attr", name))
        return self._nodes[id(tensor)][1]


_DEPENDS_ON_VALUES = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}  # index() with masks only


@contextmanager
def _batching_rules() -> Iterator[None]:
    """Let vmap refuse operations without a rule, instead of looping over the rows, and add a rule that it lacks."""
    functorch: Any = torch._C._functorch
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rule replaces one of torch
        for name, rule in _RULES.items():
            library.impl(name, rule, "FuncTorchBatched")
    fallback = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    logging.disable(logging.CRITICAL)  # failures are explained by _explain
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        functorch._set_vmap_fallback_enabled(fallback)
        library._destroy()


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The result of `target.copy_(source)`, as a new tensor."""
    return source.to(target.dtype).expand(target.shape).clone()


def _select_scatter(target: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """The result of `target.select(dim, index).copy_(source)`, as a new tensor.

    The rule of vmap itself has a wrong gradient: it scatters every element several times.
    """
    dim, index = dim % target.dim(), index % target.shape[dim]
    return _replace(target, source.unsqueeze(dim), dim, [index])


def _slice_scatter(
    target: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """The result of writing `source` to a slice of `target`, as a new tensor."""
    dim = dim % target.dim()
    return _replace(target, source, dim, range(target.shape[dim])[slice(start, end, step)])


def _replace(target: Tensor, source: Tensor, dim: int, positions: Sequence[int]) -> Tensor:
    """Return a copy of `target` with the entries of `source` at these positions of a dimension."""
    entries = list(target.unbind(dim))
    for position, entry in zip(positions, source.to(target.dtype).unbind(dim), strict=True):
        entries[position] = entry.expand(entries[position].shape)
    return torch.stack(entries, dim)


def _fill(target: Tensor, value: float) -> Tensor:
    """The result of `target.fill_(value)`, as a new tensor."""
    return torch.full_like(target, value)


_RULES = {
    "copy": _copy,
    "fill.Scalar": _fill,
    "zero": torch.zeros_like,
    "fill.Tensor": _copy,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
}  # operations for which vmap has no rule, or a wrong one


def _broadcast_tensors(*tensors: Tensor) -> list[Tensor]:
    shape: torch.Size = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    return [tensor.expand(shape) for tensor in tensors]


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise ValueError("F.one_hot takes the number of classes from tensor values: pass num_classes=...")
    return (tensor.unsqueeze(-1) == torch.arange(num_classes)).long()


def _column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([column if column.dim() > 1 else column.unsqueeze(1) for column in tensors], 1)


def _heaviside(input: Tensor, values: Tensor) -> Tensor:
    return torch.where(input == 0, values, (input > 0).to(input.dtype))


def _isclose(input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    difference = (input - other).abs()
    close = (input == other) | (difference.isfinite() & (difference <= atol + (rtol * other).abs()))
    return close | (input.isnan() & other.isnan()) if equal_nan else close


def _quantile(
    input: Tensor,
    q: float | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
    ignore_nan: bool = False,
) -> Tensor:
    """The result of torch.quantile, or of torch.nanquantile if NaN is ignored.

    Args:
        input: a tensor.
        q: quantiles from 0 to 1: a number, or a tensor [] or [Q].
        dim: dimension that is reduced; None for all.
        keepdim: whether reduced dimensions stay, with size 1.
        interpolation: what lies between two values: 'linear', 'lower', 'higher', 'midpoint' or 'nearest'.
        ignore_nan: whether NaN is left out; else it makes the result NaN.

    Returns:
        The quantiles, with a first dimension Q if `q` is [Q].
    """
    q = torch.as_tensor(q, dtype=input.dtype)
    quantiles = q.reshape(-1)
    values = (input.reshape(-1) if dim is None else input.movedim(dim, -1)).sort(-1).values  # NaN is last
    is_nan, last = values.isnan(), float(values.shape[-1] - 1)
    if ignore_nan:
        rank = quantiles * ((~is_nan).sum(-1, keepdim=True) - 1).clamp(min=0)  # [..., Q]
    else:
        rank = torch.where(is_nan.any(-1, keepdim=True), last, quantiles * last)
    if interpolation in ("lower", "higher", "nearest"):
        rank = {"lower": torch.floor, "higher": torch.ceil, "nearest": torch.round}[interpolation](rank)
    weight = torch.full_like(rank, 0.5) if interpolation == "midpoint" else rank.frac()
    result = values.gather(-1, rank.floor().long()).lerp(values.gather(-1, rank.ceil().long()), weight).movedim(-1, 0)
    if keepdim:
        result = result.reshape(-1, *(1,) * input.dim()) if dim is None else result.unsqueeze(dim % input.dim() + 1)
    return result if q.dim() else result.squeeze(0)


_WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "__iand__": Tensor.bitwise_and_,
    "__ior__": Tensor.bitwise_or_,
    "__ixor__": Tensor.bitwise_xor_,
    "broadcast_tensors": _broadcast_tensors,
    "clip_": Tensor.clamp_,
    "column_stack": _column_stack,
    "divide_": Tensor.div_,
    "heaviside": _heaviside,
    "isclose": _isclose,
    "multiply_": Tensor.mul_,
    "nanquantile": partial(_quantile, ignore_nan=True),
    "one_hot": _one_hot,
    "quantile": _quantile,
    "square_": lambda tensor: tensor.pow_(2),
    "subtract_": Tensor.sub_,
    "type_as": lambda tensor, other: tensor.to(other.dtype),
}  # functions and methods that vmap cannot trace, or whose results lose that they are views, as operations that it can trace


class _Rewriter(TorchFunctionMode):
    """Replaces what vmap cannot trace: selections by boolean masks, torch.no_grad, and the functions of _WRITTEN_OUT."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], _without_fixed_masks(args[1]), *args[2:])
            if (selection := _select(args[0], args[1])) is not None:
                return selection.copy() if name == "__getitem__" else selection.assign(args[2])
        if name == "__array__":  # the values of the trace would become constants of the program
            raise TypeError("numpy() on Tensor")
        if name in ("__repr__", "__str__", "__format__"):  # nor do texts tell values, or that this is a trace
            return "tensor(...)"
        func = _WRITTEN_OUT.get(name, func)
        if torch.is_grad_enabled():
            return func(*args, **kwargs)
        if name.endswith("_") or name == "__setitem__":  # what it writes carries no gradient
            first, *others = args
            return func(first, *tree_map_only(Tensor, Tensor.detach, others), **kwargs)
        return tree_map_only(Tensor, Tensor.detach, func(*args, **kwargs))


def _line() -> int:
    """Return the line of the source that is being executed; 0 outside of it."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == FILE:
            return frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return 0


def _without_fixed_masks(index: Any) -> Any:
    """Return an index with positions in the place of boolean masks that depend on no input."""
    parts: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, Tensor) and part.dtype == torch.bool and part.dim() and _is_fixed(part):
            parts += part.nonzero(as_tuple=True)
        else:
            parts.append(part)
    return tuple(parts) if isinstance(index, tuple) or len(parts) > 1 else parts[0]


def _is_fixed(tensor: Tensor) -> bool:
    """Whether a tensor depends on no input: torch.vmap gives no numbers of others."""
    try:
        tensor.any().item()
    except RuntimeError:
        return False
    return True


def _select(tensor: Tensor, index: Any) -> "_Selection | None":
    """Return what a boolean mask selects, as in tensor[mask], tensor[mask, 1] or tensor[:, mask]; None for other indices."""
    parts = index if isinstance(index, tuple) else (index,)
    masks = [part for part in parts if isinstance(part, Tensor) and part.dtype == torch.bool and part.dim()]
    if len(masks) != 1 or not all(isinstance(part, slice | int) for part in parts if part is not masks[0]):
        return None
    (mask,) = masks
    position = next(k for k, part in enumerate(parts) if part is mask)
    values = tensor[(*parts[:position], *(slice(None),) * mask.dim(), *parts[position + 1 :])]
    before = sum(isinstance(part, slice) for part in parts[:position])
    after = values.dim() - before - mask.dim()
    return _Selection(values, mask, mask.reshape(*(1,) * before, *mask.shape, *(1,) * after))


class _Selection:
    """The elements of a tensor that a boolean mask selects, while they are only changed one by one.

    Args:
        values: the tensor, or a view of it; its other elements are ignored.
        mask: the mask as the source has it.
        spread: the mask with as many dimensions as `values`.
    """

    def __init__(self, values: Any, mask: Tensor, spread: Tensor) -> None:
        self.values, self.mask, self.spread = values, mask, spread

    def __getattr__(self, name: str) -> Any:
        raise SelectedByMask

    def copy(self) -> "_Selection":
        """Return the selected elements as they are now: later changes of the tensor do not change them."""
        return _Selection(self.values.clone(), self.mask, self.spread)

    def assign(self, value: Any) -> None:
        """Replace the selected elements."""
        new = self._same_elements(value)
        if isinstance(new, Tensor):
            new = new.to(self.values.dtype)
        self.values.copy_(torch.where(self.spread, new, self.values))

    def combine(self, name: str, other: Any) -> "_Selection":
        """Apply a binary operator to the selected elements."""
        return _Selection(getattr(self.values, name)(self._same_elements(other)), self.mask, self.spread)

    def _same_elements(self, value: Any) -> Any:
        """Return a value for all elements; raise SelectedByMask if it has one for the selected elements only."""
        if isinstance(value, _Selection):
            if value.mask is not self.mask:
                raise SelectedByMask
            return value.values
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise SelectedByMask
            return value.reshape(())
        return value


def _needs_elements(selection: _Selection, *_: Any) -> Any:
    raise SelectedByMask


def _operator(name: str) -> Callable[[_Selection, Any], _Selection]:
    return lambda selection, other: selection.combine(name, other)


for _name in ("add", "sub", "mul", "truediv", "pow"):
    for _prefix in ("__", "__r"):
        setattr(_Selection, f"{_prefix}{_name}__", _operator(f"{_prefix}{_name}__"))
for _name in (
    "getitem",
    "setitem",
    "len",
    "iter",
    "bool",
    "float",
    "int",
    "matmul",
    "rmatmul",
    "neg",
    "abs",
    "gt",
    "lt",
):
    setattr(_Selection, f"__{_name}__", _needs_elements)
