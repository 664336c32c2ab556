"""A table independent of its output format: labels, cells and footnotes; and the footnotes that every table has."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qllm_exp.results.records.collect import Collection, Record
from qllm_exp.results.records.reader import FUNCTION
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import MIN_RUNS
from qllm_exp.results.tables.pivot import Cell
from qllm_exp.runs.run_state import PRUNED
from qllm_exp.runs.versions import changes
from qllm_exp.utils.text import count, inert_lines

MAX_NAMES = 6  # names listed in a footnote


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: what the numbers are, as a sentence without its full stop.
        heading: keys whose values the columns are.
        labels: heads of the label columns.
        columns: heads of the other columns.
        rows: labels and cells of each row; a cell is text if it is not an estimate, None if there is no run.
        metric: 'final', 'absolute' or 'win_rate', for CSV.
        stat: 'mean', 'median' or 'iqm', for CSV.
        notes: footnotes.
    """

    title: str
    heading: str
    labels: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[Any], Sequence[Cell | str | None]]]
    metric: str = ""
    stat: str = ""
    notes: Sequence[str] = field(default_factory=list)

    @property
    def cells(self) -> list[Cell]:
        """All cells that are estimates."""
        return [cell for _, cells in self.rows for cell in cells if isinstance(cell, Cell)]

    @property
    def marks_small_n(self) -> bool:
        """Whether cells with few seeds are marked individually; if all cells have few, a footnote says so instead."""
        flags = [cell.estimate.too_few_runs for cell in self.cells]
        return any(flags) and not all(flags)

    def __str__(self) -> str:
        """Return the table as Markdown."""
        return markdown([self])

    _repr_markdown_ = __str__  # for notebooks


def notes_on_cells(sheet: Sheet) -> list[str]:
    """Return the footnotes that the cells of a table call for."""
    cells = sheet.cells
    notes = []
    if any(cell.bold for cell in cells):
        interval = "Welch's" if sheet.stat == "mean" else "bootstrap"
        notes.append(
            f"Bold: the best value and all values that cannot be distinguished from it ({interval} 95 % interval of the "
            "difference to the best contains 0; no correction for multiple comparisons)."
        )
    has_functions = any(cell.functions for cell in cells)
    if has_functions:
        notes.append(sample_units.FUNCTIONS_NOTE)
    if any(cell.estimate.too_few_runs for cell in cells):
        unit = "functions or seeds" if has_functions else "seeds"
        few = f"Fewer than {MIN_RUNS} {unit}"
        where = f"† {few}" if sheet.marks_small_n else f"{few} in every cell"
        notes.append(f"{where}: the interval is too narrow for conclusions.")
    diverged = [run.name for cell in cells if not np.isfinite(cell.estimate.value) for run in cell.runs]
    if diverged:
        notes.append(f"Not a finite number: at least one score among {_list_names(diverged)}.")
    return notes


def notes_on_missing(collection: Collection) -> list[str]:
    """Return the footnotes on runs that are not in the table: for each method and task, the number of runs in each state."""
    seeds_by_state: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in collection.unfinished:
        seed = "s?" if run.seed is None else f"s{run.seed}"
        seeds_by_state[run.task, run.method][run.state].append(seed)
    notes = []
    for (task, method), states in sorted(seeds_by_state.items()):
        runs = f"{method} on {task}" if task else "runs of unknown task"
        counts = ", ".join(
            f"{len(seeds)} {state} ({_list_names(sorted(seeds))})" for state, seeds in sorted(states.items())
        )
        notes.append(f"Missing: {runs}: {counts}.")
    return notes


def notes_on_resumed(records: Sequence[Record]) -> list[str]:
    """Return a footnote for each method and task with runs that were resumed with other software or hardware."""
    runs_by_change: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for env_step, differing in changes(record.versions):
            text = ", ".join(f"{name} {change}" for name, change in differing.items())
            runs_by_change[record.task, record.method][text].append(f"s{record.seed} from step {env_step:,}")
    notes = []
    for (task, method), runs in sorted(runs_by_change.items()):
        listed = _list_names([f"{text} ({_list_names(seeds)})" for text, seeds in runs.items()], "; ")
        notes.append(
            f"Resumed with other software or hardware, which may change later numbers: {method} on {task}: {listed}."
        )
    return notes


