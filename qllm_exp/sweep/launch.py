"""Run a sweep, from its combinations of overrides to its table and curves: plan it, print the plan, start it, compare the runs."""

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from qllm_exp.config.schema import RunConfig
from qllm_exp.errors import UserError, choose
from qllm_exp.generation.provide import Search
from qllm_exp.results.summary import summarise
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DEAD, FAILED, FINISHED, INTERRUPTED, NEW, PRUNED, QUEUED, RUNNING
from qllm_exp.runs.sweep_directory import RECORD, FailureLimit, Sweep
from qllm_exp.sweep.fast_compose import Overrides
from qllm_exp.sweep.launcher import NEXT_GROUP, Launcher, Work
from qllm_exp.sweep.plan import Plan, make_plan, short_hash
from qllm_exp.sweep.pool import RunOutcome
from qllm_exp.sweep.prepare import PreparedRun
from qllm_exp.sweep.progress import failure_report, python_command
from qllm_exp.sweep.pruning import Rule, searches_of
from qllm_exp.sweep.seed_groups import AUTO, SeedGroups
from qllm_exp.sweep.time_estimate import estimate
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

_TO_START = (NEW, PRUNED, INTERRUPTED, FAILED, DEAD)
MAX_LISTED = 50  # runs that --dry-run lists


@dataclass
class LaunchResult:
    """A sweep that was launched.

    Attributes:
        plan: its plan.
        outcomes: the runs that have ended.
        exit_code: 0 all runs are finished or submitted, 1 a run failed or is dead, 3 some runs are not finished.
    """

    plan: Plan
    outcomes: list[RunOutcome]
    exit_code: int = 0


def launch(
    combinations: Sequence[Overrides],
    compose: Callable[[Overrides], DictConfig],
    explain: Callable[[Exception, Overrides], str],
    launcher: Launcher,
    arguments: Sequence[str],
    is_whole: bool = True,
    search: Search | None = None,
    next_command: Sequence[str] = (),
    only_plan: bool = False,
    entries: Callable[[Plan], dict[str, Any]] = lambda plan: {},
) -> LaunchResult:
    """Plan a sweep, print the plan, run what is not finished, and show the comparison.

    Args:
        combinations: overrides of each run.
        compose: Hydra's function from overrides to a configuration.
        explain: returns the message for an error that Hydra raised for these overrides.
        launcher: where the runs take place.
        arguments: arguments of the command, as typed.
        is_whole: False if these are some runs of a sweep that another Hydra sweeper controls.
        search: as for `make_plan`.
        next_command: as for `Work`.
        only_plan: only plan the runs, with the functions that they need; start none of them.
        entries: returns further entries of the sweep's record, as `Sweep.create` takes them.

    Raises:
        UserError: the sweep cannot start.
    """
    resolve = launcher.device_resolver()

    def announce_generation(plan: Plan) -> None:
        print_plan(plan, launcher)
        log.info("  %s", pending_functions(plan))

    plan = make_plan(combinations, compose, explain, resolve, announce_generation, launcher.memory, search)
    if plan.sweep.dry_run and not is_whole:
        raise UserError("--dry-run needs hydra/sweeper=grid: other sweepers choose their runs one after another.")
    if not is_whole:  # one sweep directory for all runs of the other sweeper
        plan.sweep = replace(plan.sweep, name=plan.sweep.name or f"sweep_{short_hash(shlex.join(arguments))}")
    if plan.generated:
        log.info("%s", _generation_cost(plan.generated))
    if only_plan:
        return LaunchResult(plan, [])
    groups = SeedGroups(plan, combinations) if plan.sweep.seeds == AUTO and not plan.pending else None
    searches = new_searches(plan)
    part = plan
    if groups is not None:
        plan.sweep = replace(plan.sweep, name=plan.name)  # the name is a hash of all runs
        part = groups.needed()
    if not plan.pending:
        print_plan(part, launcher)
    if groups is not None:
        log.info(
            "  seeds: further groups follow while pairs of methods are undecided, %s at most",
            count(len(plan.runs), "run"),
        )
    for name, content in searches.items():
        log.info("  sweep.prune=%s: %s, %s", plan.sweep.prune, name, count(len(content["settings"]), "setting"))
    if plan.sweep.dry_run:
        log.info("--dry-run: nothing was started")
        return LaunchResult(plan, [])
    command = shlex.join(["python", "-m", "qllm_exp", *arguments])
    if groups is None:
        sweep, outcomes, failures = run_plan(plan, launcher, command, next_command, entries(plan))
    else:
        sweep, outcomes, failures = run_groups(groups, launcher, command, arguments)
        part = groups.needed()
    directories = [run.directory for run in part.runs]
    if is_whole:
        conclude(sweep, directories, outcomes, failures, launcher.waits)
    return LaunchResult(plan, outcomes, exit_code(directories, outcomes, launcher.waits))


