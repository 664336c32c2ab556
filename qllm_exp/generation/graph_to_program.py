"""Conversion of a traced graph of ATen operations to the JSON of a tensor program.

A graph is traced for one fixed number of rows. Two graphs of the same function, traced for different numbers of rows, show which
of its numbers are the number of rows. Whatever ties a graph to the machine that traced it (devices, memory layout) is removed,
and so are operations that change nothing.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx

from qllm_exp.credit import program_json
from qllm_exp.credit.operations import find_operation
from qllm_exp.credit.program_json import AGENTS_Q, BATCH_SIZE, FIRST_CONSTANT, GLOBAL_STATE
from qllm_exp.credit.refused import Refused

LINE, VALUE = "line", "value"  # keys of a node's metadata


class RowGraph(NamedTuple):
    """The operations of a function, in order, traced for a fixed number of rows.

    Attributes:
        graph: ATen operations with two inputs and one output. The metadata of a node has the line of the source that it comes
            from (LINE), if it comes from one, and its value in the trace (VALUE).
        constants: the fixed tensors, by the target of their nodes.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]


def convert(graphs: Mapping[int, RowGraph], n_agents: int, state_dim: int) -> tuple[dict[str, Any], list[int]]:
    """Convert two traced graphs of a function to a tensor program.

    Args:
        graphs: two numbers of rows, each with the graph of the function traced for it.
        n_agents: columns of agents_q.
        state_dim: columns of global_state.

    Returns:
        The JSON of the program, and for each operation its line in the source, 0 if it has none.

    Raises:
        Refused: the graph has an operation that programs do not support, or depends on the number of rows in another way
            than by the sizes of tensors; the stage is 'convert'.
    """
    converter = _Converter(graphs)
    data = {
        "version": program_json.VERSION,
        "n_agents": n_agents,
        "state_dim": state_dim,
        "constants": [program_json.encode_constant(constant) for constant in converter.constants],
        "operations": converter.operations,
        "output": converter.output,
    }
    return data, converter.lines


class _Converter:
    """Converts a graph node by node.

    Attributes:
        refs: the JSON argument that refers to the result of each node.
        operations: the operations so far.
        lines: the source line of each operation.
        constants: the fixed tensors of the graph.
        output: number of the value that the program returns.
    """

    def __init__(self, graphs: Mapping[int, RowGraph]) -> None:
        (first_batch, graph), (second_batch, other) = graphs.items()
        self.refs: dict[fx.Node, Any] = {}
        self.operations: list[list[Any]] = []
        self.lines: list[int] = []
        self._batches, self._line = (first_batch, second_batch), 0
        nodes, other_nodes = (_needed(list(module.graph.nodes)) for module in (graph, other))
        if [node.target for node in nodes] != [node.target for node in other_nodes]:
            _refuse_rows()
        self._twins = dict(zip(nodes, other_nodes, strict=True))
        fixed = [node for node in nodes if node.op == "get_attr"]
        self.constants: list[Tensor] = []
        for node in fixed:
            self.refs[node] = {"ref": FIRST_CONSTANT + len(self.constants)}
            self.constants.append(graph.constants[str(node.target)].detach())
        inputs = iter((AGENTS_Q, GLOBAL_STATE))
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self.refs[node] = {"ref": next(inputs)}
        for node in nodes:
            if node.op == "call_function":
                self._line = node.meta.get(LINE, self._line)
                self.refs[node] = self._convert_node(node)
        output = list(graph.graph.nodes)[-1].args[0]
        self.output = self.refs[output]["ref"]

    def _emit(self, name: str, arguments: list[Any], keywords: dict[str, Any] | None = None) -> dict[str, int]:
        """Append an operation and return the reference to its result."""
        self.operations.append([name, arguments, keywords or {}])
        self.lines.append(self._line)
        return {"ref": FIRST_CONSTANT + len(self.constants) + len(self.operations) - 1}

    def _convert_node(self, node: fx.Node) -> Any:
        """Append the operation of a node, if it needs one, and return the JSON argument that refers to its result."""
        target = node.target
        twin = self._twins[node]
        if target is operator.getitem:
            return self._emit("get", [self._argument(node.args[0], twin.args[0]), node.args[1]])
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            _refuse_operation(str(getattr(target, "__name__", target)))
        name = target._schema.name.removeprefix("aten::") + "." + (target._schema.overload_name or "default")
        arguments, keywords = _positional(node, target)
        twin_arguments, twin_keywords = _positional(twin, target)
        converted = [self._argument(*pair) for pair in zip(arguments, twin_arguments, strict=True)]
        if name.partition(".")[0].endswith("_") and len(arguments[0].users) == 1:
            name = name.replace("_.", ".", 1)  # nothing else sees the tensor that it writes to
        if _changes_nothing(name, node, arguments):
            return converted[0]
        if name in _RENAMED:
            name, keep = _RENAMED[name]
            converted = converted[:keep]
        elif name == "_to_copy.default":
            return self._emit("to.dtype", [converted[0], self._argument(keywords["dtype"], keywords["dtype"])])
        elif name == "floor_divide.default":  # which has no gradient, not even in the state
            return self._emit("div.Tensor_mode", converted, {"rounding_mode": "floor"})
        elif name in _FIRST_RESULT:
            name, adapt = _FIRST_RESULT[name]
            return [self._emit(name, adapt(converted))]
        if find_operation(name) is None:
            _refuse_operation(name)
        kept_keywords = {
            key: self._argument(value, twin_keywords[key])
            for key, value in keywords.items()
            if key not in _DEVICE_KEYWORDS
        }
        return self._emit(name, converted, kept_keywords)

    def _argument(self, value: Any, twin: Any) -> Any:
        """Return an argument of a node as JSON.

        Args:
            value: the argument in the graph.
            twin: the same argument in the graph that was traced for another number of rows.
        """
        if isinstance(value, fx.Node):
            return self.refs[value]
        if isinstance(value, list | tuple):
            if len(value) != len(twin):
                _refuse_rows()
            return [self._argument(*pair) for pair in zip(value, twin, strict=True)]
        if type(value) is int and value != twin:
            return self._size(value, twin)
        if value != twin and not (value != value and twin != twin):
            _refuse_rows()
        try:
            return program_json.encode(value)
        except TypeError as error:
            raise Refused("convert", str(error)) from None

    def _size(self, value: int, twin: int) -> Any:
        """Return a size that depends on the number of rows: a multiple of it."""
        factor, rest = divmod(value, self._batches[0])
        if rest or twin != factor * self._batches[1]:
            _refuse_rows()
        return {"ref": BATCH_SIZE} if factor == 1 else self._emit("int_mul", [{"ref": BATCH_SIZE}, factor])


