"""Static check of a generated function: reads the source, runs nothing, and refuses whatever is not on the allow-list.

It stops honest mistakes and plain attacks within a millisecond, and names all of them at once. It is not the only gate: the
source is executed in a child process with limits (sandbox.py), and training runs the exported tensor program, never the
source. So Python that only computes inside that process is allowed: helper functions, constants, loops, classes of torch
that are used as types. Parsing itself can be made expensive by the source: call it where time and memory are limited.
"""

import ast
import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from qllm_exp.credit.refused import FUNCTION_NAMES, Refused
from qllm_exp.generation.allow_list import (
    BUILTINS,
    EXCEPTIONS,
    HINTS,
    METHODS,
    MODULES,
    PREDEFINED,
    SYNTAX,
    SYNTAX_HINTS,
)

MAX_SOURCE = 20_000  # characters
MAX_NODES = 5_000  # nodes of the syntax tree
MAX_DEPTH = 100  # nesting of the syntax tree
MAX_TRIPS = 65_536  # iterations of a loop nest, as far as the source shows them
_MAX_NUMBER = 2**53  # float64 represents all integers up to here exactly
_MAX_STRING = 200  # characters of a string that is not a docstring
_MAX_FAULTS = 8  # faults in a refusal

_TENSOR_TYPES = {  # legacy constructors, which leave values uninitialised unless they get a list
    "torch.Tensor": "float32",
    "torch.FloatTensor": "float32",
    "torch.DoubleTensor": "float64",
    "torch.IntTensor": "int32",
    "torch.LongTensor": "int64",
    "torch.BoolTensor": "bool",
}


@dataclass(frozen=True)
class Parsed:
    """A checked source.

    Attributes:
        tree: its syntax tree.
        function: the credit-assignment function in it.
        imports: dotted path of the module or the object that each imported name refers to, e.g. {'F': 'torch.nn.functional'}.
    """

    tree: ast.Module
    function: ast.FunctionDef
    imports: dict[str, str]

    def copy(self) -> ast.Module:
        """Return a copy of the tree, which may be changed."""
        return copy.deepcopy(self.tree)


def check(source: str) -> str:
    """Return the name of the credit-assignment function in `source`; raises Refused('static', reason)."""
    return parse(source).function.name


