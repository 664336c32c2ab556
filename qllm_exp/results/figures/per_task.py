"""Figures with a panel per task: learning curves, and bars of returns.

Each function returns its figure and writes it where a path is given.
"""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from qllm_exp.results.figures.style import Style, finish, legends, method_styles, panels, tidy
from qllm_exp.results.records import keys
from qllm_exp.results.records.metric_names import CURVE_METRICS, check_metric, metric_named
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import Array, bootstrap_mean
from qllm_exp.results.statistics.align import align
from qllm_exp.results.tables.pivot import notes_on_records


def with_curves(records: Sequence[Record], metric: str) -> list[Record]:
    """Return the records with the values of a metric in place of their returns.

    Args:
        records: finished runs.
        metric: 'return', or a metric that the environments report for each episode.

    Raises:
        UserError: the metric is unknown, or a task does not report it.
    """
    reported = check_metric(metric, records, CURVE_METRICS).episode_metric
    return [replace(record, returns=record.series(reported)) if reported else record for record in records]


def curves(
    records: Sequence[Record],
    path: Path | None = None,
    missing: Sequence[str] = (),
    only: str = "",
    metric: str = "return",
) -> Figure:
    """Plot evaluation returns against environment steps: the mean over seeds, with its 95 % interval as a band.

    Args:
        records: finished runs.
        path: file to write; None: no file.
        missing: notes on runs that are not in the figure, printed below it.
        only: the one task to draw, with the same styles as in the figure of all tasks; '': all tasks.
        metric: as in `with_curves`.

    Returns:
        The figure.

    Raises:
        UserError: the runs of a method share too few evaluation steps (`align`), the metric is unknown, or a task does not
            report it.
    """
    records = with_curves(records, metric)
    styles = method_styles(keys.methods(records))
    tasks = group_by_task([record for record in records if only in ("", record.task)])
    entries = [[sample_units.legend_label(*method) for method in methods.items()] for methods in tasks.values()]
    figure, axes = panels(len(tasks), entries=entries)
    groups = [runs for methods in tasks.values() for runs in methods.values()]
    units = sample_units.unit_name(groups)
    notes = [f"Mean over {units}; bands are pointwise 95 % bootstrap intervals over {units}."]
    for axis, (task, methods) in zip(axes, tasks.items(), strict=True):
        for name, runs in methods.items():
            aligned = align(runs)
            values = sample_units.unit_means(aligned.runs, aligned.returns, sample_units.counts_functions(runs))
            low, high = bootstrap_mean(values)
            label = sample_units.legend_label(name, runs)
            plot_line(axis, aligned.steps, values.mean(0), low, high, styles[name], label)
            if aligned.note:
                notes.append(f"{name} on {task}: {aligned.note}.")
        axis.set_title(task, fontsize=10)
        axis.set_ylabel(metric_named(metric).label)
        format_steps_axis(axis)
    legends(figure, axes)
    return finish(figure, [*notes, *notes_on_records(records), *sample_units.unit_notes(groups), *missing], path)


def bars(
    records: Sequence[Record], path: Path | None = None, metric: str = "final", missing: Sequence[str] = ()
) -> Figure:
    """Plot the mean return of each method as a bar, with its 95 % bootstrap interval and a dot per sample unit.

    Args:
        records: finished runs.
        path: file to write; None: no file.
        metric: as of `table`.
        missing: notes on runs that are not in the figure, printed below it.

    Returns:
        The figure.

    Raises:
        UserError: the metric is unknown.
    """
    result_key = check_metric(metric, records).key
    tasks = group_by_task(records)
    styles = method_styles(keys.methods(records))
    figure, axes = panels(len(tasks), width=max(2.6, 0.75 * max(map(len, tasks.values())) + 1.0))
    for axis, (task, methods) in zip(axes, tasks.items(), strict=True):
        for position, (name, runs) in enumerate(methods.items()):
            (scores,) = sample_units.scores(runs, [task], result_key)
            _plot_bar(axis, position, scores, styles[name])
        ticks = [f"{_wrapped(name)}\n{_wrapped(f'({sample_units.n_label(runs)})')}" for name, runs in methods.items()]
        axis.set_xticks(range(len(methods)), ticks, fontsize=8)
        axis.set_xlim(-0.6, len(methods) - 0.4)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(task, fontsize=10)
        axis.set_ylabel(metric_named(metric).label)
        tidy(axis)
        axis.grid(visible=False, axis="x")
    groups = [runs for methods in tasks.values() for runs in methods.values()]
    units = sample_units.unit_name(groups)
    note = f"Mean over {units} with 95 % bootstrap intervals; dots are individual {units}."
    return finish(figure, [note, *notes_on_records(records, metric), *sample_units.unit_notes(groups), *missing], path)


def group_by_task(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """Group runs by task and then by method, both in display order."""
    tasks: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        tasks[record.task][record.method].append(record)
    return {
        task: {name: tasks[task][name] for name in sorted(tasks[task], key=keys.sort_key)}
        for task in sorted(tasks, key=keys.sort_key)
    }


def plot_line(
    axis: Axes, x: Sequence[float] | Array, middle: Array, low: Array, high: Array, style: Style, label: str
) -> None:
    """Plot a line with its band, and about six markers, by which lines are told apart in grey.

    Args:
        axis: to draw on.
        x: [n] positions.
        middle: [n] the line.
        low: [n] lower end of the band.
        high: [n] upper end of the band.
        style: of the method.
        label: in the legend.
    """
    marker_step = max(1, len(x) // 6)
    axis.plot(
        x,
        middle,
        linestyle=style.line,
        color=style.colour,
        label=label,
        linewidth=1.6,
        marker=style.marker,
        markersize=4,
        markevery=(marker_step // 2, marker_step),
    )
    axis.fill_between(x, low, high, color=style.colour, alpha=0.2, linewidth=0)


def format_steps_axis(axis: Axes) -> None:
    """Label the x axis as environment steps, in thousands and millions, and `tidy` the axes."""
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # few and round: 1.25M, 1.5M would touch
    tidy(axis)


def _plot_bar(axis: Axes, position: int, scores: Array, style: Style) -> None:
    """Plot the mean of scores [units] as a bar, its interval, and the scores as dots."""
    middle = scores.mean()
    axis.bar(position, middle, 0.7, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0, alpha=0.85)
    low, high = bootstrap_mean(scores)
    if np.isfinite(low):
        axis.errorbar(position, middle, [[middle - low], [high - middle]], color="black", capsize=4, linewidth=1.2)
    offsets = np.linspace(0.1, 0.3, len(scores))  # to the right of the interval
    axis.plot(
        position + offsets, scores, "o", color="white", markeredgecolor="black", markersize=3.2, markeredgewidth=0.7
    )


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 12, break_on_hyphens=False))
