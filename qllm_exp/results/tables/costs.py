"""Costs of the runs of a table: parameters, time, cost of language models, and environment steps to reach a return."""

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
Measure = Callable[[Runs], str]  # runs of a cell to the text of a column


def _parameters(runs: Runs) -> str:
    return _mean([run.parameters for run in runs if "parameters" in run.result], "{:.0f}")


def _mixer_parameters(runs: Runs) -> str:
    return _mean([run.result.get("parameters", {}).get("mixer", np.nan) for run in runs], "{:.0f}")


def _wall_time(runs: Runs) -> str:
    return _mean([run.wall_s for run in runs], "{:.1f}")


def _speed(runs: Runs) -> str:
    speeds = []
    for run in runs:
        steps = float(run.result.get("env_steps", np.nan))
        speeds.append(steps / run.wall_s if run.wall_s > 0 else np.nan)
    return _mean(speeds, "{:.0f}")


def _calls(runs: Runs) -> str:
    return _sum(runs, "calls", "{:.0f}")


def _usd(runs: Runs) -> str:
    return _sum(runs, "usd", "{:.4f}")


def _search_steps(runs: Runs) -> str:
    return _sum(runs, "env_steps", "{:,.0f}", 0)


def _search_hours(runs: Runs) -> str:
    return _sum(runs, "core_hours", "{:.2f}", 0)


def _steps(runs: Runs) -> str:
    return f"{sum(int(run.result.get('env_steps', run.steps[-1])) for run in runs):,}"


# Column heads and their measures, by the names of --columns.
MEASURES: dict[str, dict[str, Measure]] = {
    "parameters": {"trained parameters": _parameters, "of the mixer": _mixer_parameters},
    "time": {"wall time (s)": _wall_time, "env steps/s": _speed},
    "cost": {"LLM calls": _calls, "LLM cost (USD)": _usd},
    "search": {
        "env steps of searches": _search_steps,
        "core hours of searches": _search_hours,
        "env steps of runs": _steps,
    },
}
STEPS_TO = "steps-to="  # followed by a return
COLUMN_NAMES = (*MEASURES, f"{STEPS_TO}RETURN")  # allowed in --columns
_NOTES = {
    "parameters": "Parameters: means over the runs of a cell.",
    "time": "Wall time (training and evaluation) and environment steps per second: means over the runs of a cell.",
    "cost": "LLM calls and cost: sums over the functions of a cell, each counted once; '?' if no price is known.",
    "search": "Environment steps and core hours of the trainings of searches: sums over the functions of a cell, each counted "
    "once. Environment steps of runs: sums over the runs of a cell.",
    STEPS_TO: "Steps to a return: environment steps of the first evaluation at or above it, without interpolation; median over "
    "seeds [95 % bootstrap interval]. A run that never reaches it counts as later than all evaluated steps, shown as '>' and the "
    "last of these steps.",
}


def cost_sheet(cells: Pivot, sheet: Sheet, names: Sequence[str]) -> Sheet:
    """Return a table of costs, with one row for each cell of another table, in its order.

    Args:
        cells: cells of the other table.
        sheet: the other table.
        names: 'parameters', 'time', 'cost', 'search', or e.g. 'steps-to=0.9'.

    Raises:
        UserError: another name, or steps to a return in a table whose cells have several tasks.
    """
    measures: dict[str, Measure] = {}
    note_keys: dict[str, None] = {}
    for name in names:
        if name.startswith(STEPS_TO):
            measures[f"steps to {name.removeprefix(STEPS_TO)}"] = _steps_to(name)
            note_keys[STEPS_TO] = None
        else:
            measures |= MEASURES[choose("--columns", name, COLUMN_NAMES)]
            note_keys[name] = None
    has_columns = cells.columns != [()]
    rows: list[tuple[Sequence[str], Sequence[Cell | str | None]]] = []
    for row in cells.rows:
        for index, column in enumerate(cells.columns):
            cell = cells.cells.get((row, column))
            if cell is not None:
                labels = [str(label) for label in row]
                if has_columns:
                    labels.append(sheet.columns[index])
                rows.append((labels, [measure(cell.runs) for measure in measures.values()]))
    notes = [_NOTES[key] for key in note_keys]
    if STEPS_TO in note_keys:
        notes += _alignment_notes(cells, sheet)
    return Sheet(
        title="Cost of the runs",
        heading="figure" if has_columns else sheet.heading,
        labels=[*sheet.labels, sheet.heading] if has_columns else list(sheet.labels),
        columns=list(measures),
        rows=rows,
        notes=notes,
    )


def _steps_to(name: str) -> Measure:
    """Return the measure of 'steps-to=0.9'."""
    try:
        target = float(name.removeprefix(STEPS_TO))
    except ValueError:
        target = math.nan
    if not math.isfinite(target):
        raise UserError(f"--columns {name}: the return must be a number, e.g. {STEPS_TO}0.9.")

    def measure(runs: Runs) -> str:
        if len(keys.tasks(runs)) > 1:
            raise UserError(
                f"--columns {name}: returns of several tasks cannot be compared. Make the task a row: --rows env,task."
            )
        curves = align(runs)
        functions = sample_units.counts_functions(runs)
        unit_returns = sample_units.unit_means(curves.runs, curves.returns, functions)
        result = steps_to(np.array(curves.steps), unit_returns, target)
        last = curves.steps[-1]
        text = _step(result.median, last)
        if not math.isnan(result.low):
            text += f" [{_step(result.low, last)}, {_step(result.high, last)}]"
        unit = " functions" if functions else ""
        return f"{text} ({result.reached} of {result.runs}{unit} reached it)"

    return measure


def _alignment_notes(cells: Pivot, sheet: Sheet) -> list[str]:
    """Return the footnotes on evaluations that are left out because not all runs of a cell have them."""
    heads = dict(zip(cells.columns, sheet.columns, strict=False))
    notes = []
    for (row, column), cell in cells.cells.items():
        note = align(cell.runs).note
        if note:
            place = " ".join(map(str, (*row, heads[column] if column else ""))).strip()
            notes.append(f"{place}: {note}.")
    return notes


def _step(step: float, last: int) -> str:
    return f">{last}" if math.isinf(step) else f"{step:.0f}"


def _mean(values: Sequence[float], template: str) -> str:
    """Return the mean of the finite values; '-' if there is none."""
    finite = [float(value) for value in values if np.isfinite(value)]
    return template.format(np.mean(finite)) if finite else "-"


def _sum(runs: Runs, key: str, template: str, default: float | None = None) -> str:
    """Return the sum over functions, which several seeds share; '-' without functions, '?' if a value is unknown.

    Args:
        runs: the runs.
        key: of the cost of a function.
        template: format of the sum.
        default: value of a function without this key, e.g. 0 trainings without a search; None: it is unknown.
    """
    costs = {run.settings[FUNCTION]: run.cost for run in runs if FUNCTION in run.settings}
    if not costs:
        return "-"
    values = [cost.get(key, default) for cost in costs.values()]
    known = [value for value in values if isinstance(value, int | float)]
    return template.format(sum(known)) if len(known) == len(costs) else "?"
