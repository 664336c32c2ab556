"""The house: every import runs from a higher floor to a lower one, no files import each other in a circle, names in strings exist.

python tests/unit/test_architecture.py [CHECKOUT]     # prints what is wrong there, for any tree of this layout
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Rooms from the ground up: a package or a module of qllm_exp. What stands on one line may not import each other either.
FLOORS = (
    ("errors",),
    ("utils",),
    ("config",),
    ("runs", "networks"),
    ("envs",),
    ("credit",),
    ("llm", "mixers"),
    ("algorithms", "generation"),
    ("training", "tracking"),
    ("experiment",),
    ("explain",),
    ("results",),
    ("sweep",),
    ("search",),
    ("tfcaf", "check", "cluster"),
    ("api",),
    ("__init__",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name to file, for every module of the package below `root`."""
    names = {}
    for path in sorted((root / "qllm_exp").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def room(module: str) -> str:
    """'envs' of 'qllm_exp.envs.lbf'."""
    return (*module.split("."), "__init__")[1]


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules of the package that a file imports anywhere, inside functions too, with the line. Not what types alone need."""
    for node in _executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name, node.lineno) for name in submodules if name in known)
            if node.module in known and any(name not in known for name in submodules):
                yield node.module, node.lineno


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from _executed(node)


def upward(known: dict[str, Path]) -> list[str]:
    """Imports from a lower floor to a higher one, or to another room of the same floor."""
    wrong = []
    for module, path in known.items():
        for target, line in imports(path, known):
            here, there = room(module), room(target)
            if here != there and FLOOR[there] >= FLOOR[here]:
                wrong.append(f"{module}:{line} imports {target}")
    return wrong


def circles(known: dict[str, Path]) -> list[list[str]]:
    """Groups of files that import each other (strongly connected components, Tarjan 1972)."""
    graph = {module: {target for target, _ in imports(path, known)} - {module} for module, path in known.items()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return groups


def unknown_names(known: dict[str, Path]) -> list[str]:
    """Strings in the code that look like a module of the package and are none."""
    wrong = []
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            named = (
                isinstance(text, str) and text.startswith("qllm_exp.") and all(map(str.isidentifier, text.split(".")))
            )
            if named and text not in known:
                wrong.append(f"{module}:{node.lineno} names {text}")
    return wrong


def test_every_room_has_its_floor() -> None:
    assert {room(module) for module in modules(ROOT)} <= set(FLOOR)


def test_imports_run_downward() -> None:
    assert upward(modules(ROOT)) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(modules(ROOT)) == []


def test_modules_named_in_strings_exist() -> None:
    assert unknown_names(modules(ROOT)) == []


if __name__ == "__main__":
    tree = modules(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    strangers = {room(module) for module in tree} - set(FLOOR)
    print(f"{len(tree)} modules; rooms without a floor: {sorted(strangers) or 'none'}")
    FLOOR.update(dict.fromkeys(strangers, len(FLOORS)))
    for line in upward(tree):
        print("upward:", line)
    for group in circles(tree):
        print(f"circle of {len(group)} files:", ", ".join(group))
    for line in unknown_names(tree):
        print("string:", line)
