"""Figures over all tasks, on normalised scores: aggregated learning curves, performance profiles, probability of improvement.

Each function returns its figure and writes it where a path is given.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qllm_exp.errors import UserError, choose
from qllm_exp.results.figures.per_task import format_steps_axis, plot_line, with_curves
from qllm_exp.results.figures.style import finish, label_rows, legends, method_styles, panels, plot_estimate, tidy
from qllm_exp.results.records import keys
from qllm_exp.results.records.metric_names import check_metric, metric_named
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import Array, Estimate, estimate, iqm
from qllm_exp.results.statistics.align import align
from qllm_exp.results.statistics.comparison import probability_of_improvement
from qllm_exp.results.statistics.normalise import Normalisation, normalise
from qllm_exp.results.statistics.profiles import performance_profile
from qllm_exp.results.tables.pivot import notes_on_records
from qllm_exp.utils.text import count

THRESHOLDS = 101
MAX_PAIRS = 15  # of methods in one figure


@dataclass(frozen=True)
class SharedTasks:
    """The runs of several methods on the tasks that all of them have.

    Attributes:
        runs: of each method, in display order, on these tasks only.
        tasks: names of the tasks.
        normalised: bounds of each task.
        notes: which tasks are left out, and how returns are normalised.
    """

    runs: Mapping[str, list[Record]]
    tasks: tuple[str, ...]
    normalised: Normalisation
    notes: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in display order."""
        return list(self.runs)

    def labels(self) -> dict[str, str]:
        """Return the legend label of each method, 'qmix (n=5)'; n is the smallest number of units of a task."""
        return {name: sample_units.legend_label(name, runs) for name, runs in self.runs.items()}

    def scores(self, metric: str) -> dict[str, list[Array]]:
        """Return the normalised scores of each method: for each task [units].

        Args:
            metric: as of `table`.

        Raises:
            UserError: the metric is unknown.
        """
        result_key = check_metric(metric, [run for runs in self.runs.values() for run in runs]).key
        return {
            name: sample_units.scores(runs, self.tasks, result_key, self.normalised) for name, runs in self.runs.items()
        }

    def unit_notes(self) -> list[str]:
        """Return notes on what n counts, and on a small n."""
        return sample_units.unit_notes(list(self.runs.values()))


def shared_tasks(records: Sequence[Record], metric: str = "final") -> SharedTasks:
    """Select the runs on tasks that all methods have and that can be normalised.

    Args:
        records: finished runs.
        metric: what is scored, as for `normalise`.

    Raises:
        UserError: there is no such task.
    """
    normalised = normalise(records, metric)
    usable = [record for record in records if normalised.bounds_of(record) is not None]
    methods = keys.methods(records)
    tasks_by_method = {name: {record.task for record in usable if record.method == name} for name in methods}
    tasks = sorted(set.intersection(*tasks_by_method.values()))
    if not tasks:
        available = "; ".join(
            f"{name}: {', '.join(sorted(own)) or 'none'}" for name, own in list(tasks_by_method.items())[:8]
        )
        raise UserError(
            f"No task has runs of all {len(methods)} methods, and figures over tasks need one. Tasks that can be normalised: "
            f"{available}. Give the folders of fewer sweeps, or run what is missing."
        )
    runs = {name: [record for record in usable if record.method == name and record.task in tasks] for name in methods}
    excluded = [task for task in keys.tasks(records) if task not in tasks]
    notes = list(normalised.notes)
    if excluded:
        notes.insert(0, f"Left out, since not all methods have them with a scale: {', '.join(excluded)}.")
    return SharedTasks(runs, tuple(tasks), normalised, tuple(notes))