def _changes_nothing(name: str, node: fx.Node, arguments: Sequence[Any]) -> bool:
    """Whether the result of an operation is its first argument: values, shape, dtype and gradient."""
    if name in ("lift_fresh.default", "lift_fresh_copy.default", "alias.default", "clone.default"):
        return True  # nothing in the graph writes to a tensor
    if name not in (
        "permute.default",
        "slice.Tensor",
        "expand.default",
        "view.default",
        "_to_copy.default",
        "reshape.default",
    ):
        return False
    if not isinstance(arguments[0], fx.Node):
        return False
    before, after = arguments[0].meta[VALUE], node.meta[VALUE]
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    return name != "permute.default" or list(arguments[1]) == list(range(len(arguments[1])))


# Operations below autograd and the operations above it that they come from, with the number of arguments that these take.
_RENAMED = {
    "_softmax.default": ("softmax.int", 2),
    "_log_softmax.default": ("log_softmax.int", 2),
    "_unsafe_view.default": ("reshape.default", 2),
    "_reshape_alias.default": ("reshape.default", 2),
    "view.default": ("reshape.default", 2),  # equal to view, and also works if rows are not contiguous
    "_cdist_forward.default": ("cdist.default", 4),
    "_unsafe_index.Tensor": ("index.Tensor", 2),
    "copy.default": ("copy.default", 2),
}
# Operations with several results of which only the first is used.
_FIRST_RESULT: dict[str, tuple[str, Callable[[list[Any]], list[Any]]]] = {
    "native_layer_norm.default": ("layer_norm.default", lambda arguments: arguments[:5]),
    "log_sigmoid_forward.default": ("log_sigmoid.default", lambda arguments: arguments[:1]),
}
_DEVICE_KEYWORDS = {"device", "layout", "pin_memory", "memory_format", "non_blocking"}
_ONLY_CONSTANT_PADDING = "F.pad has no mode but 'constant' here: join the parts with torch.cat"
_REASONS = {
    "_linalg_svd": "matrix norms with ord=2, -2 or 'nuc' are not allowed: use the norm of vectors, dim=-1",
    "new_empty": _ONLY_CONSTANT_PADDING,  # what 'circular' begins with
    "reflection_pad1d": _ONLY_CONSTANT_PADDING,
    "replication_pad1d": _ONLY_CONSTANT_PADDING,
    "item": "it takes a Python number out of a tensor: keep to tensor arithmetic and torch.where",
    "_local_scalar_dense": "it takes a Python number out of a tensor: keep to tensor arithmetic and torch.where",
    "nonzero": "the size of its result depends on tensor values: use torch.where(condition, a, b)",
}


def _refuse_operation(name: str) -> NoReturn:
    """Raise Refused('convert', reason) for an operation that programs do not support."""
    reason = _REASONS.get(name.partition(".")[0], "it is not a supported tensor operation: use basic torch arithmetic")
    raise Refused("convert", f"the function uses {name}: {reason}")


def _refuse_rows() -> NoReturn:
    """Raise Refused('convert', reason) for a graph that depends on the number of rows."""
    raise Refused("convert", "it depends on the number of rows: each row is a time step of its own")


def _needed(nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the nodes that the output depends on."""
    needed: set[fx.Node] = {nodes[-1]}
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in needed]


def _positional(node: fx.Node, target: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional arguments of a node in the order of the schema, and the keyword-only ones.

    Defaults are filled in up to the last argument that the node passes.
    """
    parameters = [parameter for parameter in target._schema.arguments if not parameter.kwarg_only]
    arguments, keywords = list(node.args), dict(node.kwargs)
    last = max((i for i, parameter in enumerate(parameters) if parameter.name in keywords), default=-1)
    for parameter in parameters[len(arguments) : last + 1]:
        arguments.append(keywords.pop(parameter.name, parameter.default_value))
    return arguments, keywords
