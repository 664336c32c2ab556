"""One run in this process, from a checked configuration to its table and plot."""

import logging
import sys

from qllm_exp import schema
from qllm_exp.errors import UserError
from qllm_exp.experiment import FAILED, INTERRUPTED, execute
from qllm_exp.preparation import prepare
from qllm_exp.results.summary import summarise

log = logging.getLogger(__name__)


def run_one(run: schema.Run) -> float:
    """Run it, or say that it is finished already. Returns the final evaluation return."""
    from qllm_exp.training.trainer import Interrupted

    ready = prepare(run)
    ready.directory.create(ready.run, ready.tfcaf)
    log.info("run folder: %s", ready.directory.path)
    try:
        result = execute(ready.directory)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except Interrupted:
        log.info("stopped at a checkpoint; the same command goes on from there")
        sys.exit(INTERRUPTED)
    summarise([ready.directory.path], ready.directory.path)
    return result.final_return
