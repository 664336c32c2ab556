"""Plan a sweep before anything starts: check every combination, name every run, and find the runs that are finished."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from operator import attrgetter
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import schema
from qllm_exp.config.device import DeviceResolver, resolve_device
from qllm_exp.config.load import run_name, unused_in
from qllm_exp.errors import UserError
from qllm_exp.generation.provide import Search
from qllm_exp.runs.dotted_keys import flatten
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import FINISHED, NEW, PRUNED, QUEUED, RUNNING, RunState, state_of
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.sweep.fast_compose import Composer, Overrides, varying_keys
from qllm_exp.sweep.prepare import MemoryReader, PreparedRun, check, missing_function, prepare
from qllm_exp.utils.memory import available_memory
from qllm_exp.utils.text import count

MAX_ERRORS = 20  # distinct errors that a message shows


@dataclass
class Plan:
    """The runs of a sweep, each once.

    Attributes:
        runs: the runs, in the order of the command line.
        states: the state of each run.
        run_index: for each combination of overrides, the index of its run.
        duplicates: one line for each set of keys that makes no difference to some runs.
        without_effect: one line for each option that was typed and has no effect in some runs.
        other_lengths: a line on new runs of which another length is finished; '' if there are none.
        pending: files of the functions that a language model has yet to write, and the number of combinations that need each.
        waiting: the runs that need them; their directories have no hash of a function in their names.
        searches: number of them that a search looks for, which trains its candidates.
        generated: files of the functions that a language model has written for this sweep.
        sweep: options of the sweep.
        dir: the folder for run directories and sweep directories.
    """

    runs: list[PreparedRun] = field(default_factory=list)
    states: list[RunState] = field(default_factory=list)
    run_index: list[int] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    other_lengths: str = ""
    pending: dict[Path, int] = field(default_factory=dict)
    waiting: list[PreparedRun] = field(default_factory=list)
    searches: int = 0
    generated: list[Path] = field(default_factory=list)
    sweep: schema.SweepConfig = field(default_factory=schema.SweepConfig)
    dir: Path = Path("runs")

    def runs_in(self, *states: str) -> list[PreparedRun]:
        """Return the runs that are in one of the given states."""
        return [run for run, run_state in zip(self.runs, self.states, strict=True) if run_state.state in states]

    @property
    def to_run(self) -> list[PreparedRun]:
        """The runs to start: those that are not finished, running or queued. A sweep that prunes leaves pruned runs alone."""
        skipped = (FINISHED, RUNNING, QUEUED) if self.sweep.prune == "none" else (FINISHED, PRUNED, RUNNING, QUEUED)
        return [run for run, run_state in zip(self.runs, self.states, strict=True) if run_state.state not in skipped]

    @property
    def name(self) -> str:
        """Name of the sweep: `sweep.name`, or a hash of its runs, so that the same command continues the same sweep."""
        names = "\n".join(sorted(run.directory.path.name for run in self.runs))
        return self.sweep.name or f"sweep_{short_hash(names)}"

    @property
    def folder(self) -> Path:
        """Directory of the sweep."""
        return self.dir / self.name

    def counts(self) -> str:
        """Return the number of runs by state: '30 runs: 8 finished, 2 running, 4 queued, 1 pruned, 15 to run'."""
        pending = sum(self.pending.values())
        times = Counter(run_state.state for run_state in self.states)
        to_run = len(self.to_run) + pending
        present = f"{times[FINISHED]} finished, {times[RUNNING]} running, {times[QUEUED]} queued"
        if times[PRUNED] and self.sweep.prune != "none":
            present += f", {times[PRUNED]} pruned"
        return f"{count(len(self.runs) + pending, 'run')}: {present}, {to_run} to run"


def short_hash(text: str) -> str:
    """Return the first eight hexadecimal digits of a text's SHA-256 hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_plan(
    combinations: Sequence[Overrides],
    compose: Callable[[Overrides], DictConfig],
    explain: Callable[[Exception, Overrides], str],
    resolve: DeviceResolver = resolve_device,
    before_generation: Callable[[Plan], None] = lambda plan: None,
    memory: MemoryReader = available_memory,
    search: Search | None = None,
) -> Plan:
    """Compose and check every combination, then provide the credit-assignment functions that the runs need.

    All errors are found before a language model is called.

    Args:
        combinations: overrides of each run.
        compose: Hydra's function from overrides to a configuration.
        explain: returns the message for an error that Hydra raised for these overrides.
        resolve: maps a configured device to the device of the machine that will train the run.
        before_generation: called before a language model is called, with the plan of the runs that need no new function.
        memory: returns the memory of the machine that will train a run.
        search: searches for a function, with tfcaf.search.method=best_of or evolve.

    Raises:
        UserError: some runs cannot start; the message lists all errors.
    """
    checked: list[schema.RunConfig] = []
    errors: dict[str, list[str]] = {}  # message, and the combinations that it is about
    composer = Composer(compose, combinations)
    for overrides in combinations:
        try:
            run = composer(overrides)
            checked.append(check(run, resolve, memory))
            _check_sweep_name(run)
        except UserError as error:
            errors.setdefault(str(error), []).append(" ".join(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            errors.setdefault(explain(error, overrides), []).append(" ".join(overrides))
    if errors:
        raise UserError(_error_message(errors, len(combinations)))
    _check_common_values(checked)
    queue = Queue.query(Path(checked[0].dir))
    missing = [missing_function(run) for run in checked]
    if any(missing):
        is_ready = [path is None for path in missing]
        plan = _plan_of(
            [overrides for overrides, ready in zip(combinations, is_ready, strict=True) if ready],
            [run for run, ready in zip(checked, is_ready, strict=True) if ready],
            queue,
            checked[0],
        )
        plan.pending = Counter(path for path in missing if path is not None)
        plan.waiting = [
            PreparedRun(run, RunDirectory(plan.dir / run_name(run, None)), None, None)
            for run, ready in zip(checked, is_ready, strict=True)
            if not ready
        ]
        plan.searches = len(
            {path for path, run in zip(missing, checked, strict=True) if path and run.tfcaf.search.method != "none"}
        )
        before_generation(plan)
        if plan.sweep.dry_run:
            return plan
    plan = _plan_of(combinations, checked, queue, checked[0], search)
    plan.generated = list(dict.fromkeys(path for path in missing if path is not None))
    return plan


def plan_configs(
    configs: Sequence[schema.RunConfig],
    resolve: DeviceResolver = resolve_device,
    memory: MemoryReader = available_memory,
) -> Plan:
    """Check configurations that need no new function, and plan them as one sweep.

    Args:
        configs: at least one configuration; their `sweep` and `dir` agree.
        resolve: as for `make_plan`.
        memory: as for `make_plan`.

    Raises:
        UserError: a run cannot start.
    """
    checked = [check(config, resolve, memory) for config in configs]
    return _plan_of([()] * len(checked), checked, Queue.query(Path(checked[0].dir)), checked[0])


def _plan_of(
    combinations: Sequence[Overrides],
    checked: Sequence[schema.RunConfig],
    queue: Queue,
    first: schema.RunConfig,
    search: Search | None = None,
) -> Plan:
    """Return the plan of checked runs. A missing credit-assignment function is generated here, once.

    Args:
        combinations: overrides of each run.
        checked: configuration of each run.
        queue: the jobs that Slurm has.
        first: the configuration whose `sweep` and `dir` hold for the whole sweep.
        search: as for `make_plan`.
    """
    plan = Plan(sweep=first.sweep, dir=Path(first.dir))
    index_of: dict[Path, int] = {}
    first_overrides: list[Overrides] = []  # of each run
    same: list[
        tuple[Overrides, Overrides]
    ] = []  # pairs of combinations that describe the same run, the later one first
    for overrides, config in zip(combinations, checked, strict=True):
        run = prepare(config, search)
        path = run.directory.path
        if path in index_of:
            same.append((overrides, first_overrides[index_of[path]]))
        else:
            index_of[path] = len(plan.runs)
            first_overrides.append(overrides)
            plan.runs.append(run)
        plan.run_index.append(index_of[path])
    plan.duplicates = _describe_duplicates(same, varying_keys(combinations))
    plan.without_effect = _describe_options_without_effect(combinations, checked)
    plan.states = [state_of(run.directory, queue) for run in plan.runs]
    plan.other_lengths = _describe_other_lengths(plan)
    return plan


def _describe_other_lengths(plan: Plan) -> str:
    """Return a line on the new runs of which a run of another length is finished, since they do not continue it."""
    new = plan.runs_in(NEW)
    try:
        names = os.listdir(plan.dir) if new else []
    except OSError:  # the folder does not exist yet
        return ""
    by_prefix: dict[str, list[str]] = {}
    for name in names:
        by_prefix.setdefault(name.rpartition("_")[0], []).append(name)
    examples = []
    total_steps = cache(lambda name: RunDirectory(plan.dir / name).status().get("total_steps"))
    for run in new:
        for name in by_prefix.get(run.directory.path.name.rpartition("_")[0], ()):
            steps = total_steps(name)
            if steps != run.config.train.total_steps and _finished_with(run, steps, plan.dir / name):
                examples.append(f"{name}, {steps:,} steps")
                break
    if not examples:
        return ""
    subject = "1 run begins" if len(examples) == 1 else f"{len(examples)} runs begin"
    return (
        f"{subject} anew, though the same with another length is finished ({examples[0]}): train.total_steps is part of what "
        "defines a run"
    )


def _finished_with(run: PreparedRun, steps: float | None, path: Path) -> bool:
    """Whether the directory is that of the same run with another number of steps, and is finished."""
    if not isinstance(steps, int):
        return False
    train = replace(run.config.train, total_steps=steps)
    name = run_name(replace(run.config, train=train), run.tfcaf_hash)
    return name == path.name and RunDirectory(path).result() is not None


def _check_common_values(runs: Sequence[schema.RunConfig]) -> None:
    """Raise UserError if runs of one sweep differ in an option that holds for the whole sweep."""
    common = [f"sweep.{name}" for name in flatten(asdict(schema.SweepConfig())) if name not in ("search", "tags")]
    for key in ("dir", *common):
        values = list(dict.fromkeys(attrgetter(key)(run) for run in runs))
        if len(values) > 1:
            raise UserError(f"{key} must have a single value in a sweep, not {', '.join(map(str, values))}.")


def _check_sweep_name(run: schema.RunConfig) -> None:
    name = run.sweep.name
    if not re.fullmatch(r"[\w.-]*", name) or name.startswith((".", "-")):
        raise UserError(
            f"sweep.name={name!r} is not a valid directory name. Use letters, digits, '_', '-' and '.'; "
            "the first character must not be '-' or '.'."
        )


def _describe_options_without_effect(combinations: Sequence[Overrides], runs: Sequence[schema.RunConfig]) -> list[str]:
    """Return one line for each typed option that has no effect: in how many combinations.

    Args:
        combinations: overrides of each run.
        runs: configuration of each run.
    """
    times = Counter(
        key
        for overrides, run in zip(combinations, runs, strict=True)
        for key in {override.partition("=")[0].lstrip("+") for override in overrides} & unused_in(run)
    )
    return [
        f"{key} has no effect with the other options of {f'{number} of {len(runs)} combinations' if len(runs) > 1 else 'the run'}"
        for key, number in times.items()
    ]


def _describe_duplicates(same: Sequence[tuple[Overrides, Overrides]], varying: set[str]) -> list[str]:
    """Return one line for each set of keys that makes no difference: how many combinations, and an example.

    Args:
        same: pairs of combinations that describe the same run, the later one first.
        varying: keys whose values differ among the combinations.
    """
    groups: dict[tuple[str, ...], list[tuple[Overrides, Overrides]]] = {}
    for later, earlier in same:
        keys = tuple(override.partition("=")[0] for override in later if override not in earlier)
        groups.setdefault(keys, []).append((later, earlier))
    return [_describe_group(keys, pairs, varying) for keys, pairs in groups.items()]


def _describe_group(keys: tuple[str, ...], pairs: Sequence[tuple[Overrides, Overrides]], varying: set[str]) -> str:
    combinations = count(len(pairs), "combination")
    later, earlier = pairs[0]
    common = " ".join(override for override in later if override in earlier and override.partition("=")[0] in varying)
    if not keys:
        return f"{combinations} repeated: {common}" if common else f"{combinations} repeated"
    left_out = " ".join(override for override in later if override not in earlier)
    kept = " ".join(override for override in earlier if override not in later) or "the one without it"
    example = f", e.g. with {common}" if common else ""
    return (
        f"{combinations} left out: {', '.join(keys)} makes no difference there "
        f"({left_out} is the same run as {kept}{example})"
    )


def _error_message(errors: Mapping[str, Sequence[str]], total: int) -> str:
    """Return the message that lists all errors of a sweep.

    Args:
        errors: each message, and the combinations that it is about.
        total: number of combinations.
    """
    if total == 1:
        return next(iter(errors))
    affected = sum(map(len, errors.values()))
    lines = [f"{affected} of the {total} runs of this sweep cannot start, so nothing was started:"]
    for message, combinations in list(errors.items())[:MAX_ERRORS]:
        more = f" (and {len(combinations) - 1} more)" if len(combinations) > 1 else ""
        lines.append(f"  {message}\n    in: {combinations[0]}{more}")
    if len(errors) > MAX_ERRORS:
        lines.append(f"  ... and {count(len(errors) - MAX_ERRORS, 'other error')}")
    return "\n".join(lines)
