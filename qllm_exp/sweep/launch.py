"""A planned sweep on this machine, from the list of combinations to its table and plot."""

import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from qllm_exp.experiment import INTERRUPTED
from qllm_exp.results.summary import summarise
from qllm_exp.sweep import local
from qllm_exp.sweep.plan import Overrides, Plan, make_plan

log = logging.getLogger(__name__)


def launch(
    combinations: Sequence[Overrides],
    compose: Callable[[Overrides], DictConfig],
    explain: Callable[[Exception, Overrides], str],
    n_jobs: int,
) -> tuple[Plan, list[local.Ended]]:
    """Plan, say what will be done, run what is not done, and show the comparison.

    Exits with INTERRUPTED after Ctrl-C.
    """
    plan = make_plan(combinations, compose, explain)
    same = f" ({plan.collapsed} combinations describe the same run as another)" if plan.collapsed else ""
    log.info(
        "sweep of %d runs%s: %d finished already, %d to run", len(plan.runs), same, len(plan.done), len(plan.to_run)
    )
    if plan.generated:
        log.info("%s", _spent(plan.generated))
    try:
        ended = local.run_all(plan.to_run, n_jobs)
    except local.Interrupt:
        log.info("stopped; the same command goes on from the checkpoints")
        sys.exit(INTERRUPTED)
    finished = [one.directory.path for one in plan.done]
    if finished:
        summarise(finished, plan.folder())
    failed = [one for one in ended if one.error]
    if failed:
        log.info("%d of %d runs failed:", len(failed), len(plan.runs))
    for one in failed:
        again = shlex.join([sys.executable, "-m", "qllm_exp.experiment", str(one.directory.path)])
        log.info(
            "  %s\n    %s\n    log: %s\n    again: %s", one.directory.path.name, one.error, one.directory.log, again
        )
    return plan, ended


def _spent(functions: Sequence[Path]) -> str:
    """What the language models were asked for, in words."""
    from qllm_exp.tfcaf.entry import load

    costs = [load(path).cost for path in functions]
    prices = [cost["usd"] for cost in costs]
    tokens = sum(cost["tokens_in"] + cost["tokens_out"] for cost in costs)
    price = "without a known price" if None in prices else f"{sum(prices):.4f} USD"
    return (
        f"credit-assignment functions generated: {len(costs)}, "
        f"{sum(cost['calls'] for cost in costs)} calls, {tokens:,} tokens, {price}"
    )
