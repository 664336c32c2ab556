"""Collects runs from directories: finished runs as records, unfinished runs with their state."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qllm_exp.config.load import method_name, parse_method_name
from qllm_exp.config.schema import SEARCH_SEEDS
from qllm_exp.errors import UserError, nearest
from qllm_exp.results.records import keys, other_programs
from qllm_exp.results.records.method_names import name_methods
from qllm_exp.results.records.reader import EVALUATION_EVERY, FUNCTION, Method, Reader, Record
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DEAD, FAILED, FINISHED, INTERRUPTED, NEW, PRUNED, QUEUED, RUNNING, state_of
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.runs.sweep_directory import RECORD, Sweep, run_folders, sweeps_in
from qllm_exp.utils.text import count

__all__ = ["Collection", "Record", "UnfinishedRun", "collect", "filter_runs"]

_STATE_PRIORITY = (RUNNING, QUEUED, PRUNED, INTERRUPTED, FAILED, DEAD, NEW)  # of two copies, the earlier state counts
_MAX_VALUES = 12  # values listed in an error message


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without a result.

    Attributes:
        path: the run directory; it need not exist.
        task: as in `Record`; from the directory's name if there is no configuration, '' if unknown.
        method: algorithm and mixer alone; from the directory's name if there is no configuration, '' if unknown.
        seed: seed of the run; None if unknown.
        state: 'running', 'queued', 'interrupted', 'pruned', 'failed', 'dead' or 'new'.
        reason: details about the state; may be empty.
        settings: as in `Record`, without what only a finished run has; {} if there is no configuration.
        program: as in `Record`.
    """

    path: Path
    task: str
    method: str
    seed: int | None
    state: str
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    program: str = ""

    @property
    def name(self) -> str:
        """As in `Record`."""
        return "/".join(self.path.parts[-2:]) if self.program else self.path.name

    def __str__(self) -> str:
        return f"{self.name}: {self.state}: {self.reason}" if self.reason else f"{self.name}: {self.state}"


@dataclass(frozen=True)
class Collection:
    """Runs of some directories, in the order in which they were found.

    Attributes:
        finished: records of the finished runs.
        unfinished: all other runs.
        decisions: lines on what sweep.seeds=auto or sweep.tune has decided, and on runs that are left out.
    """

    finished: list[Record]
    unfinished: list[UnfinishedRun]
    decisions: list[str] = field(default_factory=list)

    def counts(self) -> str:
        """Return '30 runs: 27 finished, 1 failed, 2 running'."""
        total = len(self.finished) + len(self.unfinished)
        state_counts = Counter(run.state for run in self.unfinished)
        unfinished = "".join(f", {number} {state}" for state, number in sorted(state_counts.items()))
        return f"{count(total, 'run')}: {len(self.finished)} finished{unfinished}"


def collect(paths: Iterable[Path], queue: Queue | None = None) -> Collection:
    """Collect the runs of directories, each run once.

    A run is identified by the name of its directory, so directories from several machines can be merged: if a run is found in
    two places, the finished copy counts. Runs that differ only in the evaluation interval are one method, unless a seed exists
    with both intervals.

    Args:
        paths: directories of runs, of sweeps (the runs that sweep.json lists, beside it), or with many of either; or results of
            other programs (`other_programs.read`).
        queue: jobs of the cluster (`Queue.query`). None: Slurm is not asked, and a submitted run counts as queued.

    Raises:
        UserError: a path holds no run; a run cannot be read; two copies of a run disagree; or a seed of a method exists under
            two names (an interval would count it twice).
    """
    reader = Reader()
    records: list[Record] = []
    methods: list[Method] = []
    unfinished: list[UnfinishedRun] = []
    own_paths: list[Path] = []
    for path in dict.fromkeys(paths):
        external_runs = other_programs.read(path)
        if external_runs is None:
            own_paths.append(path)
            continue
        for run, method in external_runs:
            if run.state == FINISHED:
                records.append(other_programs.make_record(run, method))
                methods.append(method)
            else:
                external = UnfinishedRun(
                    run.path, method.task, method.base, run.seed, run.state, run.reason, method.settings, run.program
                )
                unfinished.append(external)
    for copies in _run_copies(own_paths):
        finished = [result for path in copies if (result := reader.finished(path)) is not None]
        if finished:
            record, method = finished[0]
            for other_record, other_method in finished[1:]:
                _check_equal(record, method, other_record, other_method)
            records.append(record)
            methods.append(method)
        else:
            unfinished.append(min((_unfinished_run(path, reader, queue) for path in copies), key=_copy_priority))
    names = name_methods(_split_by_evaluation_interval(records, methods))
    named = [
        replace(record, method=name, differs=differs) for record, (name, differs) in zip(records, names, strict=True)
    ]
    sweeps = _sweeps(own_paths)
    named = _labelled(named, methods, sweeps)
    _check_seeds(named)
    decisions = [line for sweep in sweeps for line in sweep.record.decisions]
    unified = _unify_task_names([method.task for method in methods], unfinished)
    return _without_searches(Collection(named, unified, decisions))


