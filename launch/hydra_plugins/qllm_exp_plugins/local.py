"""Hydra launcher `local`: one process per run, one run per core. Loaded at every start, so it imports little."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class LocalLauncher(Launcher):
    """Runs on this machine; conf/hydra/launcher/local.yaml has the options."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from qllm_exp.sweep.hydra_bridge import launched
        from qllm_exp.sweep.local import Local

        returns, self.exit_code = launched(self.context, self.config, job_overrides, lambda ours: Local(**self.options))
        return returns
