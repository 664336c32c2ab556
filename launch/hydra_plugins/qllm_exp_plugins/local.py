"""Hydra's launcher `local`: runs on this machine, each in its own process. Loaded at every start: keep imports few."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class LocalLauncher(Launcher):
    """Starts runs on this machine. conf/hydra/launcher/local.yaml documents the options."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Receive Hydra's objects, and with the task the arguments as typed (see `qllm_exp.__main__`)."""
        self.context = hydra_context
        self.config = config
        self.arguments = task_function.arguments

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and return their results; `exit_code` holds the exit code of the sweep."""
        from qllm_exp.search import search
        from qllm_exp.sweep.hydra_bridge import launch_jobs
        from qllm_exp.sweep.local import Local

        returns, self.exit_code = launch_jobs(
            self.context, self.config, self.arguments, job_overrides, lambda is_grid: Local(**self.options), search
        )
        return returns
