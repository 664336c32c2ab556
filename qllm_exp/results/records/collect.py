"""From folders to the finished runs in them, as records, and to those that are not finished, each with how it stands."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qllm_exp.config.load import method_name, of_name
from qllm_exp.errors import UserError, nearest
from qllm_exp.results.records import keys
from qllm_exp.results.records.method_names import names
from qllm_exp.results.records.reader import EVERY, FUNCTION, Method, Reader, Record
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DEAD, FAILED, NEW, QUEUED, RUNNING, STOPPED, state_of
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.runs.sweep_directory import run_folders
from qllm_exp.utils.text import count

__all__ = ["ABSENT", "Collection", "Record", "Unfinished", "collect"]

ABSENT = "absent"  # a sweep names the run, and there is no folder of that name
_MOST_ALIVE = (RUNNING, QUEUED, STOPPED, FAILED, DEAD, NEW, ABSENT)  # of two copies, the one that says more


@dataclass(frozen=True)
class Unfinished:
    """A run without a result.

    Attributes:
        task, method: as `Record`'s, the method by algorithm and mixer alone; where there is no configuration, from the
            folder's name.
        seed: None where neither says it.
        state: 'running', 'queued', 'stopped', 'failed', 'dead', 'new' or 'absent'. why: more about it, in words.
        settings: as `Record`'s, without what only a finished run has; {} where there is no configuration.
    """

    path: Path
    task: str
    method: str
    seed: int | None
    state: str
    why: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    def __str__(self) -> str:
        return f"{self.name}: {self.state}{': ' * bool(self.why)}{self.why}"


@dataclass(frozen=True)
class Collection:
    """The runs of some folders, those that are finished apart from those that are not; in the order in which they were found."""

    finished: list[Record]
    unfinished: list[Unfinished]

    def counts(self) -> str:
        """'30 runs: 27 finished, 1 failed, 2 running'."""
        times = Counter(one.state for one in self.unfinished)
        states = "".join(f", {times[state]} {state}" for state in sorted(times))
        return f"{count(len(self.finished) + len(self.unfinished), 'run')}: {len(self.finished)} finished{states}"


def collect(paths: Iterable[Path], queue: Queue | None = None) -> Collection:
    """The runs of the folders, each once.

    A path is the folder of a run, of a sweep (the runs that its sweep.json names, beside it) or of many of either. A run is
    known by its folder's name, so that the folders of several machines merge: of a run found under two roots the finished
    copy counts. Runs that differ in how often they were evaluated are one method, unless a seed is there with both.

    Args:
        queue: what a cluster holds (`Queue.look`). None: it is not asked, and a run that was handed to it counts as queued.

    Raises:
        UserError: for a path that holds no run; for a run that cannot be read; where two copies of a run contradict each
            other; where one seed of a method is there under two names (an interval would count it as two).
    """
    reader, records, methods, unfinished = Reader(), list[Record](), list[Method](), list[Unfinished]()
    for copies in _found(paths).values():
        done = [one for path in copies if (one := reader.finished(path)) is not None]
        if done:
            for other, method in done[1:]:
                _check_equal(*done[0], other, method)
            records.append(done[0][0])
            methods.append(done[0][1])
        else:
            stand = [_unfinished(path, reader, queue) for path in copies]
            unfinished.append(min(stand, key=lambda one: _MOST_ALIVE.index(one.state)))
    found = names(_by_evaluation(records, methods))
    named = [replace(one, method=name, differs=differs) for one, (name, differs) in zip(records, found, strict=True)]
    _check_seeds(named)
    return Collection(named, _in_the_words_of([one.task for one in methods], unfinished))


def _found(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """For each name of a run the folders that it has, or should have, without repetition."""
    found: dict[str, dict[Path, None]] = {}
    for path in paths:
        for folder in run_folders(path):
            found.setdefault(folder.name, {})[folder] = None
    return {name: list(copies) for name, copies in found.items()}


def _check_equal(one: Record, its: Method, other: Record, others: Method) -> None:
    """UserError where two folders of one name are not the same run with the same figures."""
    figures = [
        ("task", one.task, other.task),
        ("settings", f"{its.base} {its.identity}", f"{others.base} {others.identity}"),
        ("seed", one.seed, other.seed),
        ("evaluation steps", one.steps, other.steps),
        ("evaluation returns", one.returns, other.returns),
        *((key, one.result.get(key), other.result.get(key)) for key in ("final_return", "absolute_return")),
    ]
    for what, here, there in figures:
        if repr(here) != repr(there):  # in text, in which nan equals nan
            raise UserError(
                f"{one.path} and {other.path} have the name of one run and contradict each other: their {what} differ. "
                "Leave one of them out, or rename it."
            )


def _by_evaluation(records: Sequence[Record], methods: Sequence[Method]) -> list[Method]:
    """Methods of which a seed is there with two grids of evaluations, apart by these; seeds of their own go together."""
    runs = Counter((*method[:2], method.identity, one.seed) for one, method in zip(records, methods, strict=True))
    twice = {key[:3] for key, count in runs.items() if count > 1}
    return [
        one._replace(identity=f"{one.identity} {one.every}", labels={**one.labels, EVERY: one.every})
        if (*one[:2], one.identity) in twice
        else one
        for one in methods
    ]


def _check_seeds(records: Sequence[Record]) -> None:
    known: dict[tuple[Any, ...], Record] = {}
    for one in records:
        other = known.setdefault((one.task, one.method, one.settings.get(FUNCTION), one.seed), one)
        if other is not one:
            raise UserError(
                f"{other.path} and {one.path} are both seed {one.seed} of {one.method} on {one.task}; an interval would "
                "count them as two independent runs. Leave one out: give the folder of one sweep, or those of the runs."
            )


def _unfinished(path: Path, reader: Reader, queue: Queue | None) -> Unfinished:
    parts = path.name.split("_")
    settings: Mapping[str, Any] = {}
    if (path / "config.yaml").exists():
        method, seed = reader.method(path)
        task, base, settings = method.task, method.base, method.settings
    elif len(parts) == 6 and parts[4][1:].isdigit():  # as config.run_name makes them
        task, base, seed = (
            f"{parts[0]}/{parts[1]}",
            method_name(parts[2].replace("-", "_"), parts[3]),
            int(parts[4][1:]),
        )
    else:
        return Unfinished(path, "", "", None, *_state(path, queue))
    return Unfinished(path, task, base, seed, *_state(path, queue), settings)


def _state(path: Path, queue: Queue | None) -> tuple[str, str]:
    if not path.exists():
        return ABSENT, "a sweep names it, and its folder is not there"
    seen = state_of(RunDirectory(path), queue or Queue({}))
    if queue is None and seen.state == DEAD and seen.status.get("state") == QUEUED:
        return QUEUED, "handed to Slurm, whose queue was not asked"
    return seen.state, seen.why


def _in_the_words_of(tasks: Iterable[str], unfinished: Sequence[Unfinished]) -> list[Unfinished]:
    """Tasks that were taken from a folder's name in the spelling of the finished runs (a folder's has '-' for '_')."""
    spelt = {_plain(task): task for task in (*tasks, *(one.task for one in unfinished if one.state != ABSENT))}
    return [replace(one, task=spelt.get(_plain(one.task), one.task)) for one in unfinished]


def _plain(task: str) -> str:
    return "".join(c if c.isalnum() or c in "./" else "-" for c in task)


_SHOWN = 12  # values in a message, at most


def narrow(collection: Collection, given: Sequence[str]) -> Collection:
    """The runs of which all conditions hold; names of methods stay what they are.

    An unfinished run is left out where it is known to have another value; where that is not known (of a function that is not
    written, of a folder that is not there), it stays.

    Args:
        given: conditions as typed: 'mixer=qmix,tfcaf', 'env.task=climbing', 'seed=0-4', 'train.learning_rate=0.001'.

    Raises:
        UserError: for a word that is no condition, an unknown key, and a value that no run has.
    """
    for word in given:
        name, sign, _ = word.partition("=")
        if not sign:
            raise UserError(f"--only {word}: give KEY=VALUE,..., e.g. --only mixer=qmix,tfcaf or --only seed=0-4.")
        if not collection.finished:
            break
        (key,) = keys.resolve([name], collection.finished)
        finished = [(one, str(keys.value(one, key))) for one in collection.finished]
        unfinished = [(one, _known(one, key)) for one in collection.unfinished]
        chosen = _chosen(word, {value for _, value in (*finished, *unfinished) if value is not None})
        bases = {"", *(value.split(" ")[0] for value in chosen)}
        collection = Collection(
            [one for one, value in finished if value in chosen],
            [
                one
                for one, value in unfinished
                if value in chosen or (value is None and (key != keys.METHOD or one.method in bases))
            ],
        )
    return collection


def _known(one: Unfinished, key: str) -> str | None:
    """An unfinished run's value, as a finished one would have it; None where it is not known."""
    if key in keys.TASK_KEYS and one.task:
        return one.task.split("/", 1)[keys.TASK_KEYS.index(key)]
    if key == "seed":
        return None if one.seed is None else str(one.seed)
    if key in one.settings:
        return str(one.settings[key])
    if key in ("mixer.name", "algorithm.name") and one.method:
        return of_name(one.method)[key == "mixer.name"]
    return None


def _chosen(word: str, there: set[str]) -> set[str]:
    """The values that a condition names. One with a comma in it is named as a whole; of a range not all need be there."""
    from qllm_exp.config.overrides import expand_ranges  # Hydra comes with it

    name, _, whole = word.partition("=")
    if whole in there:
        return {whole}
    written = expand_ranges(word)
    wanted = {one.strip() for one in written.partition("=")[2].split(",")}
    lacking = sorted(wanted - there, key=keys.sort_key)
    if lacking and (written == word or not wanted & there):
        known = sorted(there, key=keys.sort_key)
        more = f" and {len(known) - _SHOWN} more" * (len(known) > _SHOWN)
        hint = nearest(lacking[0], there) if written == word else ""
        raise UserError(
            f"--only {word}: no run that is left has {name}={lacking[0]}.{hint} There are: "
            f"{', '.join(known[:_SHOWN])}{more}."
        )
    return wanted