def aggregated_curves(
    records: Sequence[Record], path: Path | None = None, missing: Sequence[str] = (), metric: str = "return"
) -> Figure:
    """Plot the IQM of normalised evaluation returns over tasks and seeds against environment steps, with pointwise 95 % bands.

    Args:
        records: finished runs.
        path: file to write; None: no file.
        missing: notes on runs that are not in the figure, printed below it.
        metric: as in `with_curves`; win rates are not normalised.

    Returns:
        The figure.

    Raises:
        UserError: the methods share no task, the tasks of a method share fewer than two evaluation steps, the metric is unknown,
            or a task does not report it.
    """
    records = with_curves(records, metric)
    shared = shared_tasks(records, metric)
    styles, labels = method_styles(shared.methods), shared.labels()
    figure, (axis,) = panels(1, width=6.4, height=4.4, entries=[list(labels.values())])
    notes = [
        f"IQM over {count(len(shared.tasks), 'task')}; bands are pointwise 95 % stratified bootstrap intervals.",
        *shared.notes,
    ]
    for name in shared.methods:
        steps, returns_per_task, step_notes = _shared_steps(shared, name)
        notes += step_notes
        estimates = [estimate([returns[:, step] for returns in returns_per_task], iqm) for step in range(len(steps))]
        middle = np.array([point.value for point in estimates])
        low = np.array([point.low for point in estimates])
        high = np.array([point.high for point in estimates])
        plot_line(axis, steps, middle, low, high, styles[name], labels[name])
    axis.set_ylabel(f"{_scaled_label(metric)}, IQM")
    format_steps_axis(axis)
    legends(figure, [axis])
    return finish(figure, [*notes, *notes_on_records(records), *shared.unit_notes(), *missing], path)


def profiles(
    records: Sequence[Record], path: Path | None = None, metric: str = "final", missing: Sequence[str] = ()
) -> Figure:
    """Plot the share of runs above each normalised score (`performance_profile`), with pointwise 95 % bands.

    Args:
        records: finished runs.
        path: file to write; None: no file.
        metric: as of `table`.
        missing: notes on runs that are not in the figure, printed below it.

    Returns:
        The figure.

    Raises:
        UserError: the methods share no task, or the metric is unknown.
    """
    shared = shared_tasks(records, metric)
    scores = shared.scores(metric)
    all_scores = np.concatenate([values for per_task in scores.values() for values in per_task])
    thresholds = np.linspace(min(0.0, all_scores.min()), max(1.0, all_scores.max()), THRESHOLDS)
    styles, labels = method_styles(shared.methods), shared.labels()
    figure, (axis,) = panels(1, width=6.4, height=4.4, entries=[list(labels.values())])
    for name, per_task in scores.items():
        profile = performance_profile(per_task, thresholds)
        plot_line(axis, thresholds, profile.share, profile.low, profile.high, styles[name], labels[name])
    axis.set_xlabel(f"{_scaled_label(metric)} τ")
    axis.set_ylabel("share of runs with a score above τ")
    axis.set_ylim(-0.03, 1.03)
    tidy(axis)
    legends(figure, [axis])
    note = f"Over {count(len(shared.tasks), 'task')}; bands are pointwise 95 % stratified bootstrap intervals."
    notes = [note, *shared.notes, *notes_on_records(records, metric), *shared.unit_notes()]
    return finish(figure, [*notes, *missing], path)


