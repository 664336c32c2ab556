"""Hydra's launcher `slurm`: runs as jobs of a Slurm cluster. Loaded at every start: keep imports few."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class SlurmLauncher(Launcher):
    """Submits runs to Slurm. conf/hydra/launcher/slurm.yaml documents the options."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Receive Hydra's objects, and with the task the arguments as typed (see `qllm_exp.__main__`)."""
        self.context = hydra_context
        self.config = config
        self.arguments = task_function.arguments

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs, and return their results as far as they are known; `exit_code` holds the exit code of the sweep."""
        from omegaconf import OmegaConf

        from qllm_exp.search import search
        from qllm_exp.sweep.hydra_bridge import launch_jobs
        from qllm_exp.sweep.slurm import Slurm

        options: Any = OmegaConf.to_container(OmegaConf.create(self.options), resolve=True)

        def make_launcher(is_grid: bool) -> Slurm:
            if is_grid:
                return Slurm(**options)
            return Slurm(**{**options, "wait": True})  # other sweepers need the results

        returns, self.exit_code = launch_jobs(
            self.context, self.config, self.arguments, job_overrides, make_launcher, search
        )
        return returns
