"""What runs took, beside what they score: parameters, time, what the language model cost, and steps until a return was reached."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from qllm_exp.errors import UserError, choose
from qllm_exp.results.records import keys
from qllm_exp.results.records.reader import FUNCTION, Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.align import align
from qllm_exp.results.statistics.profiles import steps_to
from qllm_exp.results.tables.pivot import Cell, Pivot
from qllm_exp.results.tables.sheet import Sheet

Runs = Sequence[Record]


def _parameters(runs: Runs) -> str:
    return _mean([one.parameters for one in runs if "parameters" in one.result], "{:.0f}")


def _mixer_parameters(runs: Runs) -> str:
    return _mean([one.result.get("parameters", {}).get("mixer", np.nan) for one in runs], "{:.0f}")


def _wall(runs: Runs) -> str:
    return _mean([one.wall_s for one in runs], "{:.1f}")


def _speed(runs: Runs) -> str:
    steps = [float(one.result.get("env_steps", np.nan)) for one in runs]
    return _mean(
        [count / one.wall_s if one.wall_s > 0 else np.nan for count, one in zip(steps, runs, strict=True)], "{:.0f}"
    )


def _calls(runs: Runs) -> str:
    return _sum(runs, "calls", "{:.0f}")


def _usd(runs: Runs) -> str:
    return _sum(runs, "usd", "{:.4f}")


FIGURES: dict[str, dict[str, Callable[[Runs], str]]] = {
    "parameters": {"trained parameters": _parameters, "of the mixer": _mixer_parameters},
    "time": {"wall time (s)": _wall, "env steps/s": _speed},
    "cost": {"LLM calls": _calls, "LLM cost (USD)": _usd},
}
STEPS_TO = "steps-to="  # and a return
NAMES = (*FIGURES, f"{STEPS_TO}RETURN")  # of --columns
NOTES = {
    "parameters": "Parameters: means over the runs of a cell.",
    "time": "Wall time (training and evaluation) and environment steps per second: means over the runs of a cell.",
    "cost": "LLM calls and cost: sums over the functions of a cell, each counted once; '?' where no price is known.",
    STEPS_TO: "Steps to a return: environment steps of the first evaluation at or above it, nothing interpolated; the median over "
    "seeds [95 % bootstrap interval]. A run that never reached it counts as later than every step that was evaluated: '>' and the "
    "last of them.",
}


def spent(found: Pivot, sheet: Sheet, names: Sequence[str]) -> Sheet:
    """A row for each cell of a table, in its order.

    Args:
        sheet: the table. names: of 'parameters', 'time', 'cost', 'steps-to=0.9'.

    Raises:
        UserError: for another name; for steps to a return in a table whose cells have several tasks.
    """
    figures: dict[str, Callable[[Runs], str]] = {}
    for name in names:
        if name.startswith(STEPS_TO):
            figures[f"steps to {name.removeprefix(STEPS_TO)}"] = _steps_to(name)
        else:
            figures |= FIGURES[choose("--columns", name, NAMES)]
    kinds = dict.fromkeys(STEPS_TO if name.startswith(STEPS_TO) else name for name in names)
    has_columns = found.columns != [()]
    rows: list[tuple[Sequence[str], Sequence[Cell | str | None]]] = []
    for row in found.rows:
        for at, column in enumerate(found.columns):
            cell = found.cells.get((row, column))
            if cell is not None:
                labels = [*map(str, row), *([sheet.columns[at]] if has_columns else [])]
                rows.append((labels, [figure(cell.runs) for figure in figures.values()]))
    return Sheet(
        title="What the runs took",
        heading=sheet.heading if not has_columns else "figure",
        labels=[*sheet.labels, *([sheet.heading] if has_columns else [])],
        columns=list(figures),
        rows=rows,
        notes=[*(NOTES[name] for name in kinds), *(_on_steps(found, sheet) if STEPS_TO in kinds else [])],
    )


def _steps_to(name: str) -> Callable[[Runs], str]:
    """The figure of 'steps-to=0.9'."""
    try:
        target = float(name.removeprefix(STEPS_TO))
    except ValueError:
        target = math.nan
    if not math.isfinite(target):
        raise UserError(f"--columns {name}: give the return as a number, e.g. {STEPS_TO}0.9.")

    def figure(runs: Runs) -> str:
        if len(keys.tasks(runs)) > 1:
            raise UserError(
                f"--columns {name}: returns of several tasks are not alike. Make task a row: --rows env,task."
            )
        curves, functions = align(runs), sample_units.of_functions(runs)
        found = steps_to(np.array(curves.steps), sample_units.per_unit(curves.runs, curves.returns, functions), target)
        middle, low, high = (_step(one, curves.steps[-1]) for one in (found.median, found.low, found.high))
        interval = f" [{low}, {high}]" * (not math.isnan(found.low))
        return f"{middle}{interval} ({found.reached} of {found.runs}{' functions' * functions} reached it)"

    return figure


def _on_steps(found: Pivot, sheet: Sheet) -> list[str]:
    """Which evaluations were left out, since not all runs of a cell have them."""
    heads = dict(zip(found.columns, sheet.columns, strict=False))
    notes = []
    for (row, column), cell in found.cells.items():
        note = align(cell.runs).note
        where = " ".join(map(str, (*row, heads[column] if column else "")))
        notes += [f"{where.strip()}: {note}."] * bool(note)
    return notes


def _step(step: float, last: int) -> str:
    return f">{last}" if math.isinf(step) else f"{step:.0f}"


def _mean(values: Sequence[float], shown: str) -> str:
    known = [float(one) for one in values if np.isfinite(one)]
    return shown.format(np.mean(known)) if known else "-"


def _sum(runs: Runs, what: str, shown: str) -> str:
    """Over functions, which several seeds share. '-' where the mixer has none."""
    functions = {one.settings[FUNCTION]: one.cost for one in runs if FUNCTION in one.settings}
    if not functions:
        return "-"
    known = [one for cost in functions.values() if isinstance(one := cost.get(what), int | float)]
    return shown.format(sum(known)) if len(known) == len(functions) else "?"
