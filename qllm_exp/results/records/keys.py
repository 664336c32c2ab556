"""Keys of rows, columns and axes: their short names, their values in a run, and the order of values."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qllm_exp.errors import UserError, nearest
from qllm_exp.results.records.reader import Record

METHOD = "method"  # stands for all settings at once: `Record.method`
TASK_KEYS = ("env.name", "env.task")
# Display order of methods: mixers, then algorithms (of the field; this package does not have all of them).
ORDER = (
    "tfcaf",
    "qmix",
    "vdn",
    "none",
    "qatten",
    "qplex",
    "qtran",
    "wqmix",
    "qfix",
    "riit",
    "maser",
    "iql",
    "pqn",
    "coma",
    "maddpg",
    "mappo",
    "ippo",
    "lica",
)

_KEY_BY_SHORT_NAME = {
    "env": "env.name",
    "algorithm": "algorithm.name",
    "mixer": "mixer.name",
    "llm": "llm.name",
    "task": "env.task",
}
_NUMBERS = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d+)?)")
_MISSING = object()


def resolve(names: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Return the dotted keys of names as typed: 'task' is env.task, 'mixer' is mixer.name.

    Raises:
        UserError: a key that none of the runs has (the message names the closest one), or a key that is given twice.
    """
    known = {METHOD, "seed", *TASK_KEYS}
    for record in _one_per_method(records):
        known.update(record.settings, record.differs)
    keys = [_KEY_BY_SHORT_NAME.get(name, name) for name in names]
    for name, key in zip(names, keys, strict=True):
        if key not in known:
            last_parts = {known_key.rpartition(".")[2] for known_key in known}
            hint = nearest(name, known | set(_KEY_BY_SHORT_NAME)) or nearest(name, last_parts)
            raise UserError(
                f"{name!r} is not a key of these runs.{hint} Allowed: env, task, mixer, algorithm, seed, method, or any "
                "dotted key of config.yaml, e.g. train.learning_rate."
            )
    repeated = [key for key, times in Counter(keys).items() if times > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is given twice. Give each key once, as a row or as a column.")
    return keys


def short_name(key: str) -> str:
    """Return a key as it is written at the head of a row or column: 'env' for env.name."""
    return next((name for name, long_key in _KEY_BY_SHORT_NAME.items() if long_key == key), key)


def has(record: Record, key: str) -> bool:
    """Return whether a run has a key."""
    return _lookup(record, key) is not _MISSING


def value(record: Record, key: str) -> Any:
    """Return the value of a key; '-' if the run does not have it (tfcaf.rounds of a mixer without a function)."""
    raw = _lookup(record, key)
    return plain("-" if raw is _MISSING else raw)


def plain(raw: Any) -> Any:
    """Return a value as rows, columns and axes show it: a list or a mapping as text."""
    return repr(raw) if isinstance(raw, list | dict) else raw


def _lookup(record: Record, key: str) -> Any:
    if key == METHOD:
        return record.method
    if key == "seed":
        return record.seed
    if key in TASK_KEYS:
        return record.task.split("/", 1)[TASK_KEYS.index(key)]
    return record.settings.get(key, record.differs.get(key, _MISSING))


def differing_keys(records: Iterable[Record]) -> list[str]:
    """Return the settings that do not have the same value in all records, sorted."""
    distinct = _one_per_method(records)
    all_keys = sorted({key for record in distinct for key in (*record.settings, *record.differs)})
    return [key for key in all_keys if len({repr(value(record, key)) for record in distinct}) > 1]


def _one_per_method(records: Iterable[Record]) -> list[Record]:
    """Return one record of each method: its runs share their settings."""
    return list({(id(record.settings), record.method): record for record in records}.values())


def sort_key(raw: Any) -> tuple[Any, ...]:
    """Return a sort key: numbers by size, then text by name with the numbers in it by size; methods as in `ORDER`."""
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return (0, raw)
    text = str(raw)
    name = family(text)
    parts = [float(part) if index % 2 else part for index, part in enumerate(_NUMBERS.split(text))]
    return (1, ORDER.index(name) if name in ORDER else len(ORDER), parts)


def family(method: str) -> str:
    """Return 'qmix' for 'qmix hidden=32' and 'qmix@epymarl', 'riit' for 'riit+tfcaf': mixer, or algorithm if not Q-learning."""
    return method.split(" ")[0].partition("+")[0].partition("@")[0]


def label(keys: Sequence[str], values: Sequence[Any], short_names: Mapping[str, str] | None = None) -> str:
    """Return the label of a combination of values: 'qmix' for a mixer's name, 'tfcaf.rounds=3' for a setting.

    Args:
        keys: dotted keys.
        values: the value of each key.
        short_names: how to write each key; None: in full.
    """
    bare_keys = (METHOD, *TASK_KEYS)
    parts = []
    for key, key_value in zip(keys, values, strict=True):
        if key in bare_keys or key.endswith(".name"):
            parts.append(str(key_value))
        else:
            parts.append(f"{(short_names or {}).get(key, key)}={key_value}")
    return " ".join(parts)


def methods(records: Iterable[Record]) -> list[str]:
    """Return the names of the methods, known ones first."""
    return sorted({record.method for record in records}, key=sort_key)


def tasks(records: Iterable[Record]) -> list[str]:
    """Return the tasks, sorted."""
    return sorted({record.task for record in records}, key=sort_key)
