"""Default values of an ablation's axes, which may differ from row to row.

A training preset has values of its own for an environment and a mixer (conf/train/preset).
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
CONFIGURED, MOST = "of the configuration", "what most runs have"


@dataclass(frozen=True)
class Default:
    """Values of the axes that other values are compared with, as `keys.value` writes them; and why these, in words."""

    values: Values
    why: str


def default(axes: Sequence[str], runs: Sequence[Record]) -> Default:
    """The default combination for runs that differ in these axes alone.

    It is what the configuration has for their environment, algorithm, mixer, language model and training preset. Where no run
    has that, it is the combination that most runs have; of several the first in order.
    """
    times = Counter(tuple(keys.value(one, axis) for axis in axes) for one in runs)
    told = _configured(axes, runs[0])
    here = next((values for values in times if values == told), None)
    if here is not None:
        return Default(here, CONFIGURED)
    most = max(times.values())
    first = min(
        (values for values, many in times.items() if many == most),
        key=lambda values: [keys.sort_key(one) for one in values],
    )
    if None in told:
        return Default(first, MOST)
    return Default(first, f"{MOST}; the configuration's, {_written(axes, told)}, was not run")


def notes(axes: Sequence[str], defaults: Mapping[Values, Default]) -> list[str]:
    """Footnotes: one where all rows have one default, else one for each with the rows that have it.

    Args:
        defaults: by the labels of rows, which are as long for all; of those that say it, the first column is named.
    """
    if len(set(defaults.values())) == 1:
        return [_note(axes, next(iter(defaults.values())), "")]
    names = {row: " ".join(map(str, row)) for row in defaults}
    for at in range(len(next(iter(defaults)))):
        if len({(row[at], one) for row, one in defaults.items()}) == len({row[at] for row in defaults}):
            names = {row: str(row[at]) for row in defaults}
            break
    having: dict[Default, dict[str, None]] = {}
    for row, one in defaults.items():
        having.setdefault(one, {})[names[row]] = None
    return [_note(axes, one, f" for {', '.join(rows)}") for one, rows in having.items()]


def _note(axes: Sequence[str], one: Default, where: str) -> str:
    return f"Default{where}: {_written(axes, one.values)} ({one.why})."


def _written(axes: Sequence[str], values: Values) -> str:
    return " ".join(f"{axis}={value}" for axis, value in zip(axes, values, strict=True))


def _configured(axes: Sequence[str], record: Record) -> Values:
    """What the configuration has for a record's choices, those that are axes aside; None for an axis that it does not have."""
    try:
        run = RunDirectory(record.path).read_config()
    except UserError:  # a choice of one's own that is not on this machine
        return (None,) * len(axes)
    names = {group: str(getattr(run, group).name) for group in _GROUPS if f"{group}.name" not in axes}
    own = {group for group, name in names.items() if name not in registry.choices(group)}
    if not any(axis.startswith("llm.") for axis in axes):
        names.pop("llm", None)  # some want to be told their model before they are a configuration
    composed = _composed(tuple(f"{group}={name}" for group, name in names.items() if group not in own))
    return tuple(None if axis.partition(".")[0] in own else _value(composed, axis) for axis in axes)


@cache
def _composed(overrides: tuple[str, ...]) -> schema.RunConfig | None:
    from qllm_exp.config.compose import compose_run  # Hydra takes its time

    try:
        return compose_run(overrides)
    except UserError:
        return None


def _value(node: Any, axis: str) -> Any:
    for part in axis.split("."):
        node = getattr(node, part, None)
    return keys.plain(node)
