"""What a function changed, compared with the function that it was to improve: one line, from the two tensor programs."""

from collections import Counter
from collections.abc import Sequence

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation.state_reading import MOVES
from qllm_exp.mixers.tfcaf import SMALLEST
from qllm_exp.utils.text import count, word_set

_MAX_LISTED = 4  # names or numbers of one kind
# Operations that compute nothing: they move values, or make the tensors that others fill.
_SILENT = MOVES | word_set(
    "_to_copy _unsafe_view arange empty empty_like full full_like lift_fresh lift_fresh_copy new_full new_ones new_zeros ones "
    "ones_like scalar_tensor to type_as zeros zeros_like"
)


def describe_difference(before: Program, after: Program, read_before: Sequence[str], read_after: Sequence[str]) -> str:
    """Return what differs between two functions, e.g. 'adds exp, softmax; drops clamp; reads food level; 0.5 is now 0.7'.

    Args:
        before: the program of the function to improve.
        after: the program of the new function.
        read_before: fields of the state that the first function depends on.
        read_after: fields of the state that the second function depends on.
    """
    old, new = _with_constants(before), _with_constants(after)
    if old.operations == new.operations:
        return "; ".join(filter(None, [_constants(old, new), *_fields(read_before, read_after)])) or "the same program"
    first, second = _computations(old), _computations(new)
    added, dropped = list(second - first), list(first - second)
    parts = [
        f"adds {_enumerate([name for name in added if name not in first])}",
        f"drops {_enumerate([name for name in dropped if name not in second])}",
        f"more {_enumerate([name for name in added if name in first])}",
        f"fewer {_enumerate([name for name in dropped if name in second])}",
        *_fields(read_before, read_after),
    ]
    return (
        "; ".join(part for part in parts if part and not part.endswith(" "))
        or "the same operations in another arrangement"
    )


def _fields(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return what is read of the state that was not read before, and the reverse; '' for nothing."""
    gained, lost = ([name for name in a if name not in b] for a, b in ((after, before), (before, after)))
    return [f"reads {_enumerate(gained)}" if gained else "", f"no longer reads {_enumerate(lost)}" if lost else ""]


def _constants(before: Program, after: Program) -> str:
    """Return the constants that differ between two programs of the same operations; '' for none."""
    changes = [
        f"{old:.4g} is now {new:.4g}"
        for number, tensor in after.constants.items()
        for old, new in zip(before.constants[number].flatten().tolist(), tensor.flatten().tolist(), strict=True)
        if old != new
    ]
    if len(changes) > _MAX_LISTED:
        return f"{', '.join(changes[:_MAX_LISTED])} and {count(len(changes) - _MAX_LISTED, 'other number')}"
    return ", ".join(changes)


def _with_constants(program: Program) -> Program:
    """Return a program with its numbers as constants; as it is, if it has too many."""
    try:
        return program.with_literals_as_constants(SMALLEST)
    except Refused:
        return program


def _computations(program: Program) -> Counter[str]:
    """Return how often each operation occurs, by its plain name, without those that compute nothing."""
    names = (str(name).partition(".")[0] for name, _, _ in program.operations)
    return Counter(name.strip("_") for name in names if name not in _SILENT)


def _enumerate(names: Sequence[str]) -> str:
    """Return the first names, and how many there are besides."""
    shown = ", ".join(names[:_MAX_LISTED])
    return f"{shown} and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else shown