def _labelled(records: Sequence[Record], methods: Sequence[Method], sweeps: Sequence[Sweep]) -> list[Record]:
    """Return the records, those of a sweep with labels as methods 'qmix fixed' and 'qmix tuned'; once for each label.

    Args:
        records: records of all runs.
        methods: the method of each.
        sweeps: the sweeps that were collected.
    """
    labels: dict[str, list[str]] = {}
    for sweep in sweeps:
        for label, names in sweep.record.labels.items():
            for name in names:
                labels[name] = list(dict.fromkeys([*labels.get(name, ()), label]))
    labelled = []
    for record, method in zip(records, methods, strict=True):
        names = [f"{method.base} {label}" for label in labels.get(record.name, ())]
        labelled += [replace(record, method=name) for name in names] or [record]
    return labelled


def _without_searches(collection: Collection) -> Collection:
    """Return the runs without those by which settings or functions were chosen, unless there are no others."""
    finished = [record for record in collection.finished if record.program or record.seed not in SEARCH_SEEDS]
    if not finished or len(finished) == len(collection.finished):
        return collection
    left_out = count(len(collection.finished) - len(finished), "run")
    line = f"Left out: {left_out} with seeds by which settings were chosen (sweep.tune)."
    unfinished = [run for run in collection.unfinished if run.program or run.seed not in SEARCH_SEEDS]
    return Collection(finished, unfinished, [*collection.decisions, line])


def _sweeps(paths: Iterable[Path]) -> list[Sweep]:
    """Return the sweeps that are named, or lie in the named folders."""
    sweeps: list[Sweep] = []
    for path in paths:
        sweeps += [Sweep(path)] if (path / RECORD).exists() else sweeps_in(path)
    return sweeps


