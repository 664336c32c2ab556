"""Train a single run in this process, from its configuration to its table and curves."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from qllm_exp.config.schema import RunConfig
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.experiment import FAILED as EXIT_FAILED
from qllm_exp.experiment import INTERRUPTED as EXIT_INTERRUPTED
from qllm_exp.experiment import execute
from qllm_exp.results.summary import summarise
from qllm_exp.sweep.launch import print_plan
from qllm_exp.sweep.launcher import Launcher
from qllm_exp.sweep.local import Local
from qllm_exp.sweep.plan import make_plan
from qllm_exp.sweep.pruning import NONE
from qllm_exp.sweep.seed_groups import AUTO
from qllm_exp.utils.text import inert_lines

log = logging.getLogger(__name__)


def run_one(composed: DictConfig, search: Callable[[RunConfig, Launcher], StoredFunction]) -> float:
    """Train a run. A finished run is not trained again; an interrupted one is resumed.

    Exits with FAILED if the run fails, with INTERRUPTED if it is stopped at a checkpoint.

    Args:
        composed: the configuration, as Hydra composed it.
        search: searches for the function of a configuration, with a launcher for the trainings.

    Returns:
        The return of the last evaluation; NaN after --dry-run.

    Raises:
        UserError: the run cannot start.
    """
    from qllm_exp.training.trainer import Interrupted

    if composed.sweep.seeds == AUTO:
        raise UserError(
            "sweep.seeds=auto is for sweeps: add -m, and several methods to compare, e.g. mixer=tfcaf,qmix."
        )
    if composed.sweep.tune.trials:
        raise UserError("sweep.tune is for sweeps: add -m, as in qllm-exp -m experiment=tuned.")
    if composed.sweep.prune != NONE:
        raise UserError(
            f"sweep.prune={composed.sweep.prune} compares the settings of a sweep: add -m, and values, e.g. "
            "train.learning_rate=1e-4,3e-4,1e-3,3e-3."
        )
    typed: Any = ()
    if HydraConfig.initialized():
        typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    plan = make_plan(
        [tuple(typed)], lambda _: composed, lambda error, _: str(error), search=lambda run: search(run, Local())
    )
    if plan.sweep.dry_run:
        print_plan(plan, Local())
        log.info("--dry-run: nothing was started")
        return float("nan")
    for line in plan.without_effect:
        log.info("%s", line)
    (run,) = plan.runs
    run.directory.create(run.config, run.tfcaf)
    run.directory.withdraw_stop_request()
    log.info("run directory: %s", run.directory.path)
    if plan.other_lengths:
        log.info("  %s", plan.other_lengths)
    try:
        result = execute(run.directory)
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except Interrupted:
        log.info("interrupted at a checkpoint; the same command resumes from there")
        sys.exit(EXIT_INTERRUPTED)
    summarise(run.directory.path)
    return result.final_return
