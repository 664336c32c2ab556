"""Learning curves as a picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from qllm_exp.results.collect import Record
from qllm_exp.results.statistics import bootstrap_mean
from qllm_exp.results.table import ORDER, methods

# Okabe & Ito (2008): distinguishable with colour-blindness. The same colour for a method everywhere.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
_LINES = ("-", "--", "-.", ":")


def style(method: str, among: Sequence[str]) -> tuple[str, str]:
    """Colour and line style of a method."""
    others = [m for m in among if m not in ORDER]
    index = ORDER.index(method) if method in ORDER else len(ORDER) + others.index(method)
    return _COLOURS[index % len(_COLOURS)], _LINES[index % len(_LINES)]


def curves(records: Sequence[Record], path: Path) -> None:
    """Evaluation return against environment steps, a panel per task: mean over seeds, 95 % bootstrap interval as a band."""
    tasks, names = sorted({r.task for r in records}), methods(records)
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.4 * columns, 3.3 * lines), squeeze=False, layout="constrained"
    )
    for axis, task in zip(axes.flat, tasks, strict=False):
        for name in names:
            alike = [r for r in records if (r.task, r.method) == (task, name)]
            if alike:
                _curve(axis, alike, name, style(name, names))
        axis.set_title(task, fontsize=10)
        axis.set_xlabel("environment steps")
        axis.set_ylabel("evaluation return")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _curve(axis: Axes, runs: Sequence[Record], name: str, look: tuple[str, str]) -> None:
    steps = sorted(set.intersection(*(set(r.steps) for r in runs)))  # what all the seeds have
    at = [dict(zip(r.steps, r.returns, strict=True)) for r in runs]
    values = np.array([[one[s] for s in steps] for one in at])
    colour, line = look
    axis.plot(steps, values.mean(0), line, color=colour, label=f"{name} (n={len(runs)})", linewidth=1.6)
    low, high = bootstrap_mean(values)
    axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