def notes_on_pruned(collection: Collection) -> list[str]:
    """Return the footnotes on runs that sweep.prune stopped, which have no final return."""
    pruned = [run for run in collection.unfinished if run.state == PRUNED]
    if not pruned:
        return []
    notes = [
        f"Pruned: {count(len(pruned), 'run')} stopped before the end, since other settings of the same method were better at equal "
        "environment steps (sweep.prune). Only settings that survived are shown, so this is no comparison of methods."
    ]
    settings = [(run.task, run.settings) for run in pruned if run.settings]
    partial = Counter(
        f"{record.method} on {record.task}"
        for record in collection.finished
        if (record.task, {key: value for key, value in record.settings.items() if key != FUNCTION}) in settings
    )
    if partial:
        listed = _list_names([f"{name} ({count(number, 'run')})" for name, number in sorted(partial.items())])
        notes.append(f"Pruned settings, of which some runs had finished before: {listed}.")
    return notes


def notes_on_runs(collection: Collection) -> list[str]:
    """Return the footnotes on runs that are missing, pruned, or resumed with other software or hardware, and on decisions."""
    missing = [*notes_on_missing(collection), *notes_on_pruned(collection)]
    return [*missing, *notes_on_resumed(collection.finished), *collection.decisions]


def _list_names(names: Sequence[str], separator: str = ", ") -> str:
    listed = separator.join(names[:MAX_NAMES])
    return listed if len(names) <= MAX_NAMES else f"{listed} and {len(names) - MAX_NAMES} more"


def markdown(sheets: Sequence[Sheet]) -> str:
    """Return tables as Markdown."""
    return inert_lines("\n\n".join(_markdown(sheet) for sheet in sheets) + "\n")


def cell_text(cell: Cell | str | None, mark_small_n: bool = False) -> str:
    """Return '0.983 [0.975, 0.991] (n=5)', without marks for bold.

    Args:
        cell: an estimate, text, or None if there is no run.
        mark_small_n: whether to mark an estimate from too few runs.
    """
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    value, interval = value_and_interval(cell)
    mark = "†" if mark_small_n and cell.estimate.too_few_runs else ""
    return f"{value}{interval}{mark}"


def value_and_interval(cell: Cell) -> tuple[str, str]:
    """Return the value, which may be set in bold, and the interval and n that follow it."""
    estimate = cell.estimate
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{round(number, 3) + 0.0:.3f}" for number in numbers)  # + 0.0: no -0.000
    interval = f" [{low}, {high}]" if np.isfinite(estimate.low) else ""
    return value, f"{interval} ({sample_units.format_n(estimate.runs, cell.functions)})"


def label_columns(sheet: Sheet) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the labels; adjacent env and task become one label, 'lbf/8x8-2p-2f'."""
    labels = list(sheet.labels)
    rows = [[str(value) for value in row] for row, _ in sheet.rows]
    if labels[:2] == ["env", "task"]:
        return ["env/task", *labels[2:]], [[f"{row[0]}/{row[1]}", *row[2:]] for row in rows]
    return labels, rows


def _markdown(sheet: Sheet) -> str:
    heads, labels = label_columns(sheet)
    lines = [[_escape(head) for head in (*heads, *sheet.columns)]]
    for row, (_, cells) in zip(labels, sheet.rows, strict=True):
        lines.append([_escape(text) for text in (*row, *(_markdown_cell(cell, sheet) for cell in cells))])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    table.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    result = f"{sheet.title}:\n\n" + "\n".join(table)
    if sheet.notes:
        result += "\n" + "".join(f"\n- {note}" for note in sheet.notes)
    return result


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_cell(cell: Cell | str | None, sheet: Sheet) -> str:
    text = cell_text(cell, sheet.marks_small_n)
    if isinstance(cell, Cell) and cell.bold:
        value, _ = value_and_interval(cell)
        return f"**{value}**{text[len(value) :]}"
    return text
