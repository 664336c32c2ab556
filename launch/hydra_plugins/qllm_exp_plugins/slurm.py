"""Hydra launcher `slurm`: runs as jobs of a cluster. Loaded at every start, so it imports little."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class SlurmLauncher(Launcher):
    """Runs as jobs of Slurm; conf/hydra/launcher/slurm.yaml has the options."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from omegaconf import OmegaConf

        from qllm_exp.sweep.hydra_bridge import launched
        from qllm_exp.sweep.slurm import Slurm

        given: Any = OmegaConf.to_container(OmegaConf.create(self.options), resolve=True)
        returns, self.exit_code = launched(
            self.context, self.config, job_overrides, lambda ours: Slurm(**given | ({} if ours else {"wait": True}))
        )
        return returns