def run_plan(
    plan: Plan,
    launcher: Launcher,
    command: str,
    next_command: Sequence[str] = (),
    entries: Mapping[str, Any] | None = None,
) -> tuple[Sweep, list[RunOutcome], FailureLimit]:
    """Write the record of a planned sweep, and start the runs that are not finished.

    Args:
        plan: the runs.
        launcher: where the runs take place.
        command: the command, for the record.
        next_command: as for `Work`.
        entries: further entries of the record.

    Returns:
        The sweep, the outcomes of the runs that have ended, and the count of the failed ones.
    """
    names = [run.directory.path.name for run in plan.runs]
    rule = Rule.of(plan.sweep)
    sweep = Sweep.create(
        plan.folder,
        names,
        launcher.options(),
        plan.sweep.max_failures,
        command,
        prune=asdict(rule) if rule else None,
        searches=new_searches(plan),
        **(entries or {}),
    )
    failures = sweep.failure_limit()
    _remove_checkpoints(plan)
    return sweep, _start(launcher, sweep, plan, failures, next_command), failures


def new_searches(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the searches of a plan whose settings are pruned, with those that its sweep has already; {} with sweep.prune=none.

    Raises:
        UserError: a search has too few settings, or its runs are evaluated at no common step.
    """
    rule = Rule.of(plan.sweep)
    if rule is None or plan.pending:
        return {}
    known = Sweep(plan.folder).record.searches if (plan.folder / RECORD).exists() else {}
    return searches_of(plan.runs, rule, known)


def run_groups(
    groups: SeedGroups, launcher: Launcher, command: str, arguments: Sequence[str]
) -> tuple[Sweep, list[RunOutcome], FailureLimit]:
    """Start one group of seeds after another, and write the decisions into the record of the sweep.

    A run that fails is not started again, so no later group of its task starts. A launcher that does not wait starts one group,
    and the command again once its runs have ended; that command, which no user typed, starts new runs only.

    Args:
        groups: the groups.
        launcher: where the runs take place.
        command: the command, for the record.
        arguments: arguments of the command, as typed.

    Returns:
        As `run_plan`.
    """
    plan = groups.plan

    def record(part: Plan) -> Sweep:
        names = [run.directory.path.name for run in part.runs]
        options, decide = launcher.options(), asdict(groups.decide)
        return Sweep.create(plan.folder, names, options, plan.sweep.max_failures, command, decide, groups.report())

    part = groups.needed()
    sweep = record(part)
    failures = sweep.failure_limit()
    _remove_checkpoints(plan)
    outcomes: list[RunOutcome] = []
    started: set[Path] = set()
    while True:
        states = (NEW, PRUNED) if os.environ.get(NEXT_GROUP) else _TO_START
        if launcher.waits:
            states = (*states, RUNNING, QUEUED)
        kept = [
            (run, run_state)
            for run, run_state in zip(part.runs, part.states, strict=True)
            if run_state.state in states and run.directory.path not in started
        ]
        if not kept:
            return record(part), outcomes, failures
        if started:
            print_plan(part, launcher)
        started |= {run.directory.path for run, _ in kept}
        new = replace(part, runs=[run for run, _ in kept], states=[run_state for _, run_state in kept])
        outcomes += _start(launcher, record(part), new, failures, arguments)
        if not launcher.waits:
            return sweep, outcomes, failures
        part = groups.needed()


def _start(
    launcher: Launcher, sweep: Sweep, plan: Plan, failures: FailureLimit, next_command: Sequence[str] = ()
) -> list[RunOutcome]:
    """Start the runs that are not finished, and return the outcomes of those that have ended."""
    runs = {run.directory.path: run for run in plan.runs}

    def create(directory: RunDirectory) -> None:
        run = runs[directory.path]
        sweep_config = replace(run.config.sweep, name=plan.name)
        directory.create(replace(run.config, sweep=sweep_config), run.tfcaf)

    for run in plan.to_run:
        run.directory.withdraw_stop_request()
    directories = [run.directory for run in plan.to_run]
    running = [run.directory for run in plan.runs_in(RUNNING)]
    queued = [run.directory for run in plan.runs_in(QUEUED)]
    if not directories and not (launcher.waits and (running or queued)):
        return []
    device = _device(run.config for run in plan.to_run)
    statuses = {run_state.directory.path: run_state.status for run_state in plan.states}
    return launcher.start(sweep, Work(directories, failures, create, running, queued, device, statuses, next_command))


def exit_code(directories: Sequence[RunDirectory], outcomes: Sequence[RunOutcome], waited: bool) -> int:
    """Return the exit code of a sweep.

    Args:
        directories: directories of the requested runs.
        outcomes: the runs that have ended.
        waited: whether the launcher waited for the runs to end.

    Returns:
        0 if all runs are finished or pruned, or were submitted; 1 if a run failed or is dead; 3 if a run is not finished.
    """
    if any(outcome.failed for outcome in outcomes):
        return 1
    if waited and any(map(_is_unfinished, directories)):
        return 3
    return 0


def _is_unfinished(directory: RunDirectory) -> bool:
    return directory.result() is None and not directory.pruned()


def restart(sweep: Sweep, directories: Sequence[RunDirectory], launcher: Launcher) -> int:
    """Start runs of a sweep whose directories exist, and return the exit code.

    Args:
        sweep: the sweep.
        directories: directories of the runs to start.
        launcher: where the runs take place.

    Raises:
        UserError: nothing can be started.
    """
    launcher.device_resolver()  # raises UserError if nothing can be started from here
    failures = sweep.failure_limit()
    for directory in directories:
        directory.withdraw_stop_request()
    device = _device(directory.read_config() for directory in directories)
    statuses = {directory.path: directory.status() for directory in directories}
    outcomes = launcher.start(sweep, Work(directories, failures, device=device, statuses=statuses))
    conclude(sweep, directories, outcomes, failures, launcher.waits)
    return exit_code(directories, outcomes, launcher.waits)


def _device(runs: Iterable[RunConfig]) -> str:
    """Return 'cuda' if the runs share the GPUs, else 'cpu'."""
    return "cuda" if any(run.device == "cuda" for run in runs) else "cpu"


def print_plan(plan: Plan, launcher: Launcher) -> None:
    """Print the plan: runs by state, combinations left out, an estimate of the time, and for --dry-run the runs."""
    title = "sweep" if plan.pending else f"sweep {plan.folder}"  # the name is a hash of all runs, pending ones included
    log.info("%s: %s", title, plan.counts())
    for line in (*plan.duplicates, *plan.without_effect, plan.other_lengths):
        if line:
            log.info("  %s", line)
    to_run = [*plan.to_run, *plan.waiting]
    progress = [_progress(run) for run in plan.to_run] + [0.0] * len(plan.waiting)
    time_text = estimate(to_run, progress, launcher.max_parallel(_device(run.config for run in to_run)))
    if time_text:
        log.info("  time: %s", time_text)
    if plan.sweep.dry_run:
        for run, run_state in list(zip(plan.runs, plan.states, strict=True))[:MAX_LISTED]:
            log.info("  %-11s %s", run_state.state, run.directory.path.name)
        if len(plan.runs) > MAX_LISTED:
            log.info("  ... and %s", count(len(plan.runs) - MAX_LISTED, "other run"))


def _progress(run: PreparedRun) -> float:
    """Return the fraction of environment steps that are done, from 0 to 1."""
    return min(1.0, _steps(run.directory) / run.config.train.total_steps)


def _steps(directory: RunDirectory) -> int:
    """Return the environment steps that are done."""
    return int(directory.status().get("env_step") or 0)


def conclude(
    sweep: Sweep,
    directories: Sequence[RunDirectory],
    outcomes: Sequence[RunOutcome],
    failures: FailureLimit,
    waited: bool,
) -> None:
    """Print the comparison of the finished runs, and the failed runs with the commands that retry them.

    The comparison has all finished runs of the sweep. What is missing or failed is counted among the runs of this command.

    Args:
        sweep: the sweep.
        directories: directories of the runs of this command; earlier ones may have added others to the sweep.
        outcomes: the runs that have ended.
        failures: counts the failed runs of this command.
        waited: whether the launcher waited for the runs to end.
    """
    with suppress(OSError):  # on a full disk
        sweep.restore_record()
    unfinished = list(filter(_is_unfinished, directories))
    if waited or not unfinished:
        summarise(sweep.path, {directory.path.name for directory in directories})
    pruned = [directory for directory in directories if directory.result() is None and directory.pruned()]
    if pruned:
        missing = (directory.read_config().train.total_steps - _steps(directory) for directory in pruned)
        log.info(
            "%d of %d runs pruned, which saved %s environment steps", len(pruned), len(directories), f"{sum(missing):,}"
        )
    # A full disk was reported once for all runs, and a removed directory has neither a log nor a command to name.
    failed = [run for run in outcomes if run.failed and not run.disk_full and run.directory.config.exists()]
    if failed:
        log.info("%d of %d runs failed:", len(failed), len(directories))
        for outcome in failed:
            log.info("%s", failure_report(outcome.directory, outcome.error, outcome.directory.console))
        log.info("retry all failed runs: %s -m qllm_exp retry %s", python_command(), shlex.quote(str(sweep.path)))
    ended = {outcome.directory.path for outcome in outcomes}
    remaining = sum(directory.path not in ended for directory in unfinished)
    if waited and remaining and not failures.may_start():
        log.info("%s not started: sweep.max_failures=%d was reached", count(remaining, "run"), failures.limit)


def _remove_checkpoints(plan: Plan) -> None:
    """Remove the checkpoints of finished runs whose processes were killed before they could do so."""
    for directory in (run.directory for run in plan.runs_in(FINISHED)):
        if directory.checkpoint.exists() and not directory.owner():
            shutil.rmtree(directory.checkpoint, ignore_errors=True)


def pending_functions(plan: Plan) -> str:
    """Return a line about the functions of a plan that a language model has yet to write."""
    functions, runs = count(len(plan.pending), "function"), count(sum(plan.pending.values()), "run")
    line = f"first, a language model writes {functions} used by {runs}"
    if not plan.searches:
        return line
    of_searches = f"for {plan.searches} of these functions, a search also trains its candidates first"
    return f"{line}; {of_searches}, which the time above leaves out"


def _generation_cost(functions: Sequence[Path]) -> str:
    """Return the number of generated functions, and the calls, tokens and US dollars that they cost."""
    from qllm_exp.credit.stored_function import load

    costs = [load(path).cost for path in functions]
    calls = sum(cost["calls"] for cost in costs)
    tokens = sum(cost["tokens_in"] + cost["tokens_out"] for cost in costs)
    prices = [cost["usd"] for cost in costs]
    price = "price unknown" if None in prices else f"{sum(prices):.4f} USD"
    estimated = " (estimated)" if any("usage" in cost for cost in costs) else ""  # by the model's tokenizer
    return f"credit-assignment functions generated: {len(costs)}, {count(calls, 'call')}, {tokens:,} tokens{estimated}, {price}"


def make_launcher(options: dict[str, Any]) -> Launcher:
    """Return the launcher that the record of a sweep describes.

    Args:
        options: 'name' of the launcher (local or slurm), and its options.

    Raises:
        UserError: an unknown launcher, or an option or value that it does not accept.
    """
    from qllm_exp.sweep.local import Local
    from qllm_exp.sweep.slurm import Slurm

    arguments = dict(options)
    name = choose("launcher", str(arguments.pop("name", "local")), ("local", "slurm"))
    launcher_class: type[Slurm] | type[Local] = Slurm if name == "slurm" else Local
    for option in arguments:
        choose(f"launcher={name}: option", option, [field.name for field in fields(launcher_class)])
    launcher: Launcher = launcher_class(**arguments)
    return launcher
