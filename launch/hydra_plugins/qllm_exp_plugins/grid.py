"""Hydra sweeper `grid`: every combination of the values given, planned as a whole. Loaded at every start, so it imports little."""

import sys
from typing import Any

from hydra.plugins.sweeper import Sweeper


class GridSweeper(Sweeper):
    """Expands ranges and lists and hands all combinations to the launcher at once."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from hydra.core.plugins import Plugins

        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from qllm_exp.cli import combinations

        assert self.launcher is not None
        returns = self.launcher.launch([list(one) for one in combinations(arguments)], initial_job_idx=0)
        if any(one.status.name == "FAILED" for one in returns):
            sys.exit(1)
        return None
