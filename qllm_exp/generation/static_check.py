"""Static check of a generated function: reads the source, runs nothing, and refuses whatever is not on the allow-list.

It stops honest mistakes and plain attacks within a millisecond. It is not the only gate: the source is executed in a child
process with limits (sandbox.py), and training runs the exported tensor program, never the source.
"""

import ast
import math
import warnings
from typing import NoReturn

from qllm_exp.credit.refused import FUNCTION_NAMES, Refused
from qllm_exp.generation.allow_list import BUILTINS, HINTS, IMPORTS, METHODS, MODULES

_RESERVED_FOR = {"torch": "torch", "th": "torch", "math": "math", "F": "torch.nn.functional"}
RESERVED = frozenset(_RESERVED_FOR)  # names that always refer to their modules
MAX_SOURCE = 20_000  # characters
MAX_NODES = 5_000  # nodes of the syntax tree
MAX_DEPTH = 200  # nesting of the syntax tree
MAX_TRIPS = 4_096  # iterations of a loop nest
_MAX_NUMBER = 2**53  # float64 represents all integers up to here exactly
_MAX_STRING = 200  # characters of a string that is not a docstring

_SYNTAX: tuple[type[ast.AST], ...] = (
    ast.Module,
    ast.FunctionDef,
    ast.arguments,
    ast.arg,
    ast.Return,
    ast.Assign,
    ast.AugAssign,
    ast.AnnAssign,
    ast.For,
    ast.If,
    ast.IfExp,
    ast.Expr,
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.Assert,
    ast.Import,
    ast.ImportFrom,
    ast.alias,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Call,
    ast.keyword,
    ast.Starred,
    ast.Attribute,
    ast.Subscript,
    ast.Slice,
    ast.Constant,
    ast.Name,
    ast.expr_context,
    ast.Tuple,
    ast.List,
    ast.Dict,
    ast.ListComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.comprehension,
    ast.Lambda,
    ast.JoinedStr,
    ast.FormattedValue,
)
_SYNTAX_HINTS: dict[type[ast.AST], str] = {
    ast.While: "while loops are not allowed: loop over range() of a fixed size",
    ast.ClassDef: "classes are not allowed: write one function",
    ast.AsyncFunctionDef: "async functions are not allowed",
    ast.Await: "await is not allowed",
    ast.Yield: "yield is not allowed: return one tensor",
    ast.YieldFrom: "yield is not allowed: return one tensor",
    ast.Try: "try is not allowed: do not hide errors",
    ast.Raise: "raise is not allowed: the shapes are guaranteed; choose between values with torch.where",
    ast.With: "with blocks are not allowed (for values without gradient use tensor.detach())",
    ast.Global: "global is not allowed: keep everything inside the function",
    ast.Nonlocal: "nonlocal is not allowed: pass values as arguments and return them",
    ast.Delete: "del is not allowed",
    ast.NamedExpr: "':=' is not allowed: assign on a line of its own",
    ast.Match: "match is not allowed: use torch.where",
    ast.Set: "sets are not allowed: use a list",
    ast.SetComp: "sets are not allowed: use a list",
}


def check(source: str) -> str:
    """Return the name of the only function in `source`; raises Refused('static', reason)."""
    return parse(source)[1].name


