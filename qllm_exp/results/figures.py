"""Figures per task: learning curves and bars of returns."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from qllm_exp.errors import choose
from qllm_exp.results import keys
from qllm_exp.results.align import align
from qllm_exp.results.cells import METRICS
from qllm_exp.results.looks import Look, few, legend, looks, notes_below, panels, save, tidy
from qllm_exp.results.reading import Record
from qllm_exp.results.statistics import Array, bootstrap_mean

BAND = "Mean over seeds; bands are pointwise 95 % bootstrap intervals over seeds."


def curves(records: Sequence[Record], path: Path, missing: Sequence[str] = (), task: str = "") -> None:
    """Evaluation return against environment steps, a panel per task: mean over seeds with its 95 % interval as a band.

    Args:
        missing: what is to be said below about runs that are not in it.
        task: the only one to draw, in which methods look as where all are drawn; '': all.

    Raises:
        UserError: where the runs of a method have hardly a step in common (`align`).
    """
    names = keys.methods(records)
    look = looks(names)
    records = [one for one in records if task in ("", one.task)]
    tasks = keys.tasks(records)
    counts = Counter((one.task, one.method) for one in records)
    most = max(tasks, key=lambda task: sum(of == task for of, _ in counts))
    figure, axes = panels(len(tasks), beside=[f"{name} (n=5)" for of, name in counts if of == most])
    notes = [BAND]
    for axis, task in zip(axes, tasks, strict=True):
        for name in names:
            alike = [one for one in records if (one.task, one.method) == (task, name)]
            if alike:
                found = align(alike)
                low, high = bootstrap_mean(found.returns)
                line(axis, found.steps, found.returns.mean(0), low, high, look[name], f"{name} (n={len(alike)})")
                notes += [f"{name} on {task}: {found.note}."] * bool(found.note)
        axis.set_title(task, fontsize=10)
        axis.set_ylabel("evaluation return")
        steps_axis(axis)
        legend(axis)
    notes_below(figure, [*notes, *few(counts.values()), *missing])
    save(figure, path)


def bars(records: Sequence[Record], path: Path, metric: str = "final", missing: Sequence[str] = ()) -> None:
    """Mean return of each method, a panel per task, with 95 % bootstrap intervals and a dot for each seed."""
    figure_of = METRICS[choose("--metric", metric, METRICS)]
    tasks, names = keys.tasks(records), keys.methods(records)
    look = looks(names)
    counts = Counter((one.task, one.method) for one in records)
    most = max(Counter(task for task, _ in counts).values())
    figure, axes = panels(len(tasks), width=max(2.6, 0.75 * most + 1.0))
    for axis, task in zip(axes, tasks, strict=True):
        here = [name for name in names if (task, name) in counts]
        for at, name in enumerate(here):
            scores = [float(one.result[figure_of]) for one in records if (one.task, one.method) == (task, name)]
            _bar(axis, at, np.array(scores), look[name])
        axis.set_xticks(range(len(here)), [f"{_wrapped(name)}\n(n={counts[task, name]})" for name in here], fontsize=8)
        axis.set_xlim(-0.6, len(here) - 0.4)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(task, fontsize=10)
        axis.set_ylabel(f"{metric} return")
        tidy(axis)
        axis.grid(visible=False, axis="x")
    notes_below(
        figure, ["Mean over seeds with 95 % bootstrap intervals; a dot is a seed.", *few(counts.values()), *missing]
    )
    save(figure, path)


def line(
    axis: Axes, steps: Sequence[float] | Array, middle: Array, low: Array, high: Array, look: Look, label: str
) -> None:
    """A line with its band, and markers far enough from each other to be told apart in grey."""
    every = max(1, len(steps) // 6)
    axis.plot(
        steps, middle, look.line, color=look.colour, label=label, linewidth=1.6, marker=look.marker, markersize=4,
        markevery=(every // 2, every),
    )  # fmt: skip
    axis.fill_between(steps, low, high, color=look.colour, alpha=0.2, linewidth=0)


def steps_axis(axis: Axes) -> None:
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axis)


def _bar(axis: Axes, at: int, scores: Array, look: Look) -> None:
    middle = scores.mean()
    axis.bar(at, middle, 0.7, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, alpha=0.85)
    low, high = bootstrap_mean(scores)
    if np.isfinite(low):
        axis.errorbar(at, middle, [[middle - low], [high - middle]], color="black", capsize=4, linewidth=1.2)
    beside = np.linspace(0.1, 0.3, len(scores))  # the interval stays free
    axis.plot(at + beside, scores, "o", color="white", markeredgecolor="black", markersize=3.2, markeredgewidth=0.7)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 12, break_on_hyphens=False))