def improvement(
    records: Sequence[Record],
    path: Path | None = None,
    metric: str = "final",
    missing: Sequence[str] = (),
    against: str = "",
) -> Figure:
    """Plot the probability that a run of X scores higher than a run of Y on a random task, as a bar per pair of methods.

    Args:
        records: finished runs.
        path: file to write; None: no file.
        metric: as of `table`.
        missing: notes on runs that are not in the figure, printed below it.
        against: the method that is Y in all pairs; '': every pair once, with the method that is earlier in order as X.

    Returns:
        The figure.

    Raises:
        UserError: there is only one method, a method or the metric is unknown, there are more than `MAX_PAIRS` pairs, or the
            methods share no task.
    """
    shared = shared_tasks(records, metric)
    if len(shared.methods) < 2:
        raise UserError(
            f"Only {shared.methods[0]} found; probability of improvement compares two methods. "
            "Pass the other method's folders as well."
        )
    pairs = list(itertools.combinations(shared.methods, 2))
    if against:
        choose("--against", against, shared.methods)
        pairs = [(name, against) for name in shared.methods if name != against]
    elif len(pairs) > MAX_PAIRS:
        raise UserError(
            f"{len(shared.methods)} methods are {len(pairs)} pairs; a figure shows at most {MAX_PAIRS}. "
            f"Compare all of them with one method, e.g. --against '{shared.methods[-1]}'. "
            f"Methods: {', '.join(shared.methods)}."
        )
    scores = shared.scores(metric)
    estimates = [probability_of_improvement(scores[x], scores[y]) for x, y in pairs]
    styles = method_styles(shared.methods)
    longest = max(len(name) for name in shared.methods)
    figure, (axis,) = panels(1, width=min(12.0, 5.2 + 0.14 * longest), height=1.3 + 0.42 * len(pairs))
    for row, ((x, _), probability) in enumerate(zip(pairs, estimates, strict=True)):
        style = styles[x]
        axis.barh(
            row,
            probability.value - 0.5,
            0.6,
            left=0.5,
            color=style.colour,
            hatch=style.hatch,
            edgecolor="white",
            linewidth=0,
            alpha=0.6,
        )
        plot_estimate(axis, row, probability, style.marker)
    label_rows(axis, [f"{x}  >  {y}" for x, y in pairs], neutral=0.5)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("P(X > Y)")
    note = (
        f"Over {count(len(shared.tasks), 'task')}, {metric_named(metric).label}; 95 % stratified bootstrap intervals, "
        f"n = {_run_range(estimates)} {sample_units.unit_name(list(shared.runs.values()))}. At 0.5 neither is better."
    )
    excluded = [line for line in shared.notes if line.startswith("Left out")]
    notes = [note, *excluded, *notes_on_records(records, metric), *shared.unit_notes()]
    return finish(figure, [*notes, *missing], path)


def _shared_steps(shared: SharedTasks, method: str) -> tuple[list[int], list[Array], list[str]]:
    """Align the runs of a method on the evaluation steps that all its tasks share.

    Returns:
        The steps; for each task, normalised returns [units, steps]; notes on evaluations that are left out.

    Raises:
        UserError: the tasks share fewer than two steps.
    """
    aligned_tasks, notes = [], []
    for task in shared.tasks:
        aligned = align([record for record in shared.runs[method] if record.task == task])
        if aligned.note:
            notes.append(f"{method} on {task}: {aligned.note}.")
        aligned_tasks.append(aligned)
    steps = sorted(set.intersection(*(set(aligned.steps) for aligned in aligned_tasks)))
    if len(steps) < 2:
        grids = "; ".join(
            f"{task}: {len(aligned.steps)} up to {aligned.steps[-1]:,}"
            for task, aligned in zip(shared.tasks, aligned_tasks, strict=True)
        )
        raise UserError(
            f"The tasks share {len(steps)} evaluation steps of {method} ({grids}), and curves over tasks need at least two. "
            "Give folders of runs with the same train.evaluation.every."
        )
    if any(len(aligned.steps) > len(steps) for aligned in aligned_tasks):
        notes.append(f"{method}: at the {len(steps)} steps that all tasks share.")
    returns_per_task = []
    functions = sample_units.counts_functions(shared.runs[method])
    for aligned in aligned_tasks:
        columns = [column for column, step in enumerate(aligned.steps) if step in set(steps)]
        rows = []
        for run, values in zip(aligned.runs, aligned.returns[:, columns], strict=True):
            bounds = shared.normalised.bounds_of(run)
            rows.append(values if bounds is None else bounds(values))
        returns_per_task.append(sample_units.unit_means(aligned.runs, np.array(rows), functions))
    return steps, returns_per_task, notes


def _run_range(estimates: Sequence[Estimate]) -> str:
    """'5', or '3 to 5' where the estimates are over different numbers of runs."""
    low, high = min(point.runs for point in estimates), max(point.runs for point in estimates)
    return str(low) if low == high else f"{low} to {high}"


def _scaled_label(metric: str) -> str:
    """Return the label of an axis with normalised scores."""
    named = metric_named(metric)
    return named.label if named.is_share else f"normalised {named.label}"
