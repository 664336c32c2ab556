"""Default values of an ablation's axes, which may differ from row to row.

A training preset has its own values for an environment and a mixer (conf/train/preset).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qllm_exp.config import registry, schema
from qllm_exp.errors import UserError
from qllm_exp.results.records import keys
from qllm_exp.results.records.reader import Record
from qllm_exp.runs.run_directory import RunDirectory

Values = tuple[Any, ...]

_GROUPS = ("env", "algorithm", "mixer", "llm", "train")
CONFIGURED = "from the configuration"
MOST_COMMON = "the most common value"


@dataclass(frozen=True)
class Default:
    """Values of the axes to which other values are compared.

    Attributes:
        values: as `keys.value` returns them.
        reason: why these are the defaults.
    """

    values: Values
    reason: str


def default_values(axes: Sequence[str], runs: Sequence[Record]) -> Default:
    """Return the default combination for runs that differ only in these axes.

    It is what the configuration has for their environment, algorithm, mixer, language model and training preset. If no run has
    that, it is the combination of most runs; of several, the first in order.

    Args:
        axes: dotted keys.
        runs: runs that differ only in the axes.
    """
    counts = Counter(tuple(keys.value(run, axis) for axis in axes) for run in runs)
    configured = _configured_values(axes, runs[0])
    match = next((values for values in counts if values == configured), None)
    if match is not None:
        return Default(match, CONFIGURED)
    highest = max(counts.values())
    most_common = min(
        (values for values, number in counts.items() if number == highest),
        key=lambda values: [keys.sort_key(value) for value in values],
    )
    if None in configured:
        return Default(most_common, MOST_COMMON)
    return Default(most_common, f"{MOST_COMMON}; no run has the configured default, {_format(axes, configured)}")


def default_notes(axes: Sequence[str], defaults: Mapping[Values, Default]) -> list[str]:
    """Return the footnotes on defaults: one if all rows have the same default, else one per default with its rows.

    Args:
        axes: dotted keys.
        defaults: by the labels of rows, which all have the same length. Rows are named by the first label that determines the
            default, else by all labels.
    """
    if len(set(defaults.values())) == 1:
        return [_note(axes, next(iter(defaults.values())), "")]
    names = {row: " ".join(map(str, row)) for row in defaults}
    for index in range(len(next(iter(defaults)))):
        values = {row[index] for row in defaults}
        if len({(row[index], default) for row, default in defaults.items()}) == len(values):
            names = {row: str(row[index]) for row in defaults}
            break
    rows_of_default: dict[Default, dict[str, None]] = {}
    for row, default in defaults.items():
        rows_of_default.setdefault(default, {})[names[row]] = None
    return [_note(axes, default, f" for {', '.join(rows)}") for default, rows in rows_of_default.items()]


def _note(axes: Sequence[str], default: Default, rows: str) -> str:
    return f"Default{rows}: {_format(axes, default.values)} ({default.reason})."


def _format(axes: Sequence[str], values: Values) -> str:
    return " ".join(f"{axis}={value}" for axis, value in zip(axes, values, strict=True))


def _configured_values(axes: Sequence[str], record: Record) -> Values:
    """Return what the configuration has for a record's choices, except those that are axes; None for an axis that it lacks."""
    try:
        run = RunDirectory(record.path).read_config()
    except UserError:  # a user's own choice that is not on this machine
        return (None,) * len(axes)
    names = {group: str(getattr(run, group).name) for group in _GROUPS if f"{group}.name" not in axes}
    unshipped = {group for group, name in names.items() if name not in registry.choices(group)}
    if not any(axis.startswith("llm.") for axis in axes):
        names.pop("llm", None)  # some backends are not a complete configuration without a model
    composed = _compose(tuple(f"{group}={name}" for group, name in names.items() if group not in unshipped))
    return tuple(None if axis.partition(".")[0] in unshipped else _lookup(composed, axis) for axis in axes)


@cache
def _compose(overrides: tuple[str, ...]) -> schema.RunConfig | None:
    from qllm_exp.config.compose import compose_run  # Hydra is slow to import

    try:
        return compose_run(overrides)
    except UserError:
        return None


def _lookup(node: Any, axis: str) -> Any:
    for part in axis.split("."):
        node = getattr(node, part, None)
    return keys.plain(node)
