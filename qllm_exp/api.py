"""The public Python API: what `import qllm_exp` offers.

    runs = qllm_exp.load_runs("runs/baselines")        # a DataFrame, one row per run
    qllm_exp.table("runs/baselines")                   # the comparison, as the command prints it
    policy = qllm_exp.load_policy(runs.path[0])        # a trained team, to be played with

A *source* is the folder of a run, of a sweep, or of many of either, or `wandb://ENTITY/PROJECT[/SWEEP]`.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qllm_exp.errors import RunFailed, UserError

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from qllm_exp.credit.stored_function import StoredFunction
    from qllm_exp.envs.base import TeamEnv
    from qllm_exp.experiment import RunResult
    from qllm_exp.explain.policy import Policy
    from qllm_exp.results.records.collect import Collection
    from qllm_exp.results.tables.sheet import Sheet

Source = str | Path
_NOTHING_STARTED, _INTERRUPTED = 2, 3  # exit codes of the command


def load_runs(*sources: Source, only: Sequence[str] = ()) -> "pandas.DataFrame":
    """A row per run: its configuration, state and final returns.

    Args:
        *sources: folders or W&B projects; none: the folder `runs`.
        only: filters such as 'mixer=qmix,tfcaf' or 'seed=0-4'; a run must pass all of them.

    Returns:
        Columns `run` (folder name), `path`, `env`, `task`, `method`, `seed`, `state` (finished, running, queued, interrupted,
        failed, dead, new), `reason`, `final_return` and `absolute_return` (mean episode return of the last evaluation and of the
        absolute metric), `env_steps`, `updates`, `parameters`, `wall_s`, and a column for each configuration key with its dots,
        e.g. `train.learning_rate`. What a run does not have is missing (NaN).

    Raises:
        UserError: a source holds no run, or a run cannot be read.
    """
    import pandas

    collection = _collect(sources, only)
    rows = [
        {
            "run": record.name,
            "path": record.path,
            **_names(record.task),
            "method": record.method,
            "seed": record.seed,
            "state": "finished",
            "reason": "",
            "final_return": record.result.get("final_return"),
            "absolute_return": record.result.get("absolute_return"),
            "env_steps": record.result.get("env_steps"),
            "updates": record.result.get("updates"),
            "parameters": record.parameters,
            "wall_s": record.wall_s,
            **record.settings,
        }
        for record in collection.finished
    ]
    rows += [
        {
            "run": run.name,
            "path": run.path,
            **_names(run.task),
            "method": run.method,
            "seed": run.seed,
            "state": run.state,
            "reason": run.reason,
            **run.settings,
        }
        for run in collection.unfinished
    ]
    return pandas.DataFrame(rows)


def load_curves(*sources: Source, only: Sequence[str] = (), kind: str = "evaluation") -> "pandas.DataFrame":
    """A row per metrics row of the finished runs, e.g. per evaluation.

    Args:
        *sources: folders or W&B projects; none: the folder `runs`.
        only: filters such as 'mixer=qmix,tfcaf'.
        kind: 'evaluation', 'training' or 'absolute'.

    Returns:
        Columns `run`, `env`, `task`, `method`, `seed`, and those of the metrics rows (`env_step`, `return_mean`, ...).

    Raises:
        UserError: a source holds no run, or a run cannot be read.
    """
    import pandas

    from qllm_exp.runs.metrics import KINDS, read_rows

    if kind not in KINDS:
        raise UserError(f"kind={kind!r} is unknown. Allowed: {', '.join(KINDS)}.")
    rows: list[Mapping[str, Any]] = []
    for record in _collect(sources, only).finished:
        labels = {"run": record.name, **_names(record.task), "method": record.method, "seed": record.seed}
        rows += [labels | dict(row) for row in read_rows(record.path / "metrics.jsonl", kind)]
    return pandas.DataFrame(rows).drop(columns="kind", errors="ignore")


def table(
    *sources: Source,
    rows: Sequence[str] = ("env", "task"),
    cols: Sequence[str] = ("method",),
    metric: str = "final",
    stat: str = "mean",
    only: Sequence[str] = (),
) -> "Sheet":
    """The comparison of the finished runs: value [95 % interval] (n seeds) per row and column.

    Args:
        *sources: folders or W&B projects; none: the folder `runs`.
        rows: configuration keys of the rows.
        cols: configuration keys of the columns; 'method' stands for all settings at once.
        metric: 'final' (the last evaluation) or 'absolute' (the best parameters, evaluated once more).
        stat: 'mean', 'iqm' or 'median' over seeds.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A sheet that shows itself as a table in a notebook and as Markdown in `str`.

    Raises:
        UserError: a source holds no run, a key or metric is unknown, or the runs cannot be compared.
    """
    from qllm_exp.results.tables.table import comparison

    return comparison(_collect(sources, only), list(rows), list(cols), metric, stat)[0]


def plot_curves(*sources: Source, output: Source | None = None, only: Sequence[str] = ()) -> "Figure":
    """Learning curves per task, with bands.

    Args:
        *sources: folders or W&B projects; none: the folder `runs`.
        output: a .png, .pdf or .svg file to write as well.
        only: filters such as 'mixer=qmix,tfcaf'.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: a source holds no finished run, or the file cannot be written.
    """
    from qllm_exp.results.figures.per_task import curves
    from qllm_exp.results.tables.sheet import notes_on_missing

    collection = _collect(sources, only)
    return curves(collection.finished, None if output is None else Path(output), notes_on_missing(collection))


def load_policy(run: Source, env: "TeamEnv | None" = None, parameters: str = "best") -> "Policy":
    """The team that a finished run has trained.

    Args:
        run: the run's folder.
        env: the environment that it will play in; None: one copy of the run's own, as `policy.env`.
        parameters: 'best' parameters of the run's evaluations, or the 'last'.

    Returns:
        A callable (observations [N, n, obs_dim], state [N, S], available actions [N, n, A]) -> actions [N, n], which acts
        without exploration; `reset()` before each episode.

    Raises:
        UserError: the run is not finished, or was made by a version with other networks.
    """
    from dataclasses import replace

    from qllm_exp.envs import make_env as build
    from qllm_exp.explain import policy
    from qllm_exp.runs.run_directory import RunDirectory

    if env is None:
        env = build(replace(RunDirectory(Path(run)).read_config().env, num_envs=1), 1, 0)
    return policy.load_policy(Path(run), env, parameters)


def make_env(
    name: str, task: str | None = None, num_envs: int = 1, seed: int = 0, device: str = "cpu", **options: Any
) -> "TeamEnv":
    """Copies of an environment that step together, with tensors in and out.

    Args:
        name: 'lbf', 'mpe', 'grf', 'matrix', 'pettingzoo', or a module of your own on PYTHONPATH.
        task: a task of that environment; None: its default.
        num_envs: copies N.
        seed: of everything that is random in it.
        device: 'cpu' or 'cuda'.
        **options: further keys of conf/env/NAME.yaml, e.g. `episode_limit=100`.

    Returns:
        `reset() -> Observation` and `step(actions [N, n]) -> Step`; `layout` names every column of the global state.

    Raises:
        UserError: an unknown name, task or option, or a simulator that is not installed.
    """
    from qllm_exp.config.load import load_run
    from qllm_exp.envs import env_module
    from qllm_exp.envs import make_env as build

    chosen = {"name": name, **options} if task is None else {"name": name, "task": task, **options}
    config = load_run({"env": chosen | {"num_envs": num_envs}}).env
    env_module(name).check(config)
    return build(config, num_envs, seed, device)


def load_function(name: Source) -> "StoredFunction":
    """A stored credit-assignment function.

    Args:
        name: a file, such as a run's tfcaf.json; a bundled one by its task, such as 'lbf/8x8-2p-2f-coop-2s'; or the first
            digits of the key of one in the cache.

    Returns:
        `source`, `program` (the tensor program that training runs), `prompts`, `transcript`, `provenance`, `cost`.

    Raises:
        UserError: there is no such function, or its file is not valid.
    """
    from qllm_exp.config.compose import compose_run
    from qllm_exp.generation.provide import find_function

    return find_function(str(name), compose_run(["mixer=tfcaf"]))


def run(overrides: Sequence[str]) -> "RunResult":
    """Train one run to its end, in a process of its own, and return what it reached.

    Args:
        overrides: as on the command line, e.g. ['env=mpe', 'mixer=qmix', 'train=quick'].

    Returns:
        `path`, `final_return` and `absolute_return`. A finished run is not trained again; an interrupted one is resumed.

    Raises:
        UserError: the configuration is wrong; nothing was started.
        RunFailed: the run failed or was stopped at a checkpoint; the message says which and why.
    """
    from qllm_exp.config.compose import compose_run
    from qllm_exp.experiment import RunResult
    from qllm_exp.sweep.prepare import check, prepare

    prepared = prepare(check(compose_run(overrides)))
    directory = prepared.directory
    directory.create(prepared.config, prepared.tfcaf)
    done = subprocess.run([sys.executable, "-m", "qllm_exp.experiment", str(directory.path)], check=False)
    result = directory.result()
    if result is None:
        reason = directory.status().get("error") or f"exit code {done.returncode}"
        if done.returncode == _INTERRUPTED:
            reason = "stopped at a checkpoint; the same call resumes it"
        raise RunFailed(f"{directory.path}: {reason}")
    return RunResult(directory.path, result["final_return"], result["absolute_return"])


def run_sweep(overrides: Sequence[str]) -> "pandas.DataFrame":
    """Run every combination of the overrides, and return the runs of that sweep.

    Args:
        overrides: as after `qllm-exp -m`, e.g. ['env=lbf,mpe', 'mixer=tfcaf,qmix', 'seed=0-4', 'train=quick'].
            `sweep.name` names the sweep's folder; without it, its name is made from the overrides.

    Returns:
        As `load_runs`. Failed runs are rows with their state. With a Slurm launcher, runs are queued when this returns.

    Raises:
        UserError: the sweep cannot start; the message is on standard error.
        KeyboardInterrupt: the sweep was interrupted; its runs stopped at checkpoints, and the same call resumes them.
    """
    values = dict(override.partition("=")[::2] for override in overrides)
    folder = Path(values.get("dir", "runs"))
    name = values.get("sweep.name") or f"sweep_{hashlib.sha256(json.dumps(list(overrides)).encode()).hexdigest()[:8]}"
    arguments = [*(override for override in overrides if not override.startswith("sweep.name=")), f"sweep.name={name}"]
    code = subprocess.run([sys.executable, "-m", "qllm_exp", "-m", *arguments], check=False).returncode
    if code == _NOTHING_STARTED:
        raise UserError(f"The sweep cannot start: {shlex.join(arguments)}. The reason is above, on standard error.")
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return load_runs(folder / name)


def _collect(sources: Sequence[Source], only: Sequence[str]) -> "Collection":
    from qllm_exp.results.records import sources as result_sources
    from qllm_exp.results.records.collect import collect, filter_runs

    parsed = [result_sources.parse_source(str(source)) for source in sources or ("runs",)]
    return filter_runs(collect(result_sources.to_folders(parsed)), only)


def _names(task: str) -> dict[str, str]:
    env, _, name = task.partition("/")
    return {"env": env, "task": name}