def parse(source: str) -> tuple[ast.Module, ast.FunctionDef]:
    """Parse and check a source.

    Args:
        source: Python source.

    Returns:
        The syntax tree, and the only function in it.

    Raises:
        Refused: the source breaks a rule; the stage is 'static'.
    """
    if len(source) > MAX_SOURCE:
        raise Refused("static", f"the source has {len(source)} characters; {MAX_SOURCE} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's warnings about the style of the source
            tree = ast.parse(source)
            compile(tree, "<credit assignment>", "exec")  # finds more errors than parsing, e.g. return outside def
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise Refused("static", f"{line}not valid Python: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise Refused("static", "expressions are nested too deeply") from None
    except ValueError as error:
        raise Refused("static", f"not valid Python: {error}") from None
    return tree, _Checker(tree).function


def _refuse(node: ast.AST, reason: str) -> NoReturn:
    """Raise Refused('static', reason) with the line of the node."""
    line = getattr(node, "lineno", None)
    raise Refused("static", f"line {line}: {reason}" if line else reason)


class _Checker:
    """Checks a syntax tree in one pass. The method `_name` checks nodes of type ast.Name, and so on.

    Attributes:
        parents: parent of every node.
        function: the only top-level function.
        bound: names that the source defines.
    """

    def __init__(self, tree: ast.Module) -> None:
        nodes = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", math.inf))
        if len(nodes) > MAX_NODES:
            raise Refused("static", f"the function is too long: {len(nodes)} syntax nodes, {MAX_NODES} are allowed")
        for node in nodes:
            if not isinstance(node, _SYNTAX):
                kind = type(node)
                _refuse(node, _SYNTAX_HINTS.get(kind, f"{kind.__name__} is not allowed: plain tensor arithmetic only"))
        _check_depth(tree)
        self.parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        self.function = self._single_function(tree)
        self.bound = self._bindings(nodes)
        for node in nodes:
            visit = getattr(self, f"_{type(node).__name__.lower()}", None)
            if visit is not None:
                visit(node)

    def _single_function(self, tree: ast.Module) -> ast.FunctionDef:
        """Return the only top-level function; refuse other top-level code, other names and other parameters."""
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        for node in tree.body:
            if not (isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom) or _is_text(node)):
                _refuse(node, "only imports and one function are allowed at the top level: move this into the function")
        if len(functions) != 1:
            names = ", ".join(function.name for function in functions) or "none"
            raise Refused(
                "static", f"exactly one top-level function is required, found: {names} (nest helpers inside it)"
            )
        function = functions[0]
        if function.name not in FUNCTION_NAMES:
            _refuse(function, f"the function is called {function.name!r}: call it {FUNCTION_NAMES[0]!r}")
        arguments = function.args
        others = (*arguments.posonlyargs, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg, *arguments.defaults)
        if len(arguments.args) != 2 or any(others):
            _refuse(function, "the parameters must be exactly (agents_q, global_state)")
        return function

    def _bindings(self, nodes: list[ast.AST]) -> set[str]:
        """Return the names that the source defines; refuse reserved names and names of built-ins."""
        bound = set()
        for node in nodes:
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, ast.FunctionDef):
                name = node.name
            else:
                continue
            if name in RESERVED:
                _refuse(node, f"{name!r} is reserved for {_RESERVED_FOR[name]}: choose another name")
            if name.startswith("__") or name in BUILTINS:
                _refuse(node, f"{name!r} must not be redefined: choose another name")
            bound.add(name)
        return bound

    def _import(self, node: ast.Import) -> None:
        for imported in node.names:
            self._check_import(node, imported.name, "", imported.asname or imported.name.partition(".")[0])

    def _importfrom(self, node: ast.ImportFrom) -> None:
        for imported in node.names:
            self._check_import(node, node.module or ".", imported.name, imported.asname or imported.name)

    def _check_import(self, node: ast.stmt, module: str, name: str, alias: str) -> None:
        """Refuse an import that is not on the allow-list."""
        if (module, name, alias) not in IMPORTS:
            statement = f"from {module} import {name}" if name else f"import {module}"
            hint = f" ({HINTS[name or module]})" if (name or module) in HINTS else ""
            _refuse(
                node,
                f"'{statement}' as {alias!r} is not allowed{hint}: only 'import torch', 'import math' and "
                "'import torch.nn.functional as F'",
            )

    def _functiondef(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            _refuse(node, "decorators are not allowed (for values without gradient use tensor.detach())")

    def _name(self, node: ast.Name) -> None:
        name = node.id
        if name in RESERVED:
            if not isinstance(self.parents[node], ast.Attribute):
                _refuse(node, f"the module {name!r} may only be used to call a function of it")
        elif name not in self.bound and name not in BUILTINS:
            _refuse(node, f"{name!r} is not allowed: {HINTS[name]}" if name in HINTS else f"{name!r} is not defined")

    def _call(self, node: ast.Call) -> None:
        if _dotted(node.func) in {"torch.Tensor", "th.Tensor"}:
            _refuse(node, "torch.Tensor(...) leaves values uninitialised: use torch.tensor([...]) or torch.zeros")

    def _attribute(self, node: ast.Attribute) -> None:
        name = node.attr
        if name.startswith("_"):
            _refuse(node, f"the private attribute {name!r} is not allowed")
        if not isinstance(node.ctx, ast.Load):
            _refuse(node, f"assigning to the attribute .{name} is not allowed")
        module = _dotted(node.value)
        if module is not None and module.partition(".")[0] in RESERVED:
            allowed_names = MODULES.get(module)
            is_submodule = isinstance(self.parents[node], ast.Attribute) and any(
                f"{full_name}.".startswith(f"{module}.{name}.") for full_name in MODULES
            )
            if not is_submodule and (allowed_names is None or name not in allowed_names):
                _refuse(node, _unknown(f"{module}.{name}", name))
        elif name not in METHODS:
            _refuse(node, _unknown(f".{name}", name))

    def _constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, str):
            if len(value) > _MAX_STRING and not _is_text(self.parents[node]):
                _refuse(node, f"a string of {len(value)} characters is not allowed; {_MAX_STRING} are allowed")
        elif isinstance(value, bytes | complex):
            _refuse(node, f"{type(value).__name__} values are not allowed: use real numbers")
        elif isinstance(value, int) and abs(value) > _MAX_NUMBER:
            _refuse(node, "an integer beyond 2**53 is not allowed")

    def _for(self, node: ast.For) -> None:
        if node.orelse:
            _refuse(node, "for-else is not allowed")
        self._check_loop(node, node.iter)

    def _comprehension(self, node: ast.comprehension) -> None:
        self._check_loop(node.iter, node.iter)

    def _check_loop(self, node: ast.AST, iterable: ast.expr) -> None:
        """Refuse loops over other things than range(), enumerate(), zip(), reversed(), lists, names or a split tensor."""
        called = iterable.func if isinstance(iterable, ast.Call) else None
        allowed = (
            isinstance(iterable, ast.Name | ast.Tuple | ast.List | ast.ListComp | ast.Subscript)
            or (isinstance(called, ast.Name) and called.id in {"range", "enumerate", "zip", "reversed", *self.bound})
            or (isinstance(called, ast.Attribute) and called.attr in _SPLITTERS)
        )
        if not allowed:
            _refuse(node, "loops may only run over range(), enumerate(), zip(), a list, or the parts of a split tensor")
        trips, ancestor = _trips(iterable), self.parents.get(node)
        while ancestor is not None:
            if isinstance(ancestor, ast.For):
                trips *= _trips(ancestor.iter)
            elif isinstance(ancestor, ast.ListComp | ast.GeneratorExp | ast.DictComp):
                trips *= math.prod(_trips(loop.iter) for loop in ancestor.generators if loop.iter is not iterable)
            ancestor = self.parents.get(ancestor)
        if trips > MAX_TRIPS:
            number = f"{trips}" if trips < 10**20 else "more than 10**20"  # Python limits the digits of an integer
            _refuse(node, f"the loop runs {number} times; {MAX_TRIPS} are allowed: use tensor operations instead")