def parse(source: str) -> Parsed:
    """Parse and check a source.

    Args:
        source: Python source.

    Raises:
        Refused: the source breaks rules; the stage is 'static', and the reason names up to 8 faults with their lines.
    """
    if len(source) > MAX_SOURCE:
        raise Refused("static", f"the source has {len(source)} characters; {MAX_SOURCE} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's warnings about the style of the source
            tree = ast.parse(source.removeprefix("\ufeff"))
            checker = _Checker(tree)
            compile(tree, "<credit assignment>", "exec")  # finds more errors than parsing, e.g. return outside def
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise Refused("static", f"{line}not valid Python: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise Refused("static", "expressions are nested too deeply") from None
    except ValueError as error:
        raise Refused("static", f"not valid Python: {error}") from None
    return Parsed(tree, checker.function, checker.imports)


class _Fault(Exception):
    """A node breaks a rule.

    Args:
        node: the node.
        reason: what is wrong and what to write instead.
    """

    def __init__(self, node: ast.AST, reason: str) -> None:
        super().__init__(reason)
        self.line: int | None = getattr(node, "lineno", None)
        self.reason = reason


def _refuse(node: ast.AST, reason: str) -> NoReturn:
    """Raise the fault of a node."""
    raise _Fault(node, reason)


class _Checker:
    """Checks a syntax tree in one pass. The method `_name` checks nodes of type ast.Name, and so on.

    Attributes:
        parents: parent of every node.
        function: the credit-assignment function.
        imports: dotted path that each imported name refers to.
        bound: names that the source defines.
    """

    def __init__(self, tree: ast.Module) -> None:
        _check_depth(tree)
        nodes = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", math.inf))
        if len(nodes) > MAX_NODES:
            raise Refused("static", f"the function is too long: {len(nodes)} syntax nodes, {MAX_NODES} are allowed")
        self.parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        self.imports = dict(PREDEFINED)
        self.bound: set[str] = set()
        self._faults: list[_Fault] = []
        self._apply(self._collect_imports, nodes)
        try:
            self.function = self._find_function(tree)
        except _Fault as fault:
            self._faults.append(fault)
        self._apply(self._bind, nodes)
        annotations = self._annotations(nodes)
        self._apply(self._check_node, [node for node in nodes if node not in annotations])
        if self._faults:
            _raise(self._faults)

    def _apply(self, check: Callable[[ast.AST], None], nodes: list[ast.AST]) -> None:
        """Check all nodes, and collect the faults."""
        for node in nodes:
            try:
                check(node)
            except _Fault as fault:
                self._faults.append(fault)

    def _check_node(self, node: ast.AST) -> None:
        """Check the type of a node, then what its type requires."""
        if not isinstance(node, SYNTAX):
            kind = type(node)
            _refuse(node, SYNTAX_HINTS.get(kind, f"{kind.__name__} is not allowed: plain tensor arithmetic only"))
        visit = getattr(self, f"_{type(node).__name__.lower()}", None)
        if visit is not None:
            visit(node)

    def _find_function(self, tree: ast.Module) -> ast.FunctionDef:
        """Return the credit-assignment function; refuse other names, missing parameters and decorators."""
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        named = [function for function in functions if function.name in FUNCTION_NAMES]
        if not functions:
            _refuse(
                tree, f"the source has no function at its top level: define {FUNCTION_NAMES[0]}(agents_q, global_state)"
            )
        if not named and len(functions) == 1:
            _refuse(functions[0], f"the function is called {functions[0].name!r}: call it {FUNCTION_NAMES[0]!r}")
        if len(named) != 1:
            names = ", ".join(function.name for function in functions)
            _refuse(tree, f"exactly one function must be called {FUNCTION_NAMES[0]!r}; the functions are: {names}")
        (function,) = named
        arguments = function.args
        parameters = [*arguments.posonlyargs, *arguments.args]
        without_default = len(parameters) - len(arguments.defaults)
        required_keywords = sum(default is None for default in arguments.kw_defaults)
        if without_default > 2 or len(parameters) < 2 or required_keywords or arguments.vararg:
            _refuse(function, "the parameters must be (agents_q, global_state), and others only with defaults")
        return function

    def _annotations(self, nodes: list[ast.AST]) -> set[ast.AST]:
        """Return the nodes of annotations and of the block `if __name__ == ...`, which are not executed."""
        roots: list[ast.AST | None] = []
        for node in nodes:
            if isinstance(node, ast.FunctionDef):
                roots.append(node.returns)
            elif isinstance(node, ast.arg | ast.AnnAssign):
                roots.append(node.annotation)
            elif is_script_block(node) and isinstance(self.parents[node], ast.Module):
                roots.append(node)
        return {node for root in roots if root is not None for node in ast.walk(root)}

    def _collect_imports(self, node: ast.AST) -> None:
        """Note what an import statement defines; refuse modules and names that are not on the allow-list."""
        if isinstance(node, ast.Import):
            for imported in node.names:
                if imported.name not in MODULES:
                    self._refuse_import(node, f"import {imported.name}", imported.name)
                alias = imported.asname or imported.name.partition(".")[0]
                self._add_import(node, alias, imported.name if imported.asname else alias)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for imported in node.names:
                path = f"{module}.{imported.name}"
                allowed = path in MODULES or imported.name in MODULES.get(module, ())
                if node.level or not allowed:
                    statement = f"from {'.' * node.level}{module} import {imported.name}"
                    self._refuse_import(node, statement, imported.name if imported.name in HINTS else module)
                self._add_import(node, imported.asname or imported.name, path)

    def _refuse_import(self, node: ast.stmt, statement: str, name: str) -> NoReturn:
        hint = f" ({HINTS[name]})" if name in HINTS else ""
        _refuse(
            node, f"'{statement}' is not allowed{hint}: import torch, math, torch.nn.functional as F, numpy, itertools"
        )

    def _add_import(self, node: ast.stmt, alias: str, path: str) -> None:
        if alias.startswith("_") or alias in BUILTINS or self.imports.get(alias, path) != path:
            _refuse(node, f"{alias!r} already has another meaning: import it under another name")
        self.imports[alias] = path

    def _bind(self, node: ast.AST) -> None:
        """Note a name that the source defines; refuse names of modules and of built-ins."""
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef):
            name = node.name
        else:
            return
        if name in self.imports:
            _refuse(node, f"{name!r} is reserved for {self.imports[name]}: choose another name")
        if name.startswith("__") or name in BUILTINS or name in EXCEPTIONS:
            _refuse(node, f"{name!r} must not be redefined: choose another name")
        self.bound.add(name)

    def _functiondef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if self._path(called) not in ("functools.cache", "functools.lru_cache"):
                _refuse(node, "decorators are not allowed (for values without gradient use tensor.detach())")

    def _with(self, node: ast.With) -> None:
        for item in node.items:
            called = item.context_expr.func if isinstance(item.context_expr, ast.Call) else None
            if called is None or self._path(called) != "torch.no_grad" or item.optional_vars is not None:
                _refuse(node, "with blocks are not allowed, but for 'with torch.no_grad():'")

    def _raise(self, node: ast.Raise) -> None:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if not (isinstance(error, ast.Name) and error.id in EXCEPTIONS) or node.cause is not None:
            _refuse(node, "raise is only allowed with a built-in error, e.g. raise ValueError('...')")

    def _name(self, node: ast.Name) -> None:
        name = node.id
        if name in self.imports:
            path, parent = self.imports[name], self.parents[node]
            if path in MODULES and not isinstance(parent, ast.Attribute):
                _refuse(node, f"the module {name!r} may only be used to call a function of it")
            self._check_type_use(node, path)
        elif name not in self.bound and name not in BUILTINS and name not in EXCEPTIONS:
            _refuse(node, f"{name!r} is not allowed: {HINTS[name]}" if name in HINTS else f"{name!r} is not defined")

    def _attribute(self, node: ast.Attribute) -> None:
        name = node.attr
        if name.startswith("_"):
            _refuse(node, f"the private attribute {name!r} is not allowed")
        if not isinstance(node.ctx, ast.Load):
            _refuse(node, f"assigning to the attribute .{name} is not allowed")
        module = self._path(node.value)
        if module is None:
            if name not in METHODS:
                _refuse(node, _unknown(f".{name}", name))
            return
        path = f"{module}.{name}"
        if path in MODULES:
            if not isinstance(self.parents[node], ast.Attribute):
                _refuse(node, f"the module {path!r} may only be used to call a function of it")
        elif module in MODULES:
            if name not in MODULES[module]:
                _refuse(node, _unknown(f"{_text(node.value)}.{name}", name))
            self._check_type_use(node, path)
        elif module.partition(".")[0] in MODULES and module not in ("torch.finfo", "torch.iinfo"):
            if any(known.startswith(f"{path}.") for known in MODULES):
                return
            if name not in METHODS or not _is_member(module):
                _refuse(node, _unknown(f"{_text(node.value)}.{name}", name))

    def _keyword(self, node: ast.keyword) -> None:
        if node.arg in ("out", "generator"):
            _refuse(node.value, f"{node.arg}=... is not allowed: use the result of the call")

    def _check_type_use(self, node: ast.expr, path: str) -> None:
        """Refuse a legacy tensor type unless isinstance() asks for it, or it is called with a list."""
        if path not in _TENSOR_TYPES:
            if path == "torch.no_grad" and not self._is_with_item(node):
                _refuse(node, "torch.no_grad() is only allowed in 'with torch.no_grad():'")
            return
        parent = self.parents[node]
        if isinstance(parent, ast.Call) and parent.func is node:
            if len(parent.args) == 1 and isinstance(parent.args[0], ast.List | ast.ListComp) and not parent.keywords:
                return
            _refuse(node, f"{_text(node)}(...) leaves values uninitialised: use torch.tensor([...]) or torch.zeros")
        while isinstance(parent, ast.Tuple):
            parent = self.parents[parent]
        if not (isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "isinstance"):
            _refuse(node, f"{_text(node)} is a type: use torch.tensor([...]) or torch.zeros for values")

    def _is_with_item(self, node: ast.expr) -> bool:
        call = self.parents[node]
        return isinstance(call, ast.Call) and call.func is node and isinstance(self.parents[call], ast.withitem)

    def _path(self, node: ast.expr) -> str | None:
        """Return what a chain of names refers to, e.g. 'torch.nn.functional.softmax'; None unless it begins with an import."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.imports:
            return None
        return ".".join([self.imports[node.id], *reversed(parts)])

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
        self._check_trips(node, node.iter)

    def _comprehension(self, node: ast.comprehension) -> None:
        self._check_trips(node.iter, node.iter)

    def _check_trips(self, node: ast.AST, iterable: ast.expr) -> None:
        """Refuse a loop nest that runs too often, as far as the source shows it."""
        trips, ancestor = _trips(iterable), self.parents.get(node)
        while ancestor is not None:
            if isinstance(ancestor, ast.For):
                trips *= _trips(ancestor.iter)
            elif isinstance(ancestor, ast.ListComp | ast.GeneratorExp | ast.DictComp | ast.SetComp):
                trips *= math.prod(_trips(loop.iter) for loop in ancestor.generators if loop.iter is not iterable)
            ancestor = self.parents.get(ancestor)
        if trips > MAX_TRIPS:
            number = f"{trips}" if trips < 10**20 else "more than 10**20"  # Python limits the digits of an integer
            _refuse(node, f"the loop runs {number} times; {MAX_TRIPS} are allowed: use tensor operations instead")


def _raise(faults: list[_Fault]) -> NoReturn:
    """Raise one refusal for all faults, in the order of their lines."""
    faults.sort(key=lambda fault: fault.line or 0)
    reasons = [f"line {fault.line}: {fault.reason}" if fault.line else fault.reason for fault in faults]
    distinct = list(dict.fromkeys(reasons))
    if len(distinct) > _MAX_FAULTS:
        distinct[_MAX_FAULTS:] = [f"and {len(distinct) - _MAX_FAULTS} more faults"]
    raise Refused("static", "; ".join(distinct))


def _check_depth(tree: ast.AST) -> None:
    """Refuse a tree that is too deep for recursive functions over it."""
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        _raise(
            [
                _Fault(
                    level[0], "expressions or blocks are nested too deeply: assign parts to variables on separate lines"
                )
            ]
        )


def _is_text(node: ast.AST) -> bool:
    """Whether the statement is only a string, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_script_block(node: ast.AST) -> bool:
    """Whether a statement is `if __name__ == "__main__": ...`, without else. At the top level it is not executed."""
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) in _SCRIPT_TESTS


_SCRIPT_TESTS = ("__name__ == '__main__'", "'__main__' == __name__")


def _is_member(path: str) -> bool:
    """Whether a dotted path is a name of an allowed module, e.g. 'torch.float32'."""
    module, _, name = path.rpartition(".")
    return name in MODULES.get(module, ())


def _text(node: ast.expr) -> str:
    """Return an expression as text, shortened."""
    return ast.unparse(node)[:60]


def _unknown(full_name: str, name: str) -> str:
    """Explain why an attribute is not allowed; `full_name` is the attribute as the message shows it."""
    if name in HINTS:
        return f"{full_name} is not allowed: {HINTS[name]}"
    base = name.rstrip("_")
    if name.endswith("_") and base in METHODS:
        return f"{full_name} changes a tensor in place: write x = x.{base}(...)"
    return f"{full_name} is not on the list of allowed functions: use basic torch arithmetic"


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
