"""Figures over all tasks, on normalised scores: aggregated learning curves, performance profiles, probability of improvement.

Each function returns its figure, and writes it where a path is given.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qllm_exp.errors import UserError, choose
from qllm_exp.results.figures.per_task import line, steps_axis
from qllm_exp.results.figures.style import legends, looks, notes_below, panels, save, tidy
from qllm_exp.results.records import keys
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.aggregate import Array, Estimate, estimate, iqm
from qllm_exp.results.statistics.align import align
from qllm_exp.results.statistics.comparison import probability_of_improvement
from qllm_exp.results.statistics.normalise import Normalised, normalise
from qllm_exp.results.statistics.profiles import performance_profile
from qllm_exp.results.tables.pivot import METRICS
from qllm_exp.utils.text import count

THRESHOLDS = 101
MOST_PAIRS = 15  # of methods in one figure


@dataclass(frozen=True)
class Common:
    """Methods side by side on the tasks that all of them have. `notes`: which these are, and how they were normalised.

    Attributes:
        runs: of each method, in the order of the methods, on these tasks alone.
    """

    runs: Mapping[str, list[Record]]
    tasks: tuple[str, ...]
    normalised: Normalised
    notes: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        return list(self.runs)

    def labels(self) -> dict[str, str]:
        """'qmix (n=5)' for each method: the fewest units of a task."""
        return {name: f"{name} ({sample_units.counted(runs)})" for name, runs in self.runs.items()}

    def scores(self, metric: str) -> dict[str, list[Array]]:
        """Normalised scores of each method; UserError for an unknown metric."""
        figure = METRICS[choose("--metric", metric, METRICS)]
        return {
            name: sample_units.scores(runs, self.tasks, figure, self.normalised) for name, runs in self.runs.items()
        }

    def on_units(self) -> list[str]:
        return sample_units.notes(list(self.runs.values()))


def common(records: Sequence[Record]) -> Common:
    """UserError where no task that can be normalised has runs of all methods."""
    normalised = normalise(records)
    usable = [one for one in records if normalised.of(one) is not None]
    methods = keys.methods(records)
    by_method = {name: {one.task for one in usable if one.method == name} for name in methods}
    tasks = sorted(set.intersection(*by_method.values()))
    if not tasks:
        has = "; ".join(f"{name}: {', '.join(sorted(on)) or 'none'}" for name, on in list(by_method.items())[:8])
        raise UserError(
            f"No task has runs of all {len(methods)} methods, and figures over tasks need that. Tasks that can be normalised: "
            f"{has}. Give the folders of fewer sweeps, or run what is missing."
        )
    kept = {name: [one for one in usable if one.method == name and one.task in tasks] for name in methods}
    left = [task for task in keys.tasks(records) if task not in tasks]
    notes = list(normalised.notes)
    if left:
        notes.insert(0, f"Left out, since not all methods have them with a scale: {', '.join(left)}.")
    return Common(kept, tuple(tasks), normalised, tuple(notes))


def aggregated_curves(records: Sequence[Record], path: Path | None = None, missing: Sequence[str] = ()) -> Figure:
    """IQM of normalised evaluation returns over tasks and seeds against environment steps, with pointwise 95 % bands.

    Raises:
        UserError: where methods share no task, or the curves fewer than two steps.
    """
    shared = common(records)
    look, labels = looks(shared.methods), shared.labels()
    figure, (axis,) = panels(1, width=6.4, height=4.4, entries=[list(labels.values())])
    notes = [
        f"IQM over {count(len(shared.tasks), 'task')}; bands are pointwise 95 % stratified bootstrap intervals.",
        *shared.notes,
    ]
    for name in shared.methods:
        steps, per_task = _shared_steps(shared, name, notes)
        found = [estimate([one[:, at] for one in per_task], iqm) for at in range(len(steps))]
        middle, low, high = (np.array([getattr(one, end) for one in found]) for end in ("value", "low", "high"))
        line(axis, steps, middle, low, high, look[name], labels[name])
    axis.set_ylabel("normalised evaluation return, IQM")
    steps_axis(axis)
    legends(figure, [axis])
    notes_below(figure, [*notes, *shared.on_units(), *missing])
    save(figure, path)
    return figure


def profiles(
    records: Sequence[Record], path: Path | None = None, metric: str = "final", missing: Sequence[str] = ()
) -> Figure:
    """Share of runs above each normalised score (`performance_profile`), with pointwise 95 % bands."""
    shared = common(records)
    per_method = shared.scores(metric)
    every = np.concatenate([one for found in per_method.values() for one in found])
    thresholds = np.linspace(min(0.0, every.min()), max(1.0, every.max()), THRESHOLDS)
    look, labels = looks(shared.methods), shared.labels()
    figure, (axis,) = panels(1, width=6.4, height=4.4, entries=[list(labels.values())])
    for name, found in per_method.items():
        one = performance_profile(found, thresholds)
        line(axis, thresholds, one.share, one.low, one.high, look[name], labels[name])
    axis.set_xlabel(f"normalised {metric} return τ")
    axis.set_ylabel("share of runs with a score above τ")
    axis.set_ylim(-0.03, 1.03)
    tidy(axis)
    legends(figure, [axis])
    what = f"Over {count(len(shared.tasks), 'task')}; bands are pointwise 95 % stratified bootstrap intervals."
    notes_below(figure, [what, *shared.notes, *shared.on_units(), *missing])
    save(figure, path)
    return figure


def improvement(
    records: Sequence[Record],
    path: Path | None = None,
    metric: str = "final",
    missing: Sequence[str] = (),
    against: str = "",
) -> Figure:
    """Probability that a run of X scores higher than one of Y on a task drawn at random, a bar for each pair of methods.

    Args:
        against: the one method that is Y in all pairs; '': each of two methods once, the first in order being X.

    Raises:
        UserError: for an unknown method; for more pairs than can be read; as the other figures.
    """
    shared = common(records)
    if len(shared.methods) < 2:
        raise UserError(
            f"One method only, {shared.methods[0]}: an improvement is one over another. Give its folders too."
        )
    pairs = list(itertools.combinations(shared.methods, 2))
    if against:
        choose("--against", against, shared.methods)
        pairs = [(name, against) for name in shared.methods if name != against]
    elif len(pairs) > MOST_PAIRS:
        raise UserError(
            f"{len(shared.methods)} methods are {len(pairs)} pairs. Name the one that the others are compared with, e.g. "
            f"--against '{shared.methods[-1]}'. There are: {', '.join(shared.methods)}."
        )
    per_method = shared.scores(metric)
    found = [probability_of_improvement(per_method[x], per_method[y]) for x, y in pairs]
    look = looks(shared.methods)
    longest = max(len(name) for name in shared.methods)
    figure, (axis,) = panels(1, width=min(12.0, 5.2 + 0.14 * longest), height=1.3 + 0.42 * len(pairs))
    for at, ((x, _), one) in enumerate(zip(pairs, found, strict=True)):
        colour, _, marker, hatch = look[x]
        axis.barh(
            at, one.value - 0.5, 0.6, left=0.5, color=colour, hatch=hatch, edgecolor="white", linewidth=0, alpha=0.6
        )
        reach = [[one.value - one.low], [one.high - one.value]] if np.isfinite(one.low) else None
        axis.errorbar(one.value, at, xerr=reach, color="black", capsize=4, marker=marker, markersize=5, linewidth=1.2)
    axis.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(pairs)), [f"{x}  >  {y}" for x, y in pairs], fontsize=8)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(len(pairs) - 0.4, -0.6)
    axis.set_xlabel("P(X > Y)")
    tidy(axis)
    axis.grid(visible=False, axis="y")
    what = (
        f"Over {count(len(shared.tasks), 'task')}, {metric} return; 95 % stratified bootstrap intervals, "
        f"n = {_range(found)} {sample_units.kind(list(shared.runs.values()))}. At 0.5 neither is better."
    )
    left = [note for note in shared.notes if note.startswith("Left out")]
    notes_below(figure, [what, *left, *shared.on_units(), *missing])
    save(figure, path)
    return figure


def _shared_steps(shared: Common, method: str, notes: list[str]) -> tuple[list[int], list[Array]]:
    """Steps that all tasks of a method share, and for each task normalised returns [units, steps]."""
    aligned = []
    for task in shared.tasks:
        found = align([one for one in shared.runs[method] if one.task == task])
        notes += [f"{method} on {task}: {found.note}."] * bool(found.note)
        aligned.append(found)
    steps = sorted(set.intersection(*(set(one.steps) for one in aligned)))
    if len(steps) < 2:
        grids = "; ".join(
            f"{task}: {len(one.steps)} up to {one.steps[-1]:,}" for task, one in zip(shared.tasks, aligned, strict=True)
        )
        raise UserError(
            f"The tasks share {len(steps)} evaluation steps of {method} ({grids}): curves over tasks need common ones. "
            "Give folders of runs with one train.evaluation.every."
        )
    if any(len(one.steps) > len(steps) for one in aligned):
        notes.append(f"{method}: at the {len(steps)} steps that all tasks share.")
    per_task = []
    functions = sample_units.of_functions(shared.runs[method])
    for one in aligned:
        kept = [at for at, step in enumerate(one.steps) if step in set(steps)]
        rows = []
        for run, values in zip(one.runs, one.returns[:, kept], strict=True):
            bounds = shared.normalised.of(run)
            rows.append(values if bounds is None else bounds(values))
        per_task.append(sample_units.per_unit(one.runs, np.array(rows), functions))
    return steps, per_task


def _range(found: Sequence[Estimate]) -> str:
    low, high = min(one.runs for one in found), max(one.runs for one in found)
    return str(low) if low == high else f"{low} to {high}"
