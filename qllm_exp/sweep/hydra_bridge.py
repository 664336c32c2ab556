"""Between Hydra's launcher plugins and `launch`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from qllm_exp.config.compose import explain
from qllm_exp.errors import RunFailed
from qllm_exp.sweep.launch import Launched, launch
from qllm_exp.sweep.launcher import Launcher


def launched(
    context: Any, config: Any, job_overrides: Sequence[Sequence[str]], make: Callable[[bool], Launcher]
) -> tuple[list[JobReturn], int]:
    """Launch combinations of overrides; what Hydra wants to know of each, and the exit code of it all.

    Args:
        context, config: as Hydra hands them to a plugin.
        make: the launcher, given whether the sweeper is ours; any other needs the runs' results to go on.
    """
    ours = str(config.hydra.sweeper._target_).endswith(".GridSweeper")
    conf = next(Path(s.path) for s in config.hydra.runtime.config_sources if s.provider == "main")
    combinations = [tuple(one) for one in job_overrides]
    state = Singleton.get_state()

    def compose(overrides: tuple[str, ...]) -> Any:
        return context.config_loader.load_sweep_config(config, list(overrides))

    try:
        done = launch(combinations, compose, lambda e, o: explain(e, o, conf), make(ours), whole=ours)
    finally:
        Singleton.set_state(state)
    return _returns(combinations, done), done.exit_code


def _returns(combinations: Sequence[tuple[str, ...]], done: Launched) -> list[JobReturn]:
    if done.plan.asked.dry_run:
        return [JobReturn(overrides=list(overrides), status=JobStatus.UNKNOWN) for overrides in combinations]
    errors = {one.directory.path: one for one in done.ended}
    returns = []
    for overrides, index in zip(combinations, done.plan.of, strict=True):
        directory = done.plan.runs[index].directory
        result, ended = directory.result(), errors.get(directory.path)
        one = JobReturn(overrides=list(overrides), status=JobStatus.UNKNOWN)
        if result is not None:
            one.status, one.return_value = JobStatus.COMPLETED, result["final_return"]
        elif ended is not None:
            one.status, one.return_value = JobStatus.FAILED, RunFailed(f"{directory.path.name}: {ended.error}")
        returns.append(one)
    return returns
