"""How a function reads the state, beside what the task has in these columns: warnings for functions written for another state.

Sizes of states may be equal by accident, and a function may run on a state that it was not written for. Signs of it are:

1. a loop or a view that steps through the state with a stride at which its fields do not repeat;
2. a difference, a comparison or a distance of columns that cannot be compared: metres and metres per second, a place and a code;
3. a slice that takes some of the columns of a one-hot field;
4. a name or a comment of a line that reads columns, which says a quantity that the task has elsewhere;
5. a comment with columns that the state does not have, or with another size of the state.

They are signs, not proofs. A function that reads other columns of the same kind, e.g. the place of another entity, and names
nothing, is not noticed.

Which columns reach an operation is seen by running the program's own operations that only move values (select, view, stack, ...)
on a state whose values are the numbers of its columns. The source is read after it was accepted, so its size is bounded.
"""

import ast
import io
import itertools
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qllm_exp.credit.operations import find_operation
from qllm_exp.credit.program import Program
from qllm_exp.credit.program_json import BATCH_SIZE, FIRST_CONSTANT, decode, references
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.utils.text import word_set

_NONE = -1.0  # in place of the number of a column: not a column of the state
_MAX_SIGNS = 8

# Operations by what they do to columns, without their overloads.
MOVES = word_set("""
alias broadcast_to cat chunk clone concat concatenate contiguous detach diagonal expand expand_as flatten flip get hstack
index index_select mT moveaxis movedim narrow permute ravel repeat reshape reshape_as select size slice split split_with_sizes
squeeze stack swapaxes swapdims t tile transpose unbind unflatten unsqueeze view view_as vstack
""")
_KEEPS = word_set("abs absolute neg negative pow sqrt square to clamp clamp_min clamp_max clip relu type_as")
_COMPARES = word_set("sub subtract rsub lt le gt ge less less_equal greater greater_equal hypot")
_COMBINES = word_set("add mul")
_READS = word_set("index index_select narrow select slice")
_RESHAPES = word_set("view reshape unflatten")
_NORMS = word_set("linalg_norm linalg_vector_norm norm")
_POWERS = word_set("pow square")

_SYNONYMS = {
    "pos": "position",
    "vel": "velocity",
    "vx": "velocity",
    "vy": "velocity",
    "speed": "velocity",
    "dir": "direction",
}
_WORD = re.compile(r"[A-Za-z]+")
_RANGE = re.compile(r"(\bcolumns?\s+)?(?<![\w.])(\d+)(?:\s*(:|-|–|to)\s*(\d+))?(?![\w.]*\d)")
_SIZE = re.compile(
    r"state[^\n]{0,40}?(?:\[\s*(?:B|N|bs|batch\w*)\s*,\s*(\d+)\s*\]|\b(\d+)\s*(?:-dimensional|columns|dimensions|dims)\b)",
    re.I,
)
_WORDS_AFTER = 40  # characters after a range in a comment that are taken to describe it


class _Read(NamedTuple):
    """An operation that takes columns from the state.

    Attributes:
        line: its line in the source.
        columns: the columns in order.
        of_state: whether it takes them from the whole state.
    """

    line: int
    columns: tuple[int, ...]
    of_state: bool


def misread_columns(source: str, program: Program, lines: Sequence[int], layout: StateLayout) -> tuple[str, ...]:
    """Return a warning if a function seems to be written for another state, else nothing.

    Args:
        source: Python source of the function.
        program: its tensor program.
        lines: line of the source for each operation.
        layout: of the state that it is to read.

    Returns:
        At most one text of several lines, with what the function reads and what the task has there.
    """
    trace = _ColumnTrace(program, lines, layout)
    tree = ast.parse(source.removeprefix("\ufeff"))
    comments = dict(_comments(source))
    signs = [
        *_stride_signs(tree, trace),
        *trace.signs,
        *_name_signs(tree, comments, trace),
        *_comment_signs(tree, comments, layout),
    ]
    unique = list(dict.fromkeys(signs))
    if not unique:
        return ()
    more = [f"and {len(unique) - _MAX_SIGNS} more"] if len(unique) > _MAX_SIGNS else []
    advice = (
        f"it may be written for another state than this one of {layout.size} columns (is it one of env.state=features or "
        "observations?):"
    )
    return ("\n    ".join([advice, *unique[:_MAX_SIGNS], *more]),)


