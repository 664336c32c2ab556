"""Read runs, tabulate and compare them."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qllm_exp.errors import UserError, choose

if TYPE_CHECKING:
    import pandas

    from qllm_exp.results.records.collect import Collection, Record
    from qllm_exp.results.tables.pivot import Cell
    from qllm_exp.results.tables.sheet import Sheet

Source = str | Path


def load_runs(*sources: Source, only: str | Sequence[str] = ()) -> "pandas.DataFrame":
    """Return a row per run: its configuration, state and returns.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        only: filters such as 'mixer=qmix,tfcaf' or 'seed=0-4'; a run must pass all of them.

    Returns:
        Columns `run` (name of the directory), `path`, `env`, `task`, `method`, `seed`, `state` (finished, running, queued,
        interrupted, pruned, failed, dead, new), `reason`, `final_return` and `absolute_return` (mean episode return of the last
        evaluation and of the absolute metric), `env_steps`, `updates`, `parameters`, `wall_s`, and a column for each
        configuration key with its dots, e.g. `train.learning_rate`. What a run does not have is missing (NaN).

    Raises:
        UserError: a source holds no run, or a run cannot be read.

    Examples:
        >>> runs = qllm_exp.load_runs("runs/baselines", only="mixer=qmix,tfcaf")
        >>> runs.groupby(["task", "method"]).final_return.describe()
    """
    import pandas

    from qllm_exp.results.records.rows import run_rows

    return pandas.DataFrame(run_rows(_collect(sources, only)))


def load_curves(*sources: Source, only: str | Sequence[str] = (), kind: str = "evaluation") -> "pandas.DataFrame":
    """Return a row per metrics row of the finished runs, e.g. per evaluation.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        only: filters such as 'mixer=qmix,tfcaf'.
        kind: 'evaluation', 'training' or 'absolute'.

    Returns:
        Columns `run`, `env`, `task`, `method`, `seed`, and those of the metrics rows (`env_step`, `return_mean`, ...).

    Raises:
        UserError: a source holds no run, or a run cannot be read.

    Examples:
        >>> curves = qllm_exp.load_curves("runs/baselines")
        >>> curves.pivot_table("return_mean", "env_step", "method").plot()
    """
    import pandas

    from qllm_exp.results.records.rows import metrics_rows
    from qllm_exp.runs.metrics import KINDS

    choose("kind", kind, KINDS)
    rows = metrics_rows(_collect(sources, only).finished, kind)
    return pandas.DataFrame(rows).drop(columns="kind", errors="ignore")


def table(
    *sources: Source,
    rows: str | Sequence[str] = ("env", "task"),
    cols: str | Sequence[str] = ("method",),
    metric: str = "final",
    stat: str = "mean",
    only: str | Sequence[str] = (),
) -> "Sheet":
    """Return the comparison table of the finished runs: value [95 % interval] (n seeds) per row and column.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        rows: configuration keys of the rows; (): one row over all tasks, of normalised scores.
        cols: configuration keys of the columns; 'method' stands for all settings at once.
        metric: 'final' (the last evaluation), 'absolute' (the best parameters, evaluated once more), 'win_rate' (share of
            episodes won in the last evaluation), or another metric that the environments report for each episode, e.g. 'length'.
        stat: 'mean', 'iqm' or 'median' over seeds.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A sheet, which a notebook shows as a table, and `str` returns as Markdown.

    Raises:
        UserError: a source holds no run, a key or metric is unknown, or the runs cannot be compared.

    Examples:
        >>> print(qllm_exp.table("runs/baselines", metric="absolute", stat="iqm"))
    """
    from qllm_exp.results.tables.table import comparison

    return comparison(_collect(sources, only), _listed(rows), _listed(cols), metric, stat)[0]


def ablation(
    *sources: Source,
    axis: str | Sequence[str],
    metric: str = "final",
    stat: str = "mean",
    only: str | Sequence[str] = (),
) -> "Sheet":
    """Return the ablation table: each value of a setting, with its difference to the default value.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        axis: the configuration key that varies, e.g. 'tfcaf.rounds'; several keys: their combinations.
        metric: 'final', 'absolute', 'win_rate' or another metric that the environments report, as in `table`.
        stat: 'mean', 'iqm' or 'median' over seeds.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A sheet, which a notebook shows as a table, and `str` returns as Markdown.

    Raises:
        UserError: as `table`, or the axis has only one value.

    Examples:
        >>> qllm_exp.ablation("runs/ablation_rounds", axis="tfcaf.rounds")
    """
    from qllm_exp.results.tables.table import ablation as ablation_table

    return ablation_table(_collect(sources, only), _listed(axis), metric, stat)[0]


def compare(
    *sources: Source,
    by: str | Sequence[str] = "method",
    against: str = "",
    metric: str = "final",
    only: str | Sequence[str] = (),
) -> "pandas.DataFrame":
    """Return the difference between each two methods, with its intervals and a permutation test.

    Args:
        *sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        by: what is compared: 'method', or a configuration key such as 'tfcaf.rounds'.
        against: the method that all others are compared with; '': every pair.
        metric: 'final', 'absolute', 'win_rate' or another metric that the environments report, as in `table`.
        only: filters such as 'mixer=qmix,tfcaf' or 'env=lbf'.

    Returns:
        A row per pair. Columns `method`, `against`; `difference`, the mean of the first minus that of the second; the ends of its
        95 % intervals, `welch_low`, `welch_high` (Welch), `bootstrap_low` and `bootstrap_high` (stratified bootstrap); `p`, the
        two-sided p-value of the permutation test of no difference, and `smallest_p`, the smallest value it could have with so
        few runs; `n`, the seeds of the task with the fewest; `tasks`, the number of tasks that all methods have. On one task
        the difference is that of returns, on several that of normalised scores. What cannot be computed is NaN.

    Raises:
        UserError: there is only one method, the methods share no task, or as `table`.

    Examples:
        >>> qllm_exp.compare("runs/baselines", against="qmix")[["method", "difference", "welch_low", "welch_high", "p"]]
    """
    import pandas

    from qllm_exp.results.records import keys
    from qllm_exp.results.tables.pivot import pivot

    records, _ = select_records(sources, only, by)
    cells = {column[0]: cell for (_, column), cell in pivot(records, (), [keys.METHOD], metric, "mean").cells.items()}
    methods = keys.methods(records)
    if len(methods) < 2:
        raise UserError(
            f"Only {methods[0]} found; a comparison needs two methods. Pass the other method's folders as well."
        )
    if len({tuple(keys.tasks(cell.runs)) for cell in cells.values()}) != 1:  # 0 if no common task has a scale
        tasks = {name: keys.tasks(record for record in records if record.method == name) for name in methods}
        listed = "; ".join(f"{name}: {', '.join(own)}" for name, own in tasks.items())
        raise UserError(
            f"The methods have no task in common: {listed}. Select some of them with only=..., or run the others."
        )
    pairs: Iterable[tuple[str, str]] = itertools.combinations(methods, 2)
    if against:
        choose("against", against, methods)
        pairs = [(name, against) for name in methods if name != against]
    return pandas.DataFrame({"method": x, "against": y, **_difference(cells[x], cells[y])} for x, y in pairs)


def export(*sources: Source, output: Source, only: str | Sequence[str] = ()) -> Path:
    """Write runs as a dataset, which is itself a source.

    It holds tables of runs and evaluations (CSV, and Parquet if pyarrow is installed), marl-eval JSON, the run directories without
    parameters, checkpoints and logs, checksums, and a data card. Equal runs give equal bytes.

    Args:
        *sources: directories, W&B projects or archives; none: the directory `runs`.
        output: a .zip file, or a folder that does not exist yet.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        The path of the archive.

    Raises:
        UserError: a source holds no run or a run of another program, or the output exists or cannot be written.

    Examples:
        >>> qllm_exp.export("runs/baselines", output="baselines.zip")
        >>> print(qllm_exp.table("baselines.zip"))
    """
    from qllm_exp.results.export import export as export_runs
    from qllm_exp.results.records.collect import collect, filter_runs

    folders = _folders(sources)
    return export_runs(filter_runs(collect(folders), _listed(only)), folders, Path(output))


def select_records(
    sources: Sequence[Source], only: str | Sequence[str], by: str | Sequence[str]
) -> tuple[list["Record"], list[str]]:
    """Return the finished runs with the values of `by` as their methods, and notes on runs that are missing or marked.

    Args:
        sources: directories, W&B projects, archives or results of other programs; none: the directory `runs`.
        only: filters, as in `load_runs`.
        by: 'method', or configuration keys.

    Raises:
        UserError: no run has finished, a key is unknown, or a method would pool runs with different settings.
    """
    from qllm_exp.results.tables.pivot import rename_methods
    from qllm_exp.results.tables.sheet import notes_on_runs
    from qllm_exp.results.tables.table import finished_records

    collection = _collect(sources, only)
    return rename_methods(finished_records(collection), _listed(by)), notes_on_runs(collection)


def _collect(sources: Sequence[Source], only: str | Sequence[str]) -> "Collection":
    from qllm_exp.results.records.collect import collect, filter_runs

    return filter_runs(collect(_folders(sources)), _listed(only))


def _folders(sources: Sequence[Source]) -> list[Path]:
    from qllm_exp.results.records import sources as result_sources

    return result_sources.to_folders([result_sources.parse_source(str(source)) for source in sources or ("runs",)])


def _difference(x: "Cell", y: "Cell") -> dict[str, float]:
    """Return the columns of `compare` that hold numbers."""
    from qllm_exp.results.records import keys
    from qllm_exp.results.statistics.comparison import difference

    names = ("difference", "welch_low", "welch_high", "bootstrap_low", "bootstrap_high", "p", "smallest_p")
    values = (math.nan,) * len(names)
    if math.isfinite(x.estimate.value) and math.isfinite(y.estimate.value):
        measured = difference(x.scores, y.scores)
        bootstrap, welch = measured.bootstrap, (measured.welch_low, measured.welch_high)
        values = (bootstrap.value, *welch, bootstrap.low, bootstrap.high, measured.p, measured.p_smallest)
    counts = {"n": min(x.estimate.runs, y.estimate.runs), "tasks": len(keys.tasks(x.runs))}
    return dict(zip(names, values, strict=True)) | counts


def _listed(names: str | Sequence[str]) -> list[str]:
    """Return a list of names, also of a single name."""
    return [names] if isinstance(names, str) else list(names)