def _run_copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the directories of each run name, without repetition; a listed directory need not exist."""
    copies: dict[str, dict[Path, None]] = {}
    for path in paths:
        for directory in run_folders(path):
            copies.setdefault(directory.name, {})[directory] = None
    return [list(directories) for directories in copies.values()]


def _copy_priority(run: UnfinishedRun) -> tuple[int, bool]:
    """Return a sort key of copies of a run: the most advanced state first, and a directory that exists before one that does not."""
    return _STATE_PRIORITY.index(run.state), not run.path.exists()


def _check_equal(record: Record, method: Method, other: Record, other_method: Method) -> None:
    """Raise UserError if two directories of one name are not the same run with the same results."""
    fields = [
        ("task", record.task, other.task),
        ("settings", f"{method.base} {method.identity}", f"{other_method.base} {other_method.identity}"),
        ("seed", record.seed, other.seed),
        ("evaluation steps", record.steps, other.steps),
        ("evaluation returns", record.returns, other.returns),
    ]
    fields += [(key, record.result.get(key), other.result.get(key)) for key in ("final_return", "absolute_return")]
    for name, value, other_value in fields:
        if repr(value) != repr(other_value):  # compared as text, where nan equals nan
            raise UserError(
                f"{record.path} and {other.path} are copies of one run but disagree: their {name} differ. "
                "Leave one of them out, or rename it."
            )


def _split_by_evaluation_interval(records: Sequence[Record], methods: Sequence[Method]) -> list[Method]:
    """Return the methods, split by evaluation interval where a seed exists with several intervals."""
    runs = Counter(
        (method.task, method.base, method.identity, record.seed)
        for record, method in zip(records, methods, strict=True)
    )
    ambiguous = {(task, base, identity) for (task, base, identity, _), number in runs.items() if number > 1}
    return [
        _with_evaluation_interval(method) if (method.task, method.base, method.identity) in ambiguous else method
        for method in methods
    ]


def _with_evaluation_interval(method: Method) -> Method:
    return method._replace(
        identity=f"{method.identity} {method.evaluation_every}",
        labels={**method.labels, EVALUATION_EVERY: method.evaluation_every},
    )


def _check_seeds(records: Sequence[Record]) -> None:
    """Raise UserError if a seed of a method exists twice."""
    seen: dict[tuple[Any, ...], Record] = {}
    for record in records:
        first = seen.setdefault((record.task, record.method, record.settings.get(FUNCTION), record.seed), record)
        if first is not record:
            raise UserError(
                f"{first.path} and {record.path} are both seed {record.seed} of {record.method} on {record.task}; an "
                "interval would count them as two independent runs. Leave one out: give the directory of one sweep, or of "
                "single runs."
            )


def _unfinished_run(path: Path, reader: Reader, queue: Queue | None) -> UnfinishedRun:
    state, reason = _state_and_reason(path, queue)
    if RunDirectory(path).config.exists():
        method, seed = reader.method(path)
        return UnfinishedRun(path, method.task, method.base, seed, state, reason, method.settings)
    parts = path.name.split("_")
    if len(parts) == 6 and parts[4][1:].isdigit():  # the format of config.run_name
        env, task, algorithm, mixer, seed_part, _ = parts
        method_base = method_name(algorithm.replace("-", "_"), mixer)
        return UnfinishedRun(path, f"{env}/{task}", method_base, int(seed_part[1:]), state, reason)
    return UnfinishedRun(path, "", "", None, state, reason)


def _state_and_reason(path: Path, queue: Queue | None) -> tuple[str, str]:
    if not path.exists():
        return NEW, "listed by a sweep; its run directory does not exist"
    run = state_of(RunDirectory(path), queue or Queue({}))
    if queue is None and run.state == DEAD and run.status.get("state") == QUEUED:
        return QUEUED, "submitted to Slurm; the queue was not checked"
    return run.state, run.reason


def _unify_task_names(tasks: Iterable[str], unfinished: Sequence[UnfinishedRun]) -> list[UnfinishedRun]:
    """Spell tasks that come from directory names as configurations do (directory names have '-' for '_')."""
    spelling = {_directory_spelling(task): task for task in tasks}
    spelling |= {_directory_spelling(run.task): run.task for run in unfinished if run.path.exists()}
    return [replace(run, task=spelling.get(_directory_spelling(run.task), run.task)) for run in unfinished]


def _directory_spelling(task: str) -> str:
    return "".join(char if char.isalnum() or char in "./" else "-" for char in task)


def filter_runs(collection: Collection, conditions: Sequence[str]) -> Collection:
    """Return the runs that meet all conditions; methods keep their names.

    An unfinished run is dropped only if it is known to have another value. It stays if its value is unknown: its function is
    not written yet, or its directory does not exist.

    Args:
        collection: the runs.
        conditions: as typed: 'mixer=qmix,tfcaf', 'env.task=climbing', 'seed=0-4', 'train.learning_rate=0.001'.

    Raises:
        UserError: a condition without '=', an unknown key, or a value that no remaining run has.
    """
    for condition in conditions:
        name, equals, _ = condition.partition("=")
        if not equals:
            raise UserError(
                f"--only {condition}: expected KEY=VALUE,..., e.g. --only mixer=qmix,tfcaf or --only seed=0-4."
            )
        if not collection.finished:
            break
        (key,) = keys.resolve([name], collection.finished)
        finished = [(record, str(keys.value(record, key))) for record in collection.finished]
        unfinished = [(run, _known_value(run, key)) for run in collection.unfinished]
        available = {value for _, value in finished} | {value for _, value in unfinished if value is not None}
        selected = _selected_values(condition, available)
        # A method's name starts with algorithm and mixer, which are all that is known of an unfinished run.
        bases = {"", *(value.split(" ")[0] for value in selected)}
        collection = Collection(
            [record for record, value in finished if value in selected],
            [
                run
                for run, value in unfinished
                if value in selected or (value is None and (key != keys.METHOD or run.method in bases))
            ],
            collection.decisions,
        )
    return collection


def _known_value(run: UnfinishedRun, key: str) -> str | None:
    """Return the value of an unfinished run, as a finished run would have it; None if unknown."""
    if key in keys.TASK_KEYS and run.task:
        return run.task.split("/", 1)[keys.TASK_KEYS.index(key)]
    if key == "seed":
        return None if run.seed is None else str(run.seed)
    if key in run.settings:
        return str(run.settings[key])
    if key in ("mixer.name", "algorithm.name") and run.method:
        algorithm, mixer = parse_method_name(run.method)
        return mixer if key == "mixer.name" else algorithm
    return None


def _selected_values(condition: str, available: set[str]) -> set[str]:
    """Return the values that a condition selects.

    A value that contains a comma is matched as a whole. Not all values of a range need to exist.
    """
    from qllm_exp.config.overrides import expand_ranges  # imports Hydra

    name, _, text = condition.partition("=")
    if text in available:
        return {text}
    expanded = expand_ranges(condition)
    is_range = expanded != condition
    wanted = {_as_written(value.strip(), available) for value in expanded.partition("=")[2].split(",")}
    unavailable = sorted(wanted - available, key=keys.sort_key)
    if unavailable and not (is_range and wanted & available):
        known = sorted(available, key=keys.sort_key)
        listed = ", ".join(known[:_MAX_VALUES])
        if len(known) > _MAX_VALUES:
            listed += f" and {len(known) - _MAX_VALUES} more"
        hint = "" if is_range else nearest(unavailable[0], available)
        raise UserError(f"--only {condition}: no remaining run has {name}={unavailable[0]}.{hint} Available: {listed}.")
    return wanted


def _as_written(value: str, available: set[str]) -> str:
    """Return the available value that is the same number as a value, e.g. '0.001' for '1e-3'; the value itself if none is."""
    if value in available:
        return value
    with suppress(ValueError):
        number = float(value)
        for other in available:
            with suppress(ValueError):
                if float(other) == number:
                    return other
    return value
