"""A run of another program, as its files describe it; and the mapping file, which states what those files leave open."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from qllm_exp.errors import UserError, nearest
from qllm_exp.runs.run_state import FINISHED
from qllm_exp.utils.files import nearest_path, read_regular_file, unique_keys
from qllm_exp.utils.text import excerpt

MAX_FILE_BYTES = 2**28  # of a file of another program
_MAX_STEP = 10**15  # far beyond any run, and exact as a float
_PROGRAM = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ExternalRun:
    """A run of another program.

    Attributes:
        path: its folder; or its file, followed by the names that identify the run within the file.
        program: name of the program, e.g. 'epymarl'.
        env: name of the environment, as the program writes it.
        task: name of the task, as the program writes it.
        method: name of the method, as the program writes it.
        seed: seed of the run.
        steps: environment steps of the evaluations, increasing.
        returns: mean episode return of each evaluation.
        unit: what the returns and the steps are, in words.
        settings: dotted key to value, of the program's configuration: two runs that differ in one are not the same method.
        win_rates: share of episodes won in each evaluation; () if not reported.
        absolute: the absolute metric; None if not reported.
        own_task: the task of this package that has the same rules, 'lbf/8x8-2p-2f'; '' if none is known.
        env_options: options of `own_task` whose values the program states: name to value.
        state: 'finished', or the state of a run without a complete result.
        reason: details about the state; may be empty.
    """

    path: Path
    program: str
    env: str
    task: str
    method: str
    seed: int
    steps: tuple[int, ...]
    returns: tuple[float, ...]
    unit: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    win_rates: tuple[float, ...] = ()
    absolute: float | None = None
    own_task: str = ""
    env_options: Mapping[str, Any] = field(default_factory=dict)
    state: str = FINISHED
    reason: str = ""


@dataclass(frozen=True)
class SourceMapping:
    """What a user states about the files of another program; read from a YAML file with these keys.

    Attributes:
        source: the file or folder with the results, relative to the YAML file.
        program: name of the program, which tables show behind '@'; '': as the files say.
        unit: what the returns are, in words; '': as the files say.
        metric: marl-eval JSON only: the metric that is the return; '': the usual names.
        columns: CSV only: a column of `COLUMNS` to its name in the file.
        tasks: 'ENV/TASK' or 'TASK' of the program to the 'ENV/TASK' of this package that has the same rules.
        env: options of those tasks that differ from the defaults, e.g. reward: mean.
        path: the YAML file; None if there is none.
    """

    source: str = ""
    program: str = ""
    unit: str = ""
    metric: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def own_task(self, run: ExternalRun) -> str:
        """Return the task of this package that the mapping declares for a run; '' if it declares none."""
        return self.tasks.get(f"{run.env}/{run.task}", self.tasks.get(run.task, ""))


def read_mapping(path: Path) -> SourceMapping:
    """Read a mapping file.

    Args:
        path: the YAML file.

    Raises:
        UserError: the file cannot be read, an unknown key, or a value of the wrong type.
    """
    try:
        content = yaml.safe_load(read_regular_file(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.{nearest_path(path)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date, such as 2026-13-01
        raise UserError(f"{path} is not valid YAML: {excerpt(error, 200)}.") from None
    allowed = {known.name: known.type for known in fields(SourceMapping) if known.name != "path"}
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of results. Write e.g. 'source: results.csv'.")
    for key, value in content.items():
        if key not in allowed:
            raise UserError(f"{path}: unknown key {key!r}.{nearest(str(key), allowed)} Allowed: {', '.join(allowed)}.")
        expected, noun = (str, "text") if allowed[key] is str else (dict, "a dictionary")
        if not isinstance(value, expected):
            raise UserError(f"{path}: {key} must be {noun}, not {excerpt(value)}.")
    mapping = SourceMapping(**content, path=path)
    if not mapping.source:
        raise UserError(f"{path} names no results. Add source: FILE, e.g. 'source: results.csv'.")
    if mapping.program and not _PROGRAM.fullmatch(mapping.program):
        raise UserError(
            f"{path}: program={mapping.program!r} is not a name. Use letters, digits, '.', '_' and '-', e.g. my-code."
        )
    return mapping


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of another program.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_regular_file(path, MAX_FILE_BYTES), object_pairs_hook=unique_keys)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.{nearest_path(path)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is truncated or not valid JSON: {excerpt(error, 200)}. Copy the file again.") from None


def check_curve(place: str, steps: Sequence[Any], values: Sequence[Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return environment steps and values of the evaluations of a run as numbers.

    Args:
        place: file and name of the metric, for messages.
        steps: environment steps.
        values: one for each step.

    Raises:
        UserError: there is no evaluation, the lengths differ, the steps do not increase, or a value is not a finite number.
    """
    if len(steps) != len(values):
        raise UserError(f"{place} has {len(values)} values at {len(steps)} steps. Both must have the same length.")
    if not steps:
        raise UserError(f"{place} has no evaluation. Leave the run out.")
    for step, value in zip(steps, values, strict=True):
        if not is_number(step) or int(step) != step or not 0 <= step <= _MAX_STEP:
            raise UserError(f"{place}: the step {excerpt(step)} is not a whole number from 0 to {_MAX_STEP:,}.")
        if not is_number(value):
            raise UserError(f"{place} is {excerpt(value)} at step {step}, not a finite number. Leave the run out.")
    for step, following in itertools.pairwise(steps):
        if step >= following:
            raise UserError(f"{place}: step {following} follows step {step}. Steps must increase.")
    return tuple(int(step) for step in steps), tuple(float(value) for value in values)


def check_win_rates(place: str, steps: Sequence[int], values: Sequence[Any]) -> tuple[float, ...]:
    """Return the win rates of the evaluations of a run as numbers.

    Args:
        place: file and name of the metric, for messages.
        steps: environment steps.
        values: one for each step.

    Raises:
        UserError: as `check_curve`; or a value is not a share.
    """
    _, win_rates = check_curve(place, steps, values)
    if not all(0 <= win_rate <= 1 for win_rate in win_rates):
        raise UserError(f"{place} is not between 0 and 1. Write shares, not percentages.")
    return win_rates


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number. JSON also has integers that are too large for a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
