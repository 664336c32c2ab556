"""Keys that rows, columns and axes are made of: their short names, their values in a run, their defaults, and orders."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qllm_exp.errors import UserError, nearest
from qllm_exp.results.records.reader import Record

METHOD = "method"  # stands for all settings at once: `Record.method`
TASK_KEYS = ("env.name", "env.task")
# Of methods, where they are side by side: mixers, then algorithms (of the field; not all of them are in this package).
ORDER = (
    *("tfcaf", "qmix", "vdn", "none", "qatten", "qplex", "qtran", "wqmix"),
    *("riit", "maser", "iql", "coma", "maddpg", "mappo", "ippo", "lica"),
)

_SHORT = {key.removesuffix(".name"): key for key in ("env.name", "algorithm.name", "mixer.name", "llm.name")}
_SHORT["task"] = "env.task"
_NUMBERS = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d+)?)")
_ABSENT = object()


def resolve(given: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Dotted keys for words as they were typed: 'task' is env.task, 'mixer' is mixer.name.

    Raises:
        UserError: for a key that is none of those that the runs have, with the nearest of them; for one given twice.
    """
    known = {METHOD, "seed", *TASK_KEYS, *(key for one in _distinct(records) for key in (*one.settings, *one.differs))}
    keys = [_SHORT.get(word, word) for word in given]
    for word, key in zip(given, keys, strict=True):
        if key not in known:
            close = nearest(word, known | set(_SHORT)) or nearest(word, {one.rpartition(".")[2] for one in known})
            raise UserError(
                f"{word!r} is no key of these runs.{close} A key is env, task, mixer, algorithm, seed, method, or any of "
                "a run's config.yaml with its dots, e.g. train.learning_rate."
            )
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice. Give each key once, as a row or as a column.")
    return keys


def short(key: str) -> str:
    """A key as it is written at the head of a row or column: 'env' for env.name."""
    return next((word for word, long in _SHORT.items() if long == key), key)


def has(record: Record, key: str) -> bool:
    return _value(record, key) is not _ABSENT


def value(record: Record, key: str) -> Any:
    """Value of a key; '-' where the run has none (a mixer without a function has no tfcaf.rounds)."""
    found = _value(record, key)
    return plain("-" if found is _ABSENT else found)


def plain(found: Any) -> Any:
    """A value as rows, columns and axes have it: a list or a mapping as text."""
    return repr(found) if isinstance(found, list | dict) else found


def _value(record: Record, key: str) -> Any:
    if key == METHOD:
        return record.method
    if key == "seed":
        return record.seed
    if key in TASK_KEYS:
        return record.task.split("/", 1)[TASK_KEYS.index(key)]
    return record.settings.get(key, record.differs.get(key, _ABSENT))


def differing(records: Iterable[Record]) -> list[str]:
    """Settings that have not the same value in all of the records."""
    alike = _distinct(records)
    every = sorted({key for one in alike for key in (*one.settings, *one.differs)})
    return [key for key in every if len({repr(value(one, key)) for one in alike}) > 1]


def _distinct(records: Iterable[Record]) -> list[Record]:
    """One record of each method: settings are shared between its runs."""
    return list({(id(one.settings), one.method): one for one in records}.values())


def sort_key(found: Any) -> tuple[Any, ...]:
    """Numbers by size, then words by name, numbers within them by size; methods, mixers and algorithms as in `ORDER`."""
    if isinstance(found, int | float) and not isinstance(found, bool):
        return (0, found)
    word = family(str(found))
    parts = [float(part) if at % 2 else part for at, part in enumerate(_NUMBERS.split(str(found)))]
    return (1, ORDER.index(word) if word in ORDER else len(ORDER), parts)


def family(method: str) -> str:
    """'qmix' of 'qmix hidden=32', 'riit' of 'riit+tfcaf': the mixer, or the algorithm where it is not Q-learning."""
    return method.split(" ")[0].partition("+")[0]


def label(names: Sequence[str], values: Sequence[Any], written: Mapping[str, str] | None = None) -> str:
    """'qmix' for a group's name, 'tfcaf.rounds=3' for a number. `written`: how keys are written; None: in full."""
    bare = (METHOD, *TASK_KEYS)
    return " ".join(
        str(value) if key in bare or key.endswith(".name") else f"{(written or {}).get(key, key)}={value}"
        for key, value in zip(names, values, strict=True)
    )


def methods(records: Iterable[Record]) -> list[str]:
    """Names of the methods, the known ones first."""
    return sorted({one.method for one in records}, key=sort_key)


def tasks(records: Iterable[Record]) -> list[str]:
    return sorted({one.task for one in records}, key=sort_key)
