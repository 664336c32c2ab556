"""What a sweep will do, settled before anything starts: every combination checked, every run named, finished ones found."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import schema
from qllm_exp.config.device import DeviceResolver, resolve_device
from qllm_exp.errors import UserError
from qllm_exp.runs.run_state import DONE, QUEUED, RUNNING, RunState, state_of
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.sweep.fast_compose import Composer, Overrides, varying_keys
from qllm_exp.sweep.prepare import Prepared, check, missing_function, prepare
from qllm_exp.utils.text import count

FAULTS = 20  # different ones that are shown


@dataclass
class Plan:
    """The runs of a sweep, each once.

    Attributes:
        runs: in the order of the command line. states: how each stands. of: for each combination, the index of its run.
        collapsed: in words, which combinations describe the same run as an earlier one.
        pending: files of functions that a language model has yet to write, and how many combinations wait for each.
        generated: files of the functions that a language model has written for this sweep.
    """

    runs: list[Prepared] = field(default_factory=list)
    states: list[RunState] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    collapsed: list[str] = field(default_factory=list)
    pending: dict[Path, int] = field(default_factory=dict)
    generated: list[Path] = field(default_factory=list)
    asked: schema.SweepConfig = field(default_factory=schema.SweepConfig)
    dir: Path = Path("runs")

    def those(self, *states: str) -> list[Prepared]:
        """The runs that are in one of the states."""
        return [one for one, at in zip(self.runs, self.states, strict=True) if at.state in states]

    @property
    def to_run(self) -> list[Prepared]:
        return [one for one, at in zip(self.runs, self.states, strict=True) if at.state not in (DONE, RUNNING, QUEUED)]

    @property
    def name(self) -> str:
        """Name of the sweep: the one given, or one made from the runs in it, so that the same command finds it again."""
        names = "\n".join(sorted(one.directory.path.name for one in self.runs))
        return self.asked.name or f"sweep_{digits(names)}"

    @property
    def folder(self) -> Path:
        """Where the record, the table and the plot of the sweep go."""
        return self.dir / self.name

    def counts(self) -> str:
        """'30 runs: 8 done, 2 running, 4 queued, 16 to run'."""
        waiting = sum(self.pending.values())
        times = Counter(one.state for one in self.states)
        rest = len(self.runs) - times[DONE] - times[RUNNING] - times[QUEUED] + waiting
        done = f"{times[DONE]} done, {times[RUNNING]} running, {times[QUEUED]} queued"
        return f"{count(len(self.runs) + waiting, 'run')}: {done}, {rest} to run"


def digits(text: str) -> str:
    """Eight digits of a text's hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_plan(
    combinations: Sequence[Overrides],
    compose: Callable[[Overrides], DictConfig],
    explain: Callable[[Exception, Overrides], str],
    settle: DeviceResolver = resolve_device,
    before_asking: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """Compose and check every combination, then provide the functions they need. Raises one UserError that lists everything
    that is wrong, before a language model is asked for anything.

    Args:
        compose: overrides to a configuration. explain: words for an error of Hydra's.
        settle: from a device as configured to that of the machine that the runs will be on.
        before_asking: called with what is known of the plan before a language model is asked, if one has to be.
    """
    checked, faults = list[schema.RunConfig](), dict[str, list[str]]()
    composer = Composer(compose, combinations)
    for overrides in combinations:
        try:
            run = composer(overrides)
            checked.append(check(run, settle))
            _check_sweep(run)
        except UserError as error:
            faults.setdefault(str(error), []).append(" ".join(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            faults.setdefault(explain(error, overrides), []).append(" ".join(overrides))
    for key, values in (("sweep.name", {run.sweep.name for run in checked}), ("dir", {run.dir for run in checked})):
        if len(values) > 1 and not faults:
            raise UserError(f"{key} takes one value in a sweep, and got {', '.join(sorted(values))}.")
    if faults:
        raise UserError(_all_faults(faults, len(combinations)))
    queue = Queue.look(Path(checked[0].dir))
    missing = [missing_function(run) for run in checked]
    if any(missing):
        ready = [(o, run) for o, run, path in zip(combinations, checked, missing, strict=True) if path is None]
        known = _named([o for o, _ in ready], [run for _, run in ready], queue, checked[0])
        known.pending = Counter(path for path in missing if path is not None)
        before_asking(known)
        if known.asked.dry_run:
            return known
    plan = _named(combinations, checked, queue, checked[0])
    plan.generated = list(dict.fromkeys(path for path in missing if path is not None))
    return plan


def _named(
    combinations: Sequence[Overrides], checked: Sequence[schema.RunConfig], queue: Queue, first: schema.RunConfig
) -> Plan:
    """The plan for runs that are checked; a credit-assignment function that is missing is generated here, once."""
    plan, known, same = (
        Plan(asked=first.sweep, dir=Path(first.dir)),
        dict[Path, int](),
        list[tuple[Overrides, Overrides]](),
    )
    firsts: list[Overrides] = []
    for overrides, run in zip(combinations, checked, strict=True):
        one = prepare(run)
        path = one.directory.path
        if path in known:
            same.append((overrides, firsts[known[path]]))
        else:
            known[path] = len(plan.runs)
            firsts.append(overrides)
            plan.runs.append(one)
        plan.of.append(known[path])
    plan.collapsed = _in_words(same, varying_keys(combinations))
    plan.states = [state_of(one.directory, queue) for one in plan.runs]
    return plan


def _check_sweep(run: schema.RunConfig) -> None:
    if not re.fullmatch(r"[\w.-]*", run.sweep.name) or run.sweep.name.startswith((".", "-")):
        raise UserError(f"sweep.name={run.sweep.name!r} is a folder's name: use letters, digits, '_', '-' and '.'.")


def _in_words(same: Sequence[tuple[Overrides, Overrides]], varying: set[str]) -> list[str]:
    """A line for each set of keys that makes no difference: how many combinations, and one of them."""
    cases: dict[tuple[str, ...], list[tuple[Overrides, Overrides]]] = {}
    for one, other in same:
        keys = tuple(override.partition("=")[0] for override in one if override not in other)
        cases.setdefault(keys, []).append((one, other))
    return [_case(keys, pairs, varying) for keys, pairs in cases.items()]


def _case(keys: tuple[str, ...], pairs: Sequence[tuple[Overrides, Overrides]], varying: set[str]) -> str:
    times = count(len(pairs), "combination")
    one, other = pairs[0]
    alike = " ".join(a for a in one if a in other and a.partition("=")[0] in varying)
    if not keys:
        return f"{times} given twice{': ' * bool(alike)}{alike}"
    first = " ".join(a for a in one if a not in other)
    second = " ".join(a for a in other if a not in one) or "that without it"
    where = f" (e.g. with {alike})" if alike else ""
    return f"{times} left out, since {', '.join(keys)} makes no difference there: {first} is the run of {second}{where}"


def _all_faults(faults: Mapping[str, Sequence[str]], total: int) -> str:
    if total == 1:
        return next(iter(faults))
    bad = sum(map(len, faults.values()))
    lines = [f"{bad} of the {total} runs of this sweep cannot start, so none was started:"]
    for message, where in list(faults.items())[:FAULTS]:
        more = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
        lines.append(f"  {message}\n    in: {where[0]}{more}")
    if len(faults) > FAULTS:
        lines.append(f"  ... and {len(faults) - FAULTS} other faults")
    return "\n".join(lines)
