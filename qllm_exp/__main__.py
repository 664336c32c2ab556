"""`python -m qllm_exp [-m] [OVERRIDE ...]`: compose the configuration, check it, run it, show what came out."""

import logging
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import overrides
from qllm_exp.config.compose import explain
from qllm_exp.config.registry import CONF
from qllm_exp.errors import RunFailed, UserError


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(composed: DictConfig) -> float:
    """One run in this process. Returns the final evaluation return, so that any Hydra sweeper can optimise it."""
    from qllm_exp.sweep.single_run import run_one

    try:
        overrides.check_one_run(HydraConfig.get())
        return run_one(composed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunFailed) else 2)


def main() -> int:
    """Exit codes: 0 all done, 1 a run failed, 2 nothing was started, 3 stopped at a checkpoint."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    try:
        overrides.typed[:] = sys.argv[1:]
        sys.argv[1:] = overrides.arrange([overrides.expand_ranges(argument) for argument in sys.argv[1:]])
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    except KeyboardInterrupt:  # while the runs were planned; runs in progress end at a checkpoint
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 3
    except (HydraException, OmegaConfBaseException) as error:
        typed = [a for a in sys.argv[1:] if not a.startswith("-")]
        print(f"error: {explain(error, typed, CONF)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
