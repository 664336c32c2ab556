"""Connects Hydra's launcher plugins with `launch`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from qllm_exp.config.compose import explain_error
from qllm_exp.errors import RunFailed
from qllm_exp.sweep.launch import LaunchResult, launch
from qllm_exp.sweep.launcher import Launcher


def launch_jobs(
    context: Any,
    config: Any,
    arguments: Sequence[str],
    job_overrides: Sequence[Sequence[str]],
    make_launcher: Callable[[bool], Launcher],
) -> tuple[list[JobReturn], int]:
    """Launch the runs that a Hydra sweeper requests.

    Args:
        context: Hydra's context, as a plugin receives it.
        config: Hydra's configuration, as a plugin receives it.
        arguments: arguments of the command, as typed.
        job_overrides: overrides of each run.
        make_launcher: returns the launcher. Its argument says whether the sweeper is the package's own GridSweeper; any other
            sweeper needs the results of the runs before it can continue.

    Returns:
        The result of each run for Hydra, and the exit code of the sweep.
    """
    is_grid = str(config.hydra.sweeper._target_).endswith(".GridSweeper")
    conf = next(Path(source.path) for source in config.hydra.runtime.config_sources if source.provider == "main")
    combinations = [tuple(overrides) for overrides in job_overrides]

    def compose(overrides: tuple[str, ...]) -> Any:
        return context.config_loader.load_sweep_config(config, list(overrides))

    def explain(error: Exception, overrides: tuple[str, ...]) -> str:
        return explain_error(error, overrides, conf)

    hydra_state = Singleton.get_state()
    try:
        result = launch(combinations, compose, explain, make_launcher(is_grid), arguments, is_whole=is_grid)
    finally:
        Singleton.set_state(hydra_state)
    return _job_returns(combinations, result), result.exit_code


def _job_returns(combinations: Sequence[tuple[str, ...]], result: LaunchResult) -> list[JobReturn]:
    """Return the result of each combination for Hydra; the return value of a finished run is its final return."""
    returns = [JobReturn(overrides=list(overrides), status=JobStatus.UNKNOWN) for overrides in combinations]
    if result.plan.sweep.dry_run:
        return returns
    outcomes = {outcome.directory.path: outcome for outcome in result.outcomes}
    for job_return, index in zip(returns, result.plan.run_index, strict=True):
        directory = result.plan.runs[index].directory
        run_result, outcome = directory.result(), outcomes.get(directory.path)
        if run_result is not None:
            job_return.status = JobStatus.COMPLETED
            job_return.return_value = run_result["final_return"]
        elif outcome is not None:
            job_return.status = JobStatus.FAILED
            job_return.return_value = RunFailed(f"{directory.path.name}: {outcome.error}")
    return returns
