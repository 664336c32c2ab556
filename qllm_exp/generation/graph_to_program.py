"""The raw graph of torch.export as the JSON of a tensor program.

Decompositions are not run: they lose detach(). What ties a graph to the machine that traced it (devices, memory layout,
checks of dtypes) is left out, and so is what nothing needs.
"""

import operator
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from qllm_exp.credit import program_json
from qllm_exp.credit.operations import find
from qllm_exp.credit.program_json import AGENTS_Q, BATCH_SIZE, FIRST_CONSTANT, GLOBAL_STATE
from qllm_exp.credit.refused import Refused


def convert(exported: torch.export.ExportedProgram, n_agents: int, state_dim: int) -> dict[str, Any]:
    """The JSON of a program; raises Refused('convert', reason) for an operation that programs do not have."""
    converter = _Converter(exported)
    return {
        "version": program_json.VERSION,
        "n_agents": n_agents,
        "state_dim": state_dim,
        "constants": [program_json.encode_constant(one) for one in converter.constants],
        "operations": converter.operations,
        "output": converter.output,
    }


class _Converter:
    """Writes down a graph node by node. `refs` maps nodes to JSON arguments."""

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self.refs: dict[fx.Node, Any] = {}
        self.operations: list[list[Any]] = []
        nodes = list(exported.graph.nodes)
        self.constants = self._inputs(exported, [node for node in nodes if node.op == "placeholder"])
        self.in_place = any(_writes(node) for node in nodes)
        for node in _needed(nodes):
            if node.op == "call_function":
                self.refs[node] = self._converted(node)
            elif node.op == "get_attr":
                _refuse_operation("a nested block")
        ((output,),) = nodes[-1].args
        self.output = self.refs[output]["ref"]

    def _inputs(self, exported: torch.export.ExportedProgram, nodes: list[fx.Node]) -> list[Tensor]:
        """Number the inputs and constants; returns the constants."""
        users = iter((AGENTS_Q, GLOBAL_STATE))
        constants: list[Tensor] = []
        for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                self.refs[node] = {"ref": next(users)}
            else:
                self.refs[node] = {"ref": FIRST_CONSTANT + len(constants)}
                constants.append(exported.constants[spec.target or ""])
        return constants

    def _emit(self, name: str, arguments: list[Any], keywords: dict[str, Any] | None = None) -> dict[str, int]:
        self.operations.append([name, arguments, keywords or {}])
        return {"ref": FIRST_CONSTANT + len(self.constants) + len(self.operations) - 1}

    def _converted(self, node: fx.Node) -> Any:
        """The JSON argument that stands for the result of the node; its operation is written down if it has one."""
        target = node.target
        if target in _SIZE_OPERATIONS:
            return self._emit(_SIZE_OPERATIONS[target], [self._argument(one) for one in node.args])
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            _refuse_operation(str(getattr(target, "__name__", target)))
        name = target._schema.name.removeprefix("aten::") + "." + (target._schema.overload_name or "default")
        arguments, keywords = _positional(node, target)
        first = arguments[0] if arguments else None
        if name == "detach_.default" and self._is_constant(first):
            return self._argument(first)  # torch.tensor(...) ends with it
        if name == "sym_size.int" and arguments[1] == 0 and self._argument(first)["ref"] in (AGENTS_Q, GLOBAL_STATE):
            return {"ref": BATCH_SIZE}
        if name == "sym_size.int":
            return self._emit("size", [self._argument(one) for one in arguments])
        if name == "slice.Tensor" and list(arguments[2:5]) == [0, 2**63 - 1, 1]:
            return self._argument(first)  # x[:, ...] takes the whole of a dimension
        if name == "lift_fresh_copy.default":
            return self._emit("clone.default", [self._argument(first)]) if self.in_place else self._argument(first)
        if name.startswith("to."):
            return self._cast(target, arguments, keywords)
        if name == "one_hot.default":
            return self._one_hot(arguments)
        if name == "view.default":
            name = "reshape.default"  # the same where view works, and works where rows are not contiguous
        if find(name) is None:
            _refuse_operation(name)
        kept = {key: self._argument(value) for key, value in keywords.items() if key not in _DEVICE_KEYWORDS}
        return self._emit(name, [self._argument(one) for one in arguments], kept)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.refs[value]
        if isinstance(value, list | tuple):
            return [self._argument(one) for one in value]
        try:
            return program_json.encode(value)
        except TypeError as error:
            raise Refused("convert", str(error)) from None

    def _is_constant(self, node: Any) -> bool:
        """Whether the value is a fixed tensor of the source, perhaps cast."""
        while isinstance(node, fx.Node) and node.op == "call_function":
            node = node.args[0] if node.args else None
        return isinstance(node, fx.Node) and bool(self.refs[node]["ref"] >= FIRST_CONSTANT)

    def _cast(self, target: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Keep the change of dtype and leave out the device: a program runs where its inputs are."""
        if target._overloadname == "other":
            return self._emit("type_as.default", [self._argument(one) for one in arguments[:2]])
        dtypes = [one for one in (*arguments, *keywords.values()) if isinstance(one, torch.dtype)]
        if not dtypes:
            return self._argument(arguments[0])
        return self._emit("to.dtype", [self._argument(arguments[0]), self._argument(dtypes[0])])

    def _one_hot(self, arguments: list[Any]) -> Any:
        """one_hot(x, k) as x[..., None] == arange(k): on CUDA, a class out of range is then no device-side assert."""
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
    "nonzero": "the number of its results depends on tensor values: use torch.where(condition, a, b)",
    "promote_types": "it uses the batch size as a value",
    "sym_float": "it uses the batch size as a value",
    "detach_": "it detaches a tensor in place: use x.detach()",
}


def _refuse_operation(name: str) -> NoReturn:
    if name in {"ge", "le", "gt", "lt", "eq", "ne"}:  # of sizes, which are fixed unless a mask selects elements
        name = "_assert_scalar"
    reason = _REASONS.get(name.partition(".")[0], "it is not a supported tensor operation: use basic torch arithmetic")
    raise Refused("convert", f"the function uses {name}: {reason}")


def _writes(node: fx.Node) -> bool:
    found = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return bool(found) and str(node.target) != "aten.detach_.default"


def _needed(nodes: list[fx.Node]) -> list[fx.Node]:
    """The nodes that the output is made from, those that write to tensors, and those that say why to refuse."""
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        base = str(node.target).removeprefix("aten.").partition(".")[0]
        if node in needed or node.op == "output" or _writes(node) or base in _REASONS.keys() - {"detach_"}:
            needed.update((node, *node.all_input_nodes))
    return [node for node in nodes if node in needed]


def _positional(node: fx.Node, target: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments in the order of the schema, with defaults filled in up to the last one given, and keyword-only ones."""
    schema = [argument for argument in target._schema.arguments if not argument.kwarg_only]
    arguments, keywords = list(node.args), dict(node.kwargs)
    last = max((i for i, one in enumerate(schema) if one.name in keywords), default=-1)
    for one in schema[len(arguments) : last + 1]:
        arguments.append(keywords.pop(one.name, one.default_value))
    if target._schema.name == "aten::slice":
        arguments += [one.default_value for one in schema[len(arguments) :]]
    return arguments, keywords
