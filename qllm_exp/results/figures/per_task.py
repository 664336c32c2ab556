"""Figures per task: learning curves and bars of returns. Each function returns its figure, and writes it where a path is given."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from qllm_exp.errors import choose
from qllm_exp.results.figures.style import Style, legends, looks, notes_below, panels, save, tidy
from qllm_exp.results.records import keys
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import Array, bootstrap_mean
from qllm_exp.results.statistics.align import align
from qllm_exp.results.tables.pivot import METRICS


def curves(records: Sequence[Record], path: Path | None = None, missing: Sequence[str] = (), only: str = "") -> Figure:
    """Evaluation return against environment steps, a panel per task: mean over seeds with its 95 % interval as a band.

    Args:
        missing: what is to be said below about runs that are not in it.
        only: the task to draw, in which methods look as where all are drawn; '': all.

    Raises:
        UserError: where the runs of a method have hardly a step in common (`align`).
    """
    look = looks(keys.methods(records))
    groups = by_task([one for one in records if only in ("", one.task)])
    entries = [
        [f"{name} ({sample_units.counted(runs)})" for name, runs in methods.items()] for methods in groups.values()
    ]
    figure, axes = panels(len(groups), entries=entries)
    every = [runs for one in groups.values() for runs in one.values()]
    over = sample_units.kind(every)
    notes = [f"Mean over {over}; bands are pointwise 95 % bootstrap intervals over {over}."]
    for axis, (task, methods) in zip(axes, groups.items(), strict=True):
        for name, alike in methods.items():
            found = align(alike)
            values = sample_units.per_unit(found.runs, found.returns, sample_units.of_functions(alike))
            low, high = bootstrap_mean(values)
            line(axis, found.steps, values.mean(0), low, high, look[name], f"{name} ({sample_units.counted(alike)})")
            notes += [f"{name} on {task}: {found.note}."] * bool(found.note)
        axis.set_title(task, fontsize=10)
        axis.set_ylabel("evaluation return")
        steps_axis(axis)
    legends(figure, axes)
    notes_below(figure, [*notes, *sample_units.notes(every), *missing])
    save(figure, path)
    return figure


def bars(
    records: Sequence[Record], path: Path | None = None, metric: str = "final", missing: Sequence[str] = ()
) -> Figure:
    """Mean return of each method, a panel per task, with 95 % bootstrap intervals and a dot for each unit (`units`)."""
    figure_of = METRICS[choose("--metric", metric, METRICS)]
    groups = by_task(records)
    look = looks(keys.methods(records))
    figure, axes = panels(len(groups), width=max(2.6, 0.75 * max(map(len, groups.values())) + 1.0))
    for axis, (task, methods) in zip(axes, groups.items(), strict=True):
        for at, (name, runs) in enumerate(methods.items()):
            (scores,) = sample_units.scores(runs, [task], figure_of)
            _bar(axis, at, scores, look[name])
        ticks = [f"{_wrapped(name)}\n{_wrapped(f'({sample_units.counted(runs)})')}" for name, runs in methods.items()]
        axis.set_xticks(range(len(methods)), ticks, fontsize=8)
        axis.set_xlim(-0.6, len(methods) - 0.4)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(task, fontsize=10)
        axis.set_ylabel(f"{metric} return")
        tidy(axis)
        axis.grid(visible=False, axis="x")
    every = [runs for one in groups.values() for runs in one.values()]
    what = f"Mean over {sample_units.kind(every)} with 95 % bootstrap intervals; a dot is one of them."
    notes_below(figure, [what, *sample_units.notes(every), *missing])
    save(figure, path)
    return figure


def by_task(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """Runs of each task and method, both in the order in which they are shown."""
    found: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for one in records:
        found[one.task][one.method].append(one)
    ordered = sorted(found, key=keys.sort_key)
    return {task: {name: found[task][name] for name in sorted(found[task], key=keys.sort_key)} for task in ordered}


def line(
    axis: Axes, steps: Sequence[float] | Array, middle: Array, low: Array, high: Array, look: Style, label: str
) -> None:
    """A line with its band, and markers far enough from each other to be told apart in grey."""
    every = max(1, len(steps) // 6)
    axis.plot(
        steps, middle, linestyle=look.line, color=look.colour, label=label, linewidth=1.6, marker=look.marker, markersize=4,
        markevery=(every // 2, every),
    )  # fmt: skip
    axis.fill_between(steps, low, high, color=look.colour, alpha=0.2, linewidth=0)


def steps_axis(axis: Axes) -> None:
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axis)


def _bar(axis: Axes, at: int, scores: Array, look: Style) -> None:
    middle = scores.mean()
    axis.bar(at, middle, 0.7, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, alpha=0.85)
    low, high = bootstrap_mean(scores)
    if np.isfinite(low):
        axis.errorbar(at, middle, [[middle - low], [high - middle]], color="black", capsize=4, linewidth=1.2)
    beside = np.linspace(0.1, 0.3, len(scores))  # the interval stays free
    axis.plot(at + beside, scores, "o", color="white", markeredgecolor="black", markersize=3.2, markeredgewidth=0.7)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 12, break_on_hyphens=False))
