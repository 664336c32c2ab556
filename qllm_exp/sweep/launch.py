"""A sweep from the list of combinations to its table and plot: plan, say, start, compare."""

import logging
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from qllm_exp.config import overrides
from qllm_exp.config.schema import RunConfig
from qllm_exp.errors import UserError, choose
from qllm_exp.results.summary import summarise
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DONE, QUEUED, RUNNING
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.fast_compose import Overrides
from qllm_exp.sweep.launcher import Launcher, Work
from qllm_exp.sweep.plan import Plan, digits, make_plan
from qllm_exp.sweep.pool import Ended
from qllm_exp.sweep.prepare import Prepared
from qllm_exp.sweep.progress import failure, python
from qllm_exp.sweep.time_estimate import estimate
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)


@dataclass
class Launched:
    """A sweep that was started. `exit_code`: 0 all done or submitted, 1 some failed, 3 some are not done."""

    plan: Plan
    ended: list[Ended]
    exit_code: int = 0


def launch(
    combinations: Sequence[Overrides],
    compose: Callable[[Overrides], DictConfig],
    explain: Callable[[Exception, Overrides], str],
    launcher: Launcher,
    whole: bool = True,
) -> Launched:
    """Plan, say what will be done, run what is not done, and show the comparison.

    Args:
        whole: False for a part of a sweep that another sweeper leads.
    """
    settle = launcher.settle()

    def say_what_is_asked(plan: Plan) -> None:
        say(plan, launcher)
        functions, runs = len(plan.pending), sum(plan.pending.values())
        log.info("  a language model is to write %s, for %s, first", count(functions, "function"), count(runs, "run"))

    plan = make_plan(combinations, compose, explain, settle, say_what_is_asked)
    if plan.asked.dry_run and not whole:
        raise UserError("--dry-run is for sweeps of hydra/sweeper=grid: another sweeper decides as it goes.")
    if not whole:  # one folder for all its parts
        plan.asked = replace(plan.asked, name=plan.asked.name or f"sweep_{digits(shlex.join(overrides.typed))}")
    if plan.generated:
        log.info("%s", _spent(plan.generated))
    if not plan.pending:
        say(plan, launcher)
    if plan.asked.dry_run:
        log.info("--dry-run: nothing was started")
        return Launched(plan, [])
    runs = {one.directory.path: one for one in plan.runs}
    named = replace(plan.asked, name=plan.name)
    sweep = Sweep.start(plan.folder, [path.name for path in runs], launcher.options(), plan.asked.max_failures)
    sweep.forget_failures()
    for one in plan.those(DONE):
        _tidy(one.directory)

    def create(directory: RunDirectory) -> None:
        one = runs[directory.path]
        directory.create(replace(one.run, sweep=named), one.tfcaf)

    ended = _start(launcher, sweep, plan, create)
    if whole:
        conclude(sweep, ended, launcher.waits)
    return Launched(plan, ended, exit_code([one.directory for one in plan.runs], ended, launcher.waits))


def _start(launcher: Launcher, sweep: Sweep, plan: Plan, create: Callable[[RunDirectory], None]) -> list[Ended]:
    for one in plan.to_run:
        one.directory.stop_request.unlink(missing_ok=True)
    groups = (plan.to_run, plan.those(RUNNING), plan.those(QUEUED))
    directories, running, queued = ([one.directory for one in group] for group in groups)
    if not directories and not (launcher.waits and (running or queued)):
        return []
    return launcher.start(sweep, Work(directories, create, running, queued, _device(one.run for one in plan.to_run)))


def exit_code(asked: Sequence[RunDirectory], ended: Sequence[Ended], waited: bool) -> int:
    """0 when all is done, or was submitted and left alone; 1 when a run failed; 3 when one is not done."""
    if any(one.failed for one in ended):
        return 1
    return 3 if waited and any(one.result() is None for one in asked) else 0


def again(sweep: Sweep, directories: Sequence[RunDirectory], launcher: Launcher) -> int:
    """Start runs of a sweep whose folders are there. The exit code."""
    launcher.settle()
    sweep.forget_failures()
    for directory in directories:
        directory.stop_request.unlink(missing_ok=True)
    device = _device(directory.read_config() for directory in directories)
    ended = launcher.start(sweep, Work(directories, device=device))
    conclude(sweep, ended, launcher.waits)
    return exit_code(directories, ended, launcher.waits)


def _device(runs: Iterable[RunConfig]) -> str:
    """'cuda' when GPUs are to be handed round among the runs."""
    return "cuda" if any(run.device == "cuda" for run in runs) else "cpu"


def say(plan: Plan, launcher: Launcher) -> None:
    """Print the plan."""
    log.info("%s: %s", "sweep" if plan.pending else f"sweep {plan.folder}", plan.counts())
    for line in plan.collapsed:
        log.info("  %s", line)
    todo = plan.to_run
    shares = [_share(one) for one in todo]
    guess = estimate(todo, shares, launcher.at_a_time(_device(one.run for one in todo)))
    if guess:
        log.info("  time: %s", guess)


def _share(one: Prepared) -> float:
    status = one.directory.status()
    return min(1.0, (status.get("env_step") or 0) / one.run.train.total_steps)


def conclude(sweep: Sweep, ended: Sequence[Ended], waited: bool) -> None:
    """The comparison of the finished runs, and what failed, with the commands that run it again."""
    finished = [one for one in sweep.directories if one.result() is not None]
    if finished and (waited or len(finished) == len(sweep.record.runs)):
        summarise(sweep.path)
    failed = [one for one in ended if one.failed]
    if failed:
        log.info("%d of %d runs failed:", len(failed), len(sweep.record.runs))
    for one in failed:
        log.info("%s", failure(one.directory, one.error, one.directory.console))
    if failed:
        log.info("all of these again: %s -m launch.retry %s", python(), shlex.quote(str(sweep.path)))
    left = len(sweep.record.runs) - len(finished) - len(failed)
    if waited and left and not sweep.may_start():
        log.info("%d runs were not started, since %d had failed (sweep.max_failures)", left, sweep.record.max_failures)


def _tidy(directory: RunDirectory) -> None:
    """Remove the checkpoint of a finished run whose process was killed before it could."""
    if directory.checkpoint.exists() and not directory.owner():
        shutil.rmtree(directory.checkpoint, ignore_errors=True)


def _spent(functions: Sequence[Path]) -> str:
    """What the language models were asked for, in words."""
    from qllm_exp.credit.stored_function import load

    costs = [load(path).cost for path in functions]
    prices = [cost["usd"] for cost in costs]
    tokens = sum(cost["tokens_in"] + cost["tokens_out"] for cost in costs)
    price = "without a known price" if None in prices else f"{sum(prices):.4f} USD"
    return (
        f"credit-assignment functions generated: {len(costs)}, "
        f"{count(sum(cost['calls'] for cost in costs), 'call')}, {tokens:,} tokens, {price}"
    )


def launcher_from(options: dict[str, Any]) -> Launcher:
    """The launcher that a sweep's record names. UserError for values that it does not take."""
    from qllm_exp.sweep.local import Local
    from qllm_exp.sweep.slurm import Slurm

    given = dict(options)
    name = choose("launcher", str(given.pop("name", "local")), ("local", "slurm"))
    try:
        made: Launcher = Slurm(**given) if name == "slurm" else Local(**given)
    except TypeError as error:
        raise UserError(f"The launcher {name} does not take that: {str(error).rpartition('__init__() ')[2]}.") from None
    return made
