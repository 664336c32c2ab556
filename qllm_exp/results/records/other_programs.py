"""Results of other programs as records, beside those of this package.

A method of another program is named METHOD@PROGRAM: it is never pooled with a method of this package, whose implementation differs.
A task has the name of a task of this package only if the rules are the same, as the program's configuration shows or as a mapping
file declares; else its environment is named ENV@PROGRAM. A footnote of every table and figure says what the returns are.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from qllm_exp.config.load import load_run, non_identifying_keys, to_dict
from qllm_exp.errors import UserError
from qllm_exp.results.records import csv_file, marl_eval, sacred
from qllm_exp.results.records.external import ExternalRun, SourceMapping, read_mapping
from qllm_exp.results.records.reader import Method, Record, make_method
from qllm_exp.runs.run_directory import CONFIG
from qllm_exp.runs.sweep_directory import RECORD
from qllm_exp.utils.files import nearest_path

_SUFFIX_OF_KEY = {"columns": ".csv", "metric": ".json"}  # keys of a mapping file that only one kind of file has
_RETURN_INDEPENDENT = "env.num_envs"  # the only option of a task that may differ where the rules are the same


def read(path: Path) -> list[tuple[ExternalRun, Method]] | None:
    """Return the runs of another program at a path, with their methods; None if the path is a folder of this package.

    Args:
        path: a marl-eval file (.json), a CSV file, a folder of Sacred, or a mapping file (.yaml) that names one of them.

    Raises:
        UserError: the results cannot be read, do not fit together, or the mapping names a task that does not exist.
    """
    mapping = SourceMapping()
    source = path
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        mapping = read_mapping(path)
        source = path.parent / mapping.source
        for key, suffix in _SUFFIX_OF_KEY.items():
            if getattr(mapping, key) and source.suffix.lower() != suffix:
                raise UserError(f"{path}: {key} is for {suffix} files; source is {mapping.source}. Remove {key}.")
    runs = _read_source(source, mapping)
    if runs is None:
        if mapping.path is None:
            return None
        raise UserError(
            f"{path}: source {source} holds no result of another program.{nearest_path(source)} Allowed: a .json or .csv "
            "file, or a folder of Sacred."
        )
    _check_tasks(mapping, runs)
    return [_with_method(run, mapping) for run in runs]


def _read_source(source: Path, mapping: SourceMapping) -> list[ExternalRun] | None:
    if source.suffix.lower() == ".csv" and source.is_file():
        return csv_file.read(source, mapping)
    if source.suffix.lower() == ".json" and source.is_file():
        return marl_eval.read(source, mapping)
    if not source.is_dir() or _has_own_runs(source):
        return None
    return [sacred.read(folder, mapping) for folder in sacred.run_folders(source)] or None


def _has_own_runs(folder: Path) -> bool:
    names = (CONFIG, RECORD)
    return any((folder / name).exists() or any(folder.glob(f"*/{name}")) for name in names)


def _check_tasks(mapping: SourceMapping, runs: list[ExternalRun]) -> None:
    """Raise UserError if a mapping declares a task that no run has, or options of tasks that it does not declare."""
    names = {name: None for run in runs for name in (f"{run.env}/{run.task}", run.task)}
    for task, own_task in mapping.tasks.items():
        if task not in names:
            raise UserError(f"{mapping.path}: tasks names {task!r}, which no run has. Tasks: {', '.join(names)}.")
        if not isinstance(own_task, str) or "/" not in own_task:
            raise UserError(
                f"{mapping.path}: {task}: {own_task!r} is not of the form ENV/TASK, e.g. mpe/simple_spread."
            )
    if mapping.env and not mapping.tasks:
        raise UserError(f"{mapping.path}: env has options of this package's tasks, but tasks declares none.")


def _with_method(run: ExternalRun, mapping: SourceMapping) -> tuple[ExternalRun, Method]:
    """Return a run, whose unit then also says whose rules its task has, and its method, named as the module describes."""
    declared = mapping.own_task(run)
    task = declared or run.own_task
    if task:
        options = mapping.env if declared else run.env_options
        try:
            env_settings = _env_settings(task, json.dumps(dict(options), default=str))
        except UserError as error:
            raise UserError(f"{mapping.path if declared else run.path}: {error}") from None
        rules = (
            f"{mapping.path} declares the rules of the task equal" if declared else "the rules of the task are equal"
        )
    else:
        env = run.env.partition("@")[0].replace("/", "-")  # the first slash of a task ends its environment
        task = f"{env}@{run.program}/{run.task}"
        env_settings = {key: value for key, value in run.settings.items() if key.startswith("env.")}
        rules = f"the rules of the task are those of {run.program}, so it is not a task of this package"
    others = {f"{run.program}.{key}": value for key, value in run.settings.items() if not key.startswith("env.")}
    settings = {**env_settings, **others}
    method = Method(
        task=task,
        base=f"{run.method}@{run.program}",
        settings=settings,
        identity=json.dumps(settings, sort_keys=True, default=str),
        labels={},
        evaluation_every=None,
    )
    return replace(run, unit=f"{run.unit}; {rules}"), method


@cache
def _env_settings(task: str, options: str) -> Mapping[str, Any]:
    """Return the settings of a task of this package that a record has, without the number of copies.

    Args:
        task: 'ENV/TASK'.
        options: JSON object of the options that differ from the defaults, e.g. '{"reward": "mean"}'.

    Raises:
        UserError: there is no such task or option.
    """
    from qllm_exp.config.compose import compose_run  # Hydra and torch are slow to import
    from qllm_exp.envs import env_module, imports_task

    env, _, name = task.partition("/")
    config = to_dict(compose_run([f"env={env}"]))
    config["env"] |= {"task": name} | json.loads(options)
    run = load_run(config)
    module = env_module(run.env.name)
    if not imports_task(run.env.name, name) and name not in module.tasks():
        module.check(run.env)
    settings = make_method([to_dict(run)], tuple(non_identifying_keys(run)), "").settings
    return {key: value for key, value in settings.items() if key.startswith("env.") and key != _RETURN_INDEPENDENT}


def make_record(run: ExternalRun, method: Method) -> Record:
    """Return the record of a finished run."""
    result = {"final_return": run.returns[-1], "env_steps": run.steps[-1]}
    if run.absolute is not None:
        result["absolute_return"] = run.absolute
    return Record(
        path=run.path,
        task=method.task,
        method=method.base,
        seed=run.seed,
        settings=method.settings,
        steps=run.steps,
        returns=run.returns,
        result=result,
        episode_metrics={"win": run.win_rates} if run.win_rates else {},
        program=run.program,
        unit=run.unit,
    )
