"""CSV files of other programs: a row per evaluation."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError, nearest
from qllm_exp.results.records.external import MAX_FILE_BYTES, ExternalRun, SourceMapping, check_curve, check_win_rates
from qllm_exp.utils.files import nearest_path, read_regular_file
from qllm_exp.utils.text import excerpt, inert

COLUMNS = ("env", "task", "method", "seed", "env_step", "return_mean", "win_mean")  # as `load_curves` names them
_OPTIONAL = ("env", "win_mean")
_UNKNOWN_UNIT = "the file does not say what its returns and steps are"


def read(path: Path, mapping: SourceMapping) -> list[ExternalRun]:
    """Return the runs of a file; its rows may be in any order of runs, with increasing steps within a run.

    Args:
        path: the file, UTF-8, with a head line.
        mapping: names of its columns, what its returns are.

    Raises:
        UserError: the file cannot be read, lacks a column, or has a value that is not a number.
    """
    try:
        text = read_regular_file(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.{nearest_path(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = _column_names(path, reader.fieldnames or [], mapping)
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}.") from None
    program = mapping.program or "csv"
    grouped: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for number, row in rows:
        if None in row:
            raise UserError(
                f"{path}, line {number} has more cells than the first line has columns. Write numbers with a decimal point, and "
                "quote text that contains a comma."
            )
        cells = {column: _cell(f"{path}, line {number}", name, row.get(name)) for column, name in names.items()}
        seed = _whole_number(f"{path}, line {number}: {names['seed']}", cells["seed"])
        env = inert(cells.get("env", program))
        grouped.setdefault((env, inert(cells["task"]), inert(cells["method"]), seed), []).append(
            {
                column: _number(f"{path}, line {number}: {names[column]}", cells[column])
                for column in ("env_step", "return_mean", "win_mean")
                if column in names
            }
        )
    if not grouped:
        raise UserError(f"{path} has no row. Write a row per evaluation.")
    runs = []
    for (env, task, method, seed), evaluations in grouped.items():
        place = f"{path}: {method} on {env}/{task}, seed {seed}: {names['return_mean']}"
        steps, returns = check_curve(
            place, [row["env_step"] for row in evaluations], [row["return_mean"] for row in evaluations]
        )
        wins: tuple[float, ...] = ()
        if "win_mean" in names:
            place = f"{path}: {method} on {env}/{task}, seed {seed}: {names['win_mean']}"
            wins = check_win_rates(place, steps, [row["win_mean"] for row in evaluations])
        runs.append(
            ExternalRun(
                path=path.joinpath(*(part.replace("/", "-") for part in (env, task, method, f"seed_{seed}"))),
                program=program,
                env=env,
                task=task,
                method=method,
                seed=seed,
                steps=steps,
                returns=returns,
                unit=mapping.unit or _UNKNOWN_UNIT,
                win_rates=wins,
            )
        )
    return runs


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
