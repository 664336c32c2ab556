"""Hydra's sweeper `grid`: all combinations of the listed values, planned together. Loaded at every start: keep imports few."""

import sys
from typing import Any

from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper


class GridSweeper(Sweeper):
    """Expands ranges and lists, and hands all combinations to the launcher at once.

    Args:
        params: axes of an experiment preset, for keys that the command line does not set.
        cases: sets of axes that belong together; each set is multiplied out on its own.
        space: values that the trials of each method draw from, which the launcher reads.
    """

    def __init__(self, params: Any = None, cases: Any = None, space: Any = None) -> None:
        self.params = dict(params or {})
        self.cases = [dict(case) for case in cases or ()]

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Receive Hydra's objects, and create the launcher."""
        from hydra.core.plugins import Plugins
        from omegaconf import OmegaConf

        # As written: in `params` and `cases`, Hydra replaced references such as ${env.name} by values of the default choices.
        axes: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
        self.params, self.cases = axes.get("params") or {}, axes.get("cases") or []
        self.loader = hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all combinations; exit with the launcher's exit code if it is not 0."""
        from qllm_exp.config.overrides import combinations, grids

        assert self.launcher is not None
        job_overrides = [
            list(overrides)
            for grid in grids(arguments, self.params, self.cases, self.loader)
            for overrides in combinations(grid, self.loader)
        ]
        returns = self.launcher.launch(job_overrides, initial_job_idx=0)
        code = getattr(self.launcher, "exit_code", None)  # launchers of other packages have none
        if code is None:
            code = int(any(job_return.status == JobStatus.FAILED for job_return in returns))
        if code:
            sys.exit(code)
        return None
