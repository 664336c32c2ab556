"""Plot runs: learning curves, returns, aggregates over tasks, and ablations."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qllm_exp.api.results import Source, ablation, select_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(
    *sources: Source,
    normalise: bool = False,
    metric: str = "return",
    by: str | Sequence[str] = "method",
    output: Source | None = None,
    only: str | Sequence[str] = (),
) -> "Figure":
    """Plot learning curves: the mean evaluation return per task against environment steps, with 95 % bands.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        normalise: one panel over all tasks instead: the IQM of normalised returns.
        metric: 'return', 'win_rate' where the tasks report wins, or another metric that the environments report, e.g. 'length'.
        by: what a line stands for: 'method', or configuration keys such as 'mixer'.
        output: a .png, .pdf or .svg file to write as well.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: a source holds no finished run, the runs cannot be compared, the metric is unknown or not reported, or the file
            cannot be written.

    Examples:
        >>> qllm_exp.plot_curves("runs/baselines", output="curves.pdf")
    """
    from qllm_exp.results.figures import across_tasks, per_task

    path = _figure_path(output)
    records, missing = select_records(sources, only, by)
    return (across_tasks.aggregated_curves if normalise else per_task.curves)(records, path, missing, metric=metric)


def plot_bars(
    *sources: Source,
    metric: str = "final",
    by: str | Sequence[str] = "method",
    output: Source | None = None,
    only: str | Sequence[str] = (),
) -> "Figure":
    """Plot the mean return per task as bars, with 95 % intervals and a dot per seed.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        metric: 'final', 'absolute', 'win_rate' or another metric that the environments report, as in `table`.
        by: what a bar stands for: 'method', or configuration keys such as 'mixer'.
        output: a .png, .pdf or .svg file to write as well.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: as `plot_curves`, or the metric is unknown.

    Examples:
        >>> qllm_exp.plot_bars("runs/baselines", only="env=mpe")
    """
    from qllm_exp.results.figures.per_task import bars

    path = _figure_path(output)
    records, missing = select_records(sources, only, by)
    return bars(records, path, metric, missing)


def plot_profiles(
    *sources: Source,
    metric: str = "final",
    by: str | Sequence[str] = "method",
    output: Source | None = None,
    only: str | Sequence[str] = (),
) -> "Figure":
    """Plot performance profiles: the share of runs above each normalised score, over all tasks, with 95 % bands.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        metric: 'final', 'absolute', 'win_rate' or another metric that the environments report, as in `table`.
        by: what a line stands for: 'method', or configuration keys such as 'mixer'.
        output: a .png, .pdf or .svg file to write as well.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: as `plot_curves`, or the metric is unknown, or the methods share no task.

    Examples:
        >>> qllm_exp.plot_profiles("runs/baselines", output="profiles.pdf")
    """
    from qllm_exp.results.figures.across_tasks import profiles

    path = _figure_path(output)
    records, missing = select_records(sources, only, by)
    return profiles(records, path, metric, missing)


def plot_improvement(
    *sources: Source,
    metric: str = "final",
    against: str = "",
    by: str | Sequence[str] = "method",
    output: Source | None = None,
    only: str | Sequence[str] = (),
) -> "Figure":
    """Plot the probability that a run of one method scores higher than a run of another, over all tasks.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        metric: 'final', 'absolute', 'win_rate' or another metric that the environments report, as in `table`.
        against: the method that all others are compared with; '': every pair.
        by: what is compared: 'method', or configuration keys such as 'mixer'.
        output: a .png, .pdf or .svg file to write as well.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: as `plot_profiles`, or there is only one method, or too many pairs for a figure.

    Examples:
        >>> qllm_exp.plot_improvement("runs/baselines", against="qmix")
    """
    from qllm_exp.results.figures.across_tasks import improvement

    path = _figure_path(output)
    records, missing = select_records(sources, only, by)
    return improvement(records, path, metric, missing, against)


def plot_ablation(
    *sources: Source,
    axis: str | Sequence[str],
    metric: str = "final",
    stat: str = "mean",
    output: Source | None = None,
    only: str | Sequence[str] = (),
) -> "Figure":
    """Plot the differences of `ablation`: the effect of each value of a setting, with its interval, per task.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        axis: the configuration key that varies, e.g. 'tfcaf.rounds'; several keys: their combinations.
        metric: 'final', 'absolute', 'win_rate' or another metric that the environments report, as in `table`.
        stat: 'mean', 'iqm' or 'median' over seeds.
        output: a .png, .pdf or .svg file to write as well.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: as `ablation`, or no default was run on a task together with another value.

    Examples:
        >>> qllm_exp.plot_ablation("runs/ablation_rounds", axis="tfcaf.rounds", output="rounds.pdf")
    """
    from qllm_exp.results.figures.ablation_effects import effects

    path = _figure_path(output)
    return effects(ablation(*sources, axis=axis, metric=metric, stat=stat, only=only), path)


def _figure_path(output: Source | None) -> Path | None:
    from qllm_exp.results.figures.style import check_figure_path

    if output is None:
        return None
    check_figure_path(Path(output))
    return Path(output)
