"""Connects Hydra's launcher plugins with `launch`."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from qllm_exp.config.compose import explain_error
from qllm_exp.config.load import load_run
from qllm_exp.config.schema import RunConfig
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import RunFailed, UserError
from qllm_exp.sweep.fast_compose import Overrides
from qllm_exp.sweep.launch import LaunchResult, launch
from qllm_exp.sweep.launcher import Launcher
from qllm_exp.sweep.pruning import NONE
from qllm_exp.sweep.repetitions import is_grid, repetitions
from qllm_exp.sweep.seed_groups import AUTO, all_seeds, without_seeds
from qllm_exp.sweep.tuning import launch_tuned


def launch_jobs(
    context: Any,
    config: Any,
    arguments: Sequence[str],
    job_overrides: Sequence[Sequence[str]],
    make_launcher: Callable[[bool], Launcher],
    search: Callable[[RunConfig, Launcher], StoredFunction],
) -> tuple[list[JobReturn], int]:
    """Launch the runs that a Hydra sweeper requests.

    A job of the package's own sweeper is a run. A job of any other sweeper is a trial: one run for each repetition (`seed=0-2`).

    Args:
        context: Hydra's context, as a plugin receives it.
        config: Hydra's configuration, as a plugin receives it.
        arguments: arguments of the command, as typed.
        job_overrides: overrides of each job.
        make_launcher: returns the launcher. Its argument says whether the sweeper is the package's own GridSweeper; any other
            sweeper needs the results of the runs before it can continue.
        search: searches for the function of a configuration, with a launcher that waits for the trainings.

    Returns:
        The result of each job for Hydra, and the exit code of the sweep.
    """
    is_whole = is_grid(config)
    is_auto = config.sweep.seeds == AUTO
    conf = next(Path(source.path) for source in config.hydra.runtime.config_sources if source.provider == "main")
    if is_auto and not is_whole:
        raise UserError(
            "sweep.seeds=auto needs hydra/sweeper=grid: another sweeper chooses settings, and compares no methods. List the seeds."
        )
    if config.sweep.prune != NONE:
        _check_may_prune(config.sweep.prune, is_auto, is_whole)
    if is_auto:
        typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        job_overrides = without_seeds(job_overrides, typed)

    def compose(overrides: tuple[str, ...]) -> Any:
        composed = context.config_loader.load_sweep_config(config, list(overrides))
        HydraConfig.instance().set_config(composed)  # for ${hydra:...}, which reads Hydra's part of the current run
        return composed

    def explain(error: Exception, overrides: tuple[str, ...]) -> str:
        return explain_error(error, overrides, conf)

    def provide_by_search(run: RunConfig) -> StoredFunction:
        return search(run, make_launcher(False))

    def start(combinations: Sequence[Overrides], **options: Any) -> LaunchResult:
        return launch(
            combinations, compose, explain, make_launcher(is_whole), arguments, is_whole, provide_by_search, **options
        )

    hydra_state = Singleton.get_state()
    try:
        if config.sweep.tune.trials:
            if not is_whole:
                raise UserError(
                    "sweep.tune needs hydra/sweeper=grid: another sweeper chooses settings itself. Remove one of the two."
                )
            _check_launcher_references(config, [tuple(overrides) for overrides in job_overrides])
            space: Any = OmegaConf.to_container(config.hydra.sweeper.space, resolve=False)
            return [], launch_tuned(job_overrides, space, compose, start, arguments)
        repeated = (
            all_seeds(load_run(compose(tuple(job_overrides[0]))).sweep.decide) if is_auto else repetitions(config)
        )
        combinations = [(*overrides, *repetition) for overrides in job_overrides for repetition in repeated]
        _check_launcher_references(config, combinations)
        result = start(combinations)
    finally:
        Singleton.set_state(hydra_state)
    return _job_returns(job_overrides, len(repeated), result), result.exit_code


def _check_may_prune(rule: str, is_auto: bool, is_whole: bool) -> None:
    """Raise UserError if the settings of a sweep cannot be pruned.

    Args:
        rule: value of sweep.prune.
        is_auto: whether the sweep compares methods until it is decided which differ.
        is_whole: False if another Hydra sweeper controls the sweep.
    """
    if is_auto:
        raise UserError(
            f"sweep.prune={rule} is for searches over settings, and sweep.seeds=auto is a comparison, whose runs must all reach "
            "their end. Remove one of the two."
        )
    if not is_whole:
        raise UserError(
            f"sweep.prune={rule} needs hydra/sweeper=grid: another sweeper waits for the final return of every trial, and a pruned "
            "run has none. Type sweep.prune=none, or list the values of the settings."
        )


def _check_launcher_references(config: Any, combinations: Sequence[Overrides]) -> None:
    """Raise UserError if an option of the launcher refers to an option of the runs that varies, e.g. account=${env.name}.

    Hydra would give it the value of the default choice.

    Args:
        config: Hydra's configuration.
        combinations: overrides of all runs.
    """
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    references = re.findall(r"\$\{([\w.]+)\}", str(launcher))
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    common = set(typed)
    varying = {
        override.partition("=")[0] for overrides in combinations for override in overrides if override not in common
    }
    for reference in references:
        if any(reference == key or reference.startswith(f"{key}.") for key in varying):
            raise UserError(
                f"hydra.launcher refers to ${{{reference}}}, but its options hold for the whole sweep and {reference} is an "
                "option of each run. Type the value itself."
            )


def _job_returns(job_overrides: Sequence[Sequence[str]], runs_per_job: int, result: LaunchResult) -> list[JobReturn]:
    """Return the result of each job for Hydra: the mean final return of its runs, if all of them are finished.

    Args:
        job_overrides: overrides of each job.
        runs_per_job: number of runs of each job, its repetitions.
        result: the launched runs, job by job.
    """
    returns = [JobReturn(overrides=list(overrides), status=JobStatus.UNKNOWN) for overrides in job_overrides]
    if result.plan.sweep.dry_run:
        return returns
    errors = {outcome.directory.path: outcome.error for outcome in result.outcomes}
    directories = [result.plan.runs[index].directory for index in result.plan.run_index]
    for number, job_return in enumerate(returns):
        own = directories[number * runs_per_job : (number + 1) * runs_per_job]
        results = [directory.result() for directory in own]
        failed = [d for d, run_result in zip(own, results, strict=True) if run_result is None and d.path in errors]
        if failed:
            job_return.status = JobStatus.FAILED
            job_return.return_value = RunFailed(f"{failed[0].path.name}: {errors[failed[0].path]}")
        elif all(results):
            job_return.status = JobStatus.COMPLETED
            job_return.return_value = fmean(run_result["final_return"] for run_result in results if run_result)
    return returns
