"""What runs took, beside what they score: parameters, time, and what the language model cost."""

from collections.abc import Callable, Sequence

import numpy as np

from qllm_exp.errors import choose
from qllm_exp.results.cells import Cell, Pivot
from qllm_exp.results.reading import FUNCTION, Record
from qllm_exp.results.sheet import Sheet

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
NOTES = {
    "parameters": "Parameters: means over the runs of a cell.",
    "time": "Wall time (training and evaluation) and environment steps per second: means over the runs of a cell.",
    "cost": "LLM calls and cost: sums over the functions of a cell, each counted once; '?' where no price is known.",
}


def spent(found: Pivot, sheet: Sheet, names: Sequence[str]) -> Sheet:
    """A row for each cell of a table, in its order.

    Args:
        sheet: the table. names: of 'parameters', 'time', 'cost'.

    Raises:
        UserError: for another name.
    """
    for name in names:
        choose("--columns", name, FIGURES)
    figures = {head: figure for name in names for head, figure in FIGURES[name].items()}
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
        notes=[NOTES[name] for name in names],
    )


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
