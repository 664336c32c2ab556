"""The comparison as text: a row per task, a column per method."""

from collections.abc import Sequence

import numpy as np

from qllm_exp.results.collect import Record
from qllm_exp.results.statistics import bootstrap_mean

ORDER = ("tfcaf", "qmix", "vdn", "none")


def methods(records: Sequence[Record]) -> list[str]:
    """Method names in a fixed order: the known ones first, then the others by name."""
    names = {r.method for r in records}

    def rank(name: str) -> tuple[int, str]:
        word = name.split()[0]
        return (ORDER.index(word) if word in ORDER else len(ORDER), name)

    return sorted(names, key=rank)


def markdown(records: Sequence[Record], figure: str) -> str:
    """A Markdown table of 'final_return' or 'absolute_return': mean [95 % interval] (n seeds)."""
    columns, tasks = methods(records), sorted({r.task for r in records})
    rows = [["env/task", *columns]]
    for task in tasks:
        cells = [task]
        for method in columns:
            cells.append(_cell([r.result[figure] for r in records if (r.task, r.method) == (task, method)]))
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    scores = np.array(values)
    low, high = bootstrap_mean(scores)
    interval = "" if len(values) < 2 else f" [{low:.3f}, {high:.3f}]"
    return f"{scores.mean():.3f}{interval} (n={len(values)})"