class _ColumnTrace:
    """Which columns of the state reach each operation of a program, as far as values are only moved.

    Args:
        program: the program.
        lines: line of the source for each operation.
        layout: of the state.

    Attributes:
        layout: of the state.
        reads: the operations that take columns from the state, in order.
        signs: views and operations that do not fit the layout.
    """

    def __init__(self, program: Program, lines: Sequence[int], layout: StateLayout) -> None:
        self.layout, self.reads, self.signs = layout, list[_Read](), list[str]()
        numbers = torch.arange(layout.size, dtype=torch.float32)[None]
        q = torch.zeros(1, program.n_agents)
        with torch.no_grad():
            self._values = program.all_values(q, torch.zeros_like(numbers))
        self._columns: list[Any] = [torch.full_like(q, _NONE), numbers, self._values[BATCH_SIZE]]
        self._columns += [
            torch.full(value.shape, _NONE) for value in self._values[FIRST_CONSTANT : program.first_operation]
        ]
        self._fixed = {BATCH_SIZE, *range(FIRST_CONSTANT, program.first_operation)}
        self._squared: set[int] = set()
        for number, (operation, line) in enumerate(
            zip(program.operations, lines, strict=True), program.first_operation
        ):
            name, arguments, keywords = operation
            self._columns.append(self._follow(number, name, arguments, keywords, line))

    def _follow(self, number: int, name: str, arguments: list[Any], keywords: dict[str, Any], line: int) -> Any:
        """Return the columns in the result of an operation, and note what does not fit.

        Args:
            number: number of the result.
            name: of the operation.
            arguments: JSON of its arguments.
            keywords: JSON of its keyword arguments.
            line: in the source.
        """
        base, value = name.partition(".")[0], self._values[number]
        used = [reference for argument in arguments for reference in references(argument)]
        inputs = [self._columns[reference] for reference in used]
        if self._fixed.issuperset(used):
            self._fixed.add(number)
        elif base in MOVES and self._moves_alike(base, arguments):
            try:
                result = self._move(name, arguments, keywords)
            except (
                RuntimeError,
                IndexError,
                TypeError,
                ValueError,
            ):  # an accepted function must not fail for a warning
                return _unknown(value)
            self._note_read(base, inputs[0], result, line)
            if used[0] in self._squared:
                self._squared.add(number)
            return result
        elif base in _KEEPS and _shape(inputs[0]) == _shape(value):
            if base in _POWERS or used[0] in self._squared:
                self._squared.add(number)
            return inputs[0]
        elif (
            base in _COMPARES | _COMBINES and len(used) == 2 and all(isinstance(columns, Tensor) for columns in inputs)
        ):
            return self._follow_two(number, base, used, inputs, line)
        elif base in _NORMS or (base == "sum" and used[0] in self._squared):
            self._note_sum(inputs[0], arguments[1:3] if base == "sum" else arguments[2:3], line)
        return _unknown(value)

    def _follow_two(self, number: int, base: str, used: list[int], inputs: list[Any], line: int) -> Tensor:
        """Return the columns in the result of an operation on two tensors: those of the first that has any."""
        shape = (inputs[0] + inputs[1]).shape
        first, second = (columns.expand(shape) for columns in inputs)
        value = self._values[number]
        is_square = base == "mul" and torch.equal(first, second)
        is_distance = base == "add" and self._squared.issuperset(used)
        if is_distance or base in _COMPARES:
            self._note_pairs(first, second, "adds the squares of" if is_distance else "compares", line)
        if (
            not (is_square or is_distance or base in _COMPARES)
            or first.shape != _shape(value)
            or value.dtype == torch.bool
        ):
            return torch.full(value.shape, _NONE)
        if is_square or is_distance:
            self._squared.add(number)
        return torch.where(first >= 0, first, second)

    def _note_sum(self, columns: Any, dims: list[Any], line: int) -> None:
        """Note columns whose squares are added along a dimension and cannot be compared."""
        dim = dims[0] if dims else None
        dim = dim[0] if isinstance(dim, list) and len(dim) == 1 else dim
        if isinstance(columns, Tensor) and isinstance(dim, int) and columns.shape[dim] > 1:
            first, others = columns.narrow(dim, 0, 1), columns.narrow(dim, 1, columns.shape[dim] - 1)
            self._note_pairs(first.expand_as(others), others, "adds the squares of", line)

    def _moves_alike(self, base: str, arguments: list[Any]) -> bool:
        """Whether an operation that moves values does it in the same way for every state."""
        return not base.startswith("index") or self._fixed.issuperset(references(arguments[1:]))

    def _move(self, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Execute an operation that moves values on the numbers of columns; indices are those of the program."""
        operation = find_operation(name)
        assert operation is not None
        indices = name.startswith("index")

        def value(argument: Any, position: int) -> Any:
            if isinstance(argument, dict) and "ref" in argument:
                return (self._values if indices and position else self._columns)[argument["ref"]]
            if isinstance(argument, list):
                return [value(element, position) for element in argument]
            return decode(argument)

        moved = [value(argument, position) for position, argument in enumerate(arguments)]
        return operation.call(*moved, **{key: decode(item) for key, item in keywords.items()})

    def _note_read(self, base: str, source: Any, result: Any, line: int) -> None:
        """Note an operation that takes columns from the state, or cuts them into rows."""
        if (
            not (isinstance(source, Tensor) and isinstance(result, Tensor))
            or not result.numel()
            or bool((result < 0).any())
        ):
            return
        columns = tuple(int(column) for column in result.flatten().tolist())
        if base in _READS and result.numel() < source.numel():
            self.reads.append(_Read(line, columns, source.numel() == self.layout.size))
            self._note_cut(columns, line)
        if base not in _RESHAPES or result.dim() < 2:
            return
        if result.shape[-1] > 2 and 1 < result.shape[-2] == result.numel() // result.shape[-1]:
            rows = result.view(result.shape[-2:]).int().tolist()
            wrong = next((row for row in rows[1:] if not self.repeats(rows[0], row)), None)
            if wrong is not None:
                self.signs.append(
                    f"line {line} cuts columns {rows[0][0]} to {rows[-1][-1]} into rows of {len(rows[0])}, but the task has "
                    f"{self.names(rows[0])} in the first, and {self.names(wrong)} in another"
                )

    def _note_cut(self, columns: tuple[int, ...], line: int) -> None:
        """Note a slice that takes some, but more than one, of the columns of a one-hot field."""
        for field in {self.field(column).start: self.field(column) for column in columns}.values():
            taken = [column for column in columns if field.start <= column < field.stop]
            if field.one_hot and 1 < len(set(taken)) < len(field.components):
                self.signs.append(
                    f"line {line} reads columns {min(taken)} to {max(taken)}; the task has {field.label} in columns "
                    f"{field.start} to {field.stop - 1}, of which exactly one is 1 ({', '.join(field.components)})"
                )

    def _note_pairs(self, first: Tensor, second: Tensor, verb: str, line: int) -> None:
        """Note the first two columns that meet in an operation and cannot be compared."""
        pairs = torch.stack([first.flatten(), second.flatten()], 1)
        for a, b in pairs[(pairs >= 0).all(1)].int().tolist():
            if not _are_comparable(self.field(a), self.field(b)):
                self.signs.append(
                    f"line {line} {verb} columns {a} and {b}; the task has {self.name(a, True)} and {self.name(b, True)} there"
                )
                return

    def field(self, column: int) -> StateField:
        """Return the field that has a column."""
        return next(field for field in self.layout if field.start <= column < field.stop)

    def name(self, column: int, unit: bool = False) -> str:
        """Return the name of a column, e.g. 'agent 0 position x', with its unit if wanted."""
        field = self.field(column)
        name = f"{field.label} {field.components[column - field.start]}"
        kind = "code" if _is_code(field) else field.unit
        return f"{name} ({kind})" if unit and kind else name

    def names(self, columns: Sequence[int]) -> str:
        """Return the names of up to four columns, e.g. 'agent 0 position x, agent 0 position y, ...'."""
        names = [self.name(column) for column in columns[:4]]
        return ", ".join([*names, "..."] if len(columns) > 4 else names)

    def repeats(self, columns: Sequence[int], others: Sequence[int]) -> bool:
        """Whether two lists of columns hold the same quantities, of whatever entities."""
        return all(self._quantity(a) == self._quantity(b) for a, b in zip(columns, others, strict=True))

    def _quantity(self, column: int) -> tuple[str, str, str]:
        """What a column says, without the numbers of entities."""
        field = self.field(column)
        component = field.components[column - field.start]
        return re.sub(r"\d+", "", field.name), re.sub(r"\d+", "", component), field.unit


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None


def _unknown(value: Any) -> Any:
    """Return a result with no known columns in the shape of `value`; sizes as they are."""
    if isinstance(value, Tensor):
        return torch.full(value.shape, _NONE)
    if isinstance(value, list | tuple):
        return [_unknown(part) for part in value]
    return value


def _is_code(field: StateField) -> bool:
    """Whether the values of a field are codes: yes and no, or the index of an action."""
    return field.one_hot or "index" in field.unit or (field.high - field.low + 1 == len(field.special) > 1)


def _are_comparable(a: StateField, b: StateField) -> bool:
    """Whether differences of two fields have a meaning. Shares and levels, which have no unit, count as the same."""
    units = ["" if field.unit.startswith("share") else field.unit for field in (a, b)]
    return units[0] == units[1] and _is_code(a) == _is_code(b)


# Signs in the source


def _stride_signs(tree: ast.Module, trace: _ColumnTrace) -> Iterator[str]:
    """Yield loops that step through the state with a stride at which its fields do not repeat."""
    by_line: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for read in trace.reads:
        if read.of_state and read.line:
            by_line[read.line].append(read.columns)
    for line in sorted(by_line.keys() & _loop_lines(tree)):
        reads = by_line[line]
        kinds = len({id(node) for node in ast.walk(tree) if isinstance(node, ast.Subscript) and node.lineno == line})
        for first in range(kinds if len(reads) % max(kinds, 1) == 0 else 0):
            rounds = list(dict.fromkeys(reads[first::kinds]))
            strides = {b[0] - a[0] for a, b in itertools.pairwise(rounds)}
            if len(strides) != 1 or len({len(columns) for columns in rounds}) != 1 or min(strides) < 2:
                continue
            wrong = next((columns for columns in rounds[1:] if not trace.repeats(rounds[0], columns)), None)
            if wrong is not None:
                starts = ", ".join(str(columns[0]) for columns in rounds[:4])
                yield (
                    f"line {line} reads columns {starts}{', ...' if len(rounds) > 4 else ''} in steps of {min(strides)} as if "
                    f"they were alike; the task has {trace.names(rounds[0])} and {trace.names(wrong)} there"
                )


def _loop_lines(tree: ast.Module) -> set[int]:
    """Return the lines inside of loops and comprehensions."""
    loops = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp)
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, loops)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def _name_signs(tree: ast.Module, comments: dict[int, str], trace: _ColumnTrace) -> Iterator[str]:
    """Yield lines that give columns the name of a quantity that the task has elsewhere."""
    read_at: dict[int, set[int]] = defaultdict(set)
    for read in trace.reads:
        read_at[read.line] = set(read.columns)  # the last read of a line is what it returns
    vocabulary = {word for field in trace.layout for word in _field_words(field)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            continue
        columns = read_at.get(node.lineno, set())
        if not columns or node.end_lineno != node.lineno or not _is_read(node.value):
            continue
        name = node.targets[0].id
        fields = {trace.field(column).start: trace.field(column) for column in columns}.values()
        claimed = _words(f"{name} {comments.get(node.lineno, '')}") & vocabulary
        if claimed and not claimed & {word for field in fields for word in _field_words(field)}:
            shown = f"columns {min(columns)} to {max(columns)}" if len(columns) > 1 else f"column {min(columns)}"
            yield f"line {node.lineno} reads {shown} as {name!r}; the task has {trace.names(sorted(columns))} there"


def _is_read(node: ast.expr) -> bool:
    """Whether an expression only takes parts of a tensor."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and _is_read(node.func.value)
    return isinstance(node, ast.Subscript) and (isinstance(node.value, ast.Name) or _is_read(node.value))


def _comment_signs(tree: ast.Module, comments: dict[int, str], layout: StateLayout) -> Iterator[str]:
    """Yield comments and docstrings that name columns or a size that the state does not have."""
    vocabulary = {word for field in layout for word in _field_words(field)}
    for line, text in [*comments.items(), *_docstring_lines(tree)]:
        for match in _SIZE.finditer(text):
            size = int(next(filter(None, match.groups())))
            if size != layout.size and not re.match(r"\s*(each|per)\b", text[match.end() :]):
                yield f"line {line} says that the state has {size} columns"
        for match in _RANGE.finditer(text):
            says_column, first, separator, last = match.groups()
            if not says_column and separator != ":":
                continue
            start = int(first)
            stop = int(last) + (separator != ":") if last else start + 1
            if stop > layout.size:
                yield f"line {line} speaks of columns up to {stop - 1}: {text.strip()[:80]!r}"
                continue
            words = _words(text[match.end() : match.end() + _WORDS_AFTER].partition(",")[0]) & vocabulary
            fields = [field for field in layout if field.start < stop and start < field.stop]
            if words and not words & {word for field in fields for word in _field_words(field)}:
                labels = ", ".join(field.label for field in fields[:3])
                yield f"line {line} says {text.strip()[:80]!r}; the task has {labels} in columns {start} to {stop - 1}"


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a source with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source.removeprefix("\ufeff")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _docstring_lines(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the lines of all docstrings and other texts that stand alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for offset, text in enumerate(node.value.value.splitlines()):
                yield node.lineno + offset, text


def _field_words(field: StateField) -> set[str]:
    return _words(f"{field.label} {' '.join(field.components)}")


def _words(text: str) -> set[str]:
    """Return the words of a text or of names in it, in the singular and without abbreviations."""
    words = (word.lower() for word in _WORD.findall(text))
    singular = (re.sub(r"(?<=..)ies$", "y", word).removesuffix("s") if len(word) > 3 else word for word in words)
    return {_SYNONYMS.get(word, word) for word in singular}
