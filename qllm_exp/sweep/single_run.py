"""One run in this process, from its configuration to its table and plot."""

import logging
import sys

from omegaconf import DictConfig

from qllm_exp.errors import UserError
from qllm_exp.experiment import FAILED, INTERRUPTED, execute
from qllm_exp.results.summary import summarise
from qllm_exp.sweep.launch import say
from qllm_exp.sweep.local import Local
from qllm_exp.sweep.plan import make_plan

log = logging.getLogger(__name__)


def run_one(composed: DictConfig) -> float:
    """Run it, or say that it is finished already. Returns the final evaluation return; nan after --dry-run."""
    from qllm_exp.training.trainer import Interrupted

    plan = make_plan([()], lambda _: composed, lambda error, _: str(error))
    if plan.asked.dry_run:
        say(plan, Local())
        log.info("--dry-run: nothing was started")
        return float("nan")
    (one,) = plan.runs
    one.directory.create(one.run, one.tfcaf)
    one.directory.stop_request.unlink(missing_ok=True)
    log.info("run folder: %s", one.directory.path)
    try:
        result = execute(one.directory)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except Interrupted:
        log.info("stopped at a checkpoint; the same command goes on from there")
        sys.exit(INTERRUPTED)
    summarise(one.directory.path)
    return result.final_return