_SPLITTERS = frozenset({"unbind", "split", "chunk", "tensor_split", "items", "keys", "values"})


def _check_depth(tree: ast.AST) -> None:
    """Refuse a tree that is too deep for recursive functions over it."""
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        _refuse(level[0], "expressions or blocks are nested too deeply: assign parts to variables on separate lines")


def _is_text(node: ast.AST) -> bool:
    """Whether the statement is only a string, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _dotted(node: ast.expr) -> str | None:
    """Return a chain of names as text, e.g. 'torch.nn.functional', and None for any other expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _unknown(full_name: str, name: str) -> str:
    """Explain why an attribute is not allowed; `full_name` is the attribute as the message shows it."""
    if name in HINTS:
        return f"{full_name} is not allowed: {HINTS[name]}"
    if name.endswith("_"):
        return f"{full_name} changes a tensor in place: write x = x.{name.rstrip('_')}(...)"
    return f"{full_name} is not on the list of allowed tensor functions: use basic torch arithmetic"


def _trips(iterable: ast.expr) -> int:
    """Return the number of iterations of a loop as far as the source shows it, else 1."""
    if isinstance(iterable, ast.Tuple | ast.List):
        return max(1, len(iterable.elts))
    if not (isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name)):
        return 1
    if iterable.func.id == "range":
        try:
            numbers = range(*[ast.literal_eval(argument) for argument in iterable.args])
            return max(1, -(-(numbers.stop - numbers.start) // numbers.step))  # len() fails beyond 2**63
        except (ValueError, TypeError):
            return 1
    return min((_trips(argument) for argument in iterable.args if isinstance(argument, ast.expr)), default=1)
