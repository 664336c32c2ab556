"""A table as such: labels, cells and footnotes, whatever it will be written as; and the footnotes that every table has."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qllm_exp.results.records.collect import Collection
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import ENOUGH
from qllm_exp.results.tables.pivot import Cell

SHOWN = 6  # names in a footnote, at most


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: what the figures are, a sentence without its full stop. heading: what the columns are values of.
        labels: heads of the label columns. columns: heads of the others.
        rows: labels and cells; a cell is text where it is no estimate, None where there is no run.
        metric, stat: for the reader of a CSV file.
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
        return [cell for _, cells in self.rows for cell in cells if isinstance(cell, Cell)]

    @property
    def marks_few(self) -> bool:
        """Whether cells with few seeds are marked one by one: where all have few, the footnote says so of all."""
        few = [cell.estimate.flag for cell in self.cells]
        return any(few) and not all(few)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""

        return markdown([self])


def notes_on(sheet: Sheet) -> list[str]:
    """What the cells themselves give reason to say."""
    cells = sheet.cells
    notes = []
    if any(cell.bold for cell in cells):
        how = "Welch's" if sheet.stat == "mean" else "bootstrap"
        notes.append(
            f"Bold: the best, and those not told apart from it ({how} 95 % interval of the difference to the best contains 0; "
            "several comparisons are not corrected for)."
        )
    functions = [cell for cell in cells if cell.functions]
    if functions:
        notes.append(sample_units.RULE)
    if any(cell.estimate.flag for cell in cells):
        unit = f"Fewer than {ENOUGH} {'functions or ' * bool(functions)}seeds"
        where = "† " + unit if sheet.marks_few else f"{unit} in every cell"
        notes.append(f"{where}: the interval is too narrow to conclude from.")
    diverged = [one for cell in cells if not np.isfinite(cell.estimate.value) for one in cell.runs]
    if diverged:
        notes.append(f"A score that is no finite number is among {_some([one.name for one in diverged])}.")
    return notes


def notes_on_missing(collection: Collection) -> list[str]:
    """What is not in the table: for each method and task how many runs stand how, and why those that failed did."""
    counts: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in collection.unfinished:
        counts[one.task, one.method][one.state].append("s?" if one.seed is None else f"s{one.seed}")
    notes = []
    for (task, method), states in sorted(counts.items()):
        said = ", ".join(f"{len(seeds)} {state} ({_some(sorted(seeds))})" for state, seeds in sorted(states.items()))
        notes.append(f"Missing: {f'{method} on {task}' if task else 'runs of unknown task'}: {said}.")
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


Row = list[str]


def markdown(sheets: Sequence[Sheet]) -> str:
    return "\n\n".join(_markdown(one) for one in sheets) + "\n"


def text(cell: Cell | str | None, mark_few: bool = False) -> str:
    """'0.983 [0.975, 0.991] (n=5)' without marks for bold."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    value, interval = figures(cell)
    return f"{value}{interval}{'†' * (mark_few and cell.estimate.flag)}"


def figures(cell: Cell) -> tuple[str, str]:
    """The value, which may be set in bold, and what follows it."""
    one = cell.estimate
    count = f"({sample_units.said(one.runs, cell.functions)})"
    value, low, high = (f"{round(number, 3) + 0.0:.3f}" for number in (one.value, one.low, one.high))  # no -0.000
    return value, f"{f' [{low}, {high}]' * bool(np.isfinite(one.low))} {count}"


def label_columns(sheet: Sheet) -> tuple[Row, list[Row]]:
    """Heads and rows of labels; env and task beside each other are one label, 'lbf/8x8-2p-2f'."""
    labels = list(sheet.labels)
    rows = [[str(value) for value in row] for row, _ in sheet.rows]
    if labels[:2] == ["env", "task"]:
        return ["env/task", *labels[2:]], [[f"{row[0]}/{row[1]}", *row[2:]] for row in rows]
    return labels, rows


def _markdown(sheet: Sheet) -> str:
    heads, labels = label_columns(sheet)
    lines = [[_plain(one) for one in (*heads, *sheet.columns)]]
    for row, (_, cells) in zip(labels, sheet.rows, strict=True):
        lines.append([_plain(one) for one in (*row, *(_in_stars(cell, sheet) for cell in cells))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    written = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = "".join(f"\n- {note}" for note in sheet.notes)
    return f"{sheet.title}:\n\n" + "\n".join(written) + ("\n" + notes) * bool(notes)


def _plain(given: str) -> str:
    return given.replace("|", "\\|").replace("\n", " ")


def _in_stars(cell: Cell | str | None, sheet: Sheet) -> str:
    whole = text(cell, sheet.marks_few)
    if isinstance(cell, Cell) and cell.bold:
        value, _ = figures(cell)
        return f"**{value}**{whole[len(value) :]}"
    return whole
