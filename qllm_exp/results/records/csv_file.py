"""CSV files of other programs: a row per evaluation."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qllm_exp.errors import UserError, nearest
from qllm_exp.results.records.external import MAX_FILE_BYTES, ExternalRun, SourceMapping, check_curve, check_win_rates
from qllm_exp.utils.files import nearest_path, read_regular_file
from qllm_exp.utils.text import excerpt, inert

COLUMNS = ("env", "task", "method", "seed", "env_step", "return_mean", "win_mean")  # as `load_curves` names them
_OPTIONAL = ("env", "win_mean")
_NUMBERS = ("env_step", "return_mean", "win_mean")
_UNKNOWN_UNIT = "the file does not say what its returns and steps are"

_Evaluation = dict[str, float]  # by column, among _NUMBERS


class _Run(NamedTuple):
    """What identifies a run in a file, as the file writes it."""

    env: str
    task: str
    method: str
    seed: int


def read(path: Path, mapping: SourceMapping) -> list[ExternalRun]:
    """Return the runs of a file; its rows may be in any order of runs, with increasing steps within a run.

    Args:
        path: the file, UTF-8, with a head line.
        mapping: names of its columns, what its returns are.

    Raises:
        UserError: the file cannot be read, lacks a column, or has a value that is not a number.
    """
    names, rows = _read_rows(path, mapping)
    program = mapping.program or "csv"
    grouped: dict[_Run, list[_Evaluation]] = {}
    for number, row in rows:
        place = f"{path}, line {number}"
        if any(cell.strip() for cell in row.get(None, ())):
            raise UserError(
                f"{place} has more cells than the first line has columns. Write numbers with a decimal point, and quote text "
                "that contains a comma."
            )
        cells = {column: _cell(place, name, row.get(name)) for column, name in names.items()}
        seed = _whole_number(f"{place}: {names['seed']}", cells["seed"])
        run = _Run(inert(cells.get("env", program)), inert(cells["task"]), inert(cells["method"]), seed)
        evaluation = {
            column: _number(f"{place}: {names[column]}", cells[column]) for column in _NUMBERS if column in names
        }
        grouped.setdefault(run, []).append(evaluation)
    if not grouped:
        raise UserError(f"{path} has no row. Write a row per evaluation.")
    return [_make_run(path, names, run, evaluations, mapping) for run, evaluations in grouped.items()]


def _read_rows(path: Path, mapping: SourceMapping) -> tuple[dict[str, str], list[tuple[int, dict[Any, Any]]]]:
    """Return the name in the file of each column that is read; and each row, with the number of its last line."""
    try:
        text = read_regular_file(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.{nearest_path(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = _column_names(path, reader.fieldnames or [], mapping)
        return names, [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}.") from None


def _make_run(
    path: Path, names: Mapping[str, str], run: _Run, evaluations: Sequence[_Evaluation], mapping: SourceMapping
) -> ExternalRun:
    """Return a run, after its curves were checked.

    Args:
        path: the file.
        names: name in the file of each column that is read.
        run: what identifies the run.
        evaluations: its evaluations, in the order of the file.
        mapping: what the user states about the file.
    """
    place = f"{path}: {run.method} on {run.env}/{run.task}, seed {run.seed}"
    steps, returns, wins = ([row[column] for row in evaluations if column in row] for column in _NUMBERS)
    numbers, means = check_curve(f"{place}: {names['return_mean']}", steps, returns)
    folders = (run.env, run.task, run.method, f"seed_{run.seed}")
    return ExternalRun(
        path=path.joinpath(*(part.replace("/", "-") for part in folders)),
        program=mapping.program or "csv",
        env=run.env,
        task=run.task,
        method=run.method,
        seed=run.seed,
        steps=numbers,
        returns=means,
        unit=mapping.unit or _UNKNOWN_UNIT,
        win_rates=check_win_rates(f"{place}: {names['win_mean']}", numbers, wins) if wins else (),
    )


def _column_names(path: Path, available: Sequence[str], mapping: SourceMapping) -> dict[str, str]:
    """Return the name in the file of each column that is read.

    Raises:
        UserError: the mapping has an unknown column, or the file lacks a column or has two of one name.
    """
    for column in mapping.columns:
        if column not in COLUMNS:
            raise UserError(
                f"{mapping.path}: columns has an unknown key {column!r}.{nearest(str(column), COLUMNS)} "
                f"Allowed: {', '.join(COLUMNS)}."
            )
    names: dict[str, str] = {}
    for column in COLUMNS:
        name = str(mapping.columns.get(column, column))
        if available.count(name) > 1:
            raise UserError(f"{path} has {available.count(name)} columns {name!r}. Rename or remove all but one.")
        if name in available:
            names[column] = name
        elif column in mapping.columns or column not in _OPTIONAL:
            columns = ", ".join(map(inert, available)) or "none"
            raise UserError(
                f"{path} has no column {name!r}. Columns of the file: {columns}. Name the right one in a mapping file: "
                f"columns: {{{column}: NAME}}."
            )
    return names


def _cell(place: str, name: str, value: str | None) -> str:
    if not value or not value.strip():
        raise UserError(f"{place} has no {inert(name)}.")
    return value.strip()


def _whole_number(place: str, text: str) -> int:
    """Return a whole number, which may be written as 3.0. A seed of 64 bits keeps all of its digits."""
    try:
        return int(text)
    except ValueError:
        number = _number(place, text)
    if not number.is_integer():
        raise UserError(f"{place}={excerpt(text)} is not a whole number.")
    return int(number)


def _number(place: str, text: str) -> float:
    """Return a number, which may be NaN; `check_curve` refuses that."""
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{place}={excerpt(text)} is not a number.") from None
    return number
