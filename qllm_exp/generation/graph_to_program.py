"""Conversion of a raw torch.export graph to the JSON of a tensor program.

Decompositions are not run, because they lose detach(). Whatever ties a graph to the machine that traced it (devices,
memory layout, checks of dtypes) is removed, and so are unused nodes.
"""

import operator
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from qllm_exp.credit import program_json
from qllm_exp.credit.operations import find_operation
from qllm_exp.credit.program_json import AGENTS_Q, BATCH_SIZE, FIRST_CONSTANT, GLOBAL_STATE
from qllm_exp.credit.refused import Refused


def convert(exported: torch.export.ExportedProgram, n_agents: int, state_dim: int) -> dict[str, Any]:
    """Convert an exported graph to the JSON of a tensor program.

    Args:
        exported: the result of torch.export.
        n_agents: columns of agents_q.
        state_dim: columns of global_state.

    Raises:
        Refused: the graph has an operation that programs do not support; the stage is 'convert'.
    """
    converter = _Converter(exported)
    return {
        "version": program_json.VERSION,
        "n_agents": n_agents,
        "state_dim": state_dim,
        "constants": [program_json.encode_constant(constant) for constant in converter.constants],
        "operations": converter.operations,
        "output": converter.output,
    }


class _Converter:
    """Converts a graph node by node.

    Attributes:
        refs: the JSON argument that refers to the result of each node.
        operations: the operations so far.
        constants: the fixed tensors of the graph.
        in_place: whether any node writes to a tensor.
        output: number of the value that the program returns.
    """

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self.refs: dict[fx.Node, Any] = {}
        self.operations: list[list[Any]] = []
        nodes = list(exported.graph.nodes)
        self.constants = self._inputs(exported, [node for node in nodes if node.op == "placeholder"])
        self.in_place = any(_writes(node) for node in nodes)
        for node in _needed(nodes):
            if node.op == "call_function":
                self.refs[node] = self._convert_node(node)
            elif node.op == "get_attr":
                _refuse_operation("a nested block")
        ((output,),) = nodes[-1].args
        self.output = self.refs[output]["ref"]

    def _inputs(self, exported: torch.export.ExportedProgram, nodes: list[fx.Node]) -> list[Tensor]:
        """Number the inputs and constants; return the constants."""
        input_numbers = iter((AGENTS_Q, GLOBAL_STATE))
        constants: list[Tensor] = []
        for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                self.refs[node] = {"ref": next(input_numbers)}
            else:
                self.refs[node] = {"ref": FIRST_CONSTANT + len(constants)}
                constants.append(exported.constants[spec.target or ""])
        return constants

    def _emit(self, name: str, arguments: list[Any], keywords: dict[str, Any] | None = None) -> dict[str, int]:
        """Append an operation and return the reference to its result."""
        self.operations.append([name, arguments, keywords or {}])
        return {"ref": FIRST_CONSTANT + len(self.constants) + len(self.operations) - 1}

    def _convert_node(self, node: fx.Node) -> Any:
        """Append the operation of a node, if it needs one, and return the JSON argument that refers to its result."""
        target = node.target
        if target in _SIZE_OPERATIONS:
            return self._emit(_SIZE_OPERATIONS[target], [self._argument(value) for value in node.args])
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            _refuse_operation(str(getattr(target, "__name__", target)))
        name = target._schema.name.removeprefix("aten::") + "." + (target._schema.overload_name or "default")
        arguments, keywords = _positional(node, target)
        first = arguments[0] if arguments else None
        if name == "detach_.default" and self._is_constant(first):
            return self._argument(first)  # the last node of torch.tensor(...)
        if name == "sym_size.int" and arguments[1] == 0 and self._argument(first)["ref"] in (AGENTS_Q, GLOBAL_STATE):
            return {"ref": BATCH_SIZE}
        if name == "sym_size.int":
            return self._emit("size", [self._argument(value) for value in arguments])
        if name == "slice.Tensor" and list(arguments[2:5]) == [0, 2**63 - 1, 1]:
            return self._argument(first)  # x[:, ...] selects a whole dimension
        if name == "lift_fresh_copy.default":
            if self.in_place:
                return self._emit("clone.default", [self._argument(first)])
            return self._argument(first)
        if name.startswith("to."):
            return self._cast(target, arguments, keywords)
        if name == "one_hot.default":
            return self._one_hot(arguments)
        if name == "view.default":
            name = "reshape.default"  # equal to view, and also works if rows are not contiguous
        if find_operation(name) is None:
            _refuse_operation(name)
        kept_keywords = {key: self._argument(value) for key, value in keywords.items() if key not in _DEVICE_KEYWORDS}
        return self._emit(name, [self._argument(value) for value in arguments], kept_keywords)

    def _argument(self, value: Any) -> Any:
        """Return an argument of a node as JSON."""
        if isinstance(value, fx.Node):
            return self.refs[value]
        if isinstance(value, list | tuple):
            return [self._argument(element) for element in value]
        try:
            return program_json.encode(value)
        except TypeError as error:
            raise Refused("convert", str(error)) from None

    def _is_constant(self, node: Any) -> bool:
        """Whether the value is a fixed tensor of the source, possibly after a cast."""
        while isinstance(node, fx.Node) and node.op == "call_function":
            node = node.args[0] if node.args else None
        return isinstance(node, fx.Node) and bool(self.refs[node]["ref"] >= FIRST_CONSTANT)

    def _cast(self, target: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Keep the change of dtype and drop the device: a program runs on the device of its inputs."""
        if target._overloadname == "other":
            return self._emit("type_as.default", [self._argument(value) for value in arguments[:2]])
        dtypes = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.dtype)]
        if not dtypes:
            return self._argument(arguments[0])
        return self._emit("to.dtype", [self._argument(arguments[0]), self._argument(dtypes[0])])

    def _one_hot(self, arguments: list[Any]) -> Any:
        """Write one_hot(x, k) as x[..., None] == arange(k), because on CUDA one_hot asserts on classes out of range."""
        column = self._emit("unsqueeze.default", [self._argument(arguments[0]), -1])
        classes = self._emit("arange.default", [self._argument(arguments[1])])
        return self._emit("to.dtype", [self._emit("eq.Tensor", [column, classes]), {"dtype": "int64"}])


_SIZE_OPERATIONS: dict[Any, str] = {
    operator.getitem: "get",
    operator.add: "int_add",
    operator.sub: "int_sub",
    operator.mul: "int_mul",
    operator.floordiv: "int_floordiv",
}
_DEVICE_KEYWORDS = {"device", "layout", "pin_memory", "memory_format", "non_blocking"}
_REASONS = {
    "item": "it takes a Python number out of a tensor: keep to tensor arithmetic and torch.where",
    "_assert_scalar": "it selects elements by a mask, and their number depends on tensor values: use torch.where",
    "nonzero": "the size of its result depends on tensor values: use torch.where(condition, a, b)",
    "promote_types": "it uses the batch size as a value",
    "sym_float": "it uses the batch size as a value",
    "detach_": "it detaches a tensor in place: use x.detach()",
}


def _refuse_operation(name: str) -> NoReturn:
    """Raise Refused('convert', reason) for an operation that programs do not support."""
    if name in {"ge", "le", "gt", "lt", "eq", "ne"}:  # compares sizes, which are fixed unless a mask selects elements
        name = "_assert_scalar"
    reason = _REASONS.get(name.partition(".")[0], "it is not a supported tensor operation: use basic torch arithmetic")
    raise Refused("convert", f"the function uses {name}: {reason}")


def _writes(node: fx.Node) -> bool:
    """Whether a node writes to a tensor; a detach in place does not count."""
    is_mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return bool(is_mutable) and str(node.target) != "aten.detach_.default"


def _needed(nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the nodes that the output depends on, those that write to tensors, and those that will be refused."""
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        base = str(node.target).removeprefix("aten.").partition(".")[0]
        if node in needed or node.op == "output" or _writes(node) or base in _REASONS.keys() - {"detach_"}:
            needed.update((node, *node.all_input_nodes))
    return [node for node in nodes if node in needed]


def _positional(node: fx.Node, target: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional arguments of a node in the order of the schema, and the keyword-only ones.

    Defaults are filled in up to the last argument that the node passes; all of them for a slice.
    """
    parameters = [parameter for parameter in target._schema.arguments if not parameter.kwarg_only]
    arguments, keywords = list(node.args), dict(node.kwargs)
    last = max((i for i, parameter in enumerate(parameters) if parameter.name in keywords), default=-1)
    for parameter in parameters[len(arguments) : last + 1]:
        arguments.append(keywords.pop(parameter.name, parameter.default_value))
    if target._schema.name == "aten::slice":
        arguments += [parameter.default_value for parameter in parameters[len(arguments) :]]
    return arguments, keywords
