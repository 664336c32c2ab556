"""Hydra launcher `local`: one process per run, one run per core. Loaded at every start, so it imports little."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher


class LocalLauncher(Launcher):
    """Runs on this machine.

    Args:
        n_jobs: runs at a time; 0: one per core.
    """

    def __init__(self, n_jobs: int = 0) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra.core.singleton import Singleton

        from qllm_exp.cli import explain
        from qllm_exp.sweep.launch import launch

        conf = next(Path(s.path) for s in self.config.hydra.runtime.config_sources if s.provider == "main")
        state = Singleton.get_state()

        def compose(overrides: tuple[str, ...]) -> Any:
            return self.context.config_loader.load_sweep_config(self.config, list(overrides))

        combinations = [tuple(one) for one in job_overrides]
        try:
            plan, ended = launch(combinations, compose, lambda e, o: explain(e, o, conf), self.n_jobs)
        finally:
            Singleton.set_state(state)
        errors = {one.directory.path: one.error for one in ended if one.error}
        returns = []
        for overrides, index in zip(combinations, plan.of, strict=True):
            path, result = plan.runs[index].directory.path, plan.runs[index].directory.result()
            status = JobStatus.FAILED if result is None else JobStatus.COMPLETED
            one = JobReturn(overrides=list(overrides), status=status)
            one.return_value = RuntimeError(errors.get(path, "not run")) if result is None else result["final_return"]
            returns.append(one)
        return returns
