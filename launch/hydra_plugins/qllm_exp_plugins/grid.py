"""Hydra sweeper `grid`: every combination of the values given, planned as a whole. Loaded at every start, so it imports little."""

import sys
from typing import Any

from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper


class GridSweeper(Sweeper):
    """Expands ranges and lists and hands all combinations to the launcher at once.

    Args:
        params: axes of an experiment, for what the command line leaves open. cases: axes that go together, one set at a time.
    """

    def __init__(self, params: Any = None, cases: Any = None) -> None:
        self.params, self.cases = dict(params or {}), [dict(one) for one in cases or ()]

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from hydra.core.plugins import Plugins

        self.loader = hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from qllm_exp.config.overrides import combinations, grids

        assert self.launcher is not None
        chosen = [
            list(one)
            for grid in grids(arguments, self.params, self.cases, self.loader)
            for one in combinations(grid, self.loader)
        ]
        returns = self.launcher.launch(chosen, initial_job_idx=0)
        code = getattr(self.launcher, "exit_code", None)  # any other launcher than ours has none
        if code is None:
            code = int(any(one.status == JobStatus.FAILED for one in returns))
        if code:
            sys.exit(code)
        return None
