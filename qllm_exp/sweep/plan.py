"""What a sweep will do, settled before anything starts: every combination checked, every run named, finished ones found."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qllm_exp import config, schema
from qllm_exp.errors import UserError
from qllm_exp.preparation import Prepared, check, missing_function, prepare

Overrides = tuple[str, ...]


@dataclass
class Plan:
    """The runs of a sweep, each once.

    Attributes:
        runs: in the order of the command line. of: for each combination of overrides, the index of its run.
        collapsed: combinations that describe the same run as an earlier one.
        generated: files of the credit-assignment functions that a language model wrote for this sweep.
    """

    runs: list[Prepared] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    collapsed: int = 0
    generated: list[Path] = field(default_factory=list)

    @property
    def done(self) -> list[Prepared]:
        return [one for one in self.runs if one.directory.result() is not None]

    @property
    def to_run(self) -> list[Prepared]:
        return [one for one in self.runs if one.directory.result() is None]

    def folder(self) -> Path:
        """Where the table and the plot of this sweep go: named by the runs in it, so that the same command finds it again."""
        names = "\n".join(sorted(one.directory.path.name for one in self.runs))
        return Path(self.runs[0].run.dir) / f"sweep_{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def make_plan(
    combinations: Sequence[Overrides],
    compose: Callable[[Overrides], DictConfig],
    explain: Callable[[Exception, Overrides], str],
) -> Plan:
    """Compose and check every combination, then provide the functions they need. Raises one UserError that lists everything
    that is wrong, before a language model is asked for anything.

    Args:
        compose: overrides to a configuration. explain: words for an error of Hydra's.
    """
    checked, faults = list[schema.Run](), dict[str, list[str]]()
    for overrides in combinations:
        try:
            checked.append(check(config.load(compose(overrides))))
        except UserError as error:
            faults.setdefault(str(error), []).append(" ".join(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            faults.setdefault(explain(error, overrides), []).append(" ".join(overrides))
    if faults:
        raise UserError(_all_faults(faults, len(combinations)))
    plan, known = Plan(), dict[Path, int]()
    for run in checked:
        new = missing_function(run)
        one = prepare(run)  # a missing credit-assignment function is generated here, once
        if new is not None:
            plan.generated.append(new)
        path = one.directory.path
        if path in known:
            plan.collapsed += 1
        else:
            known[path] = len(plan.runs)
            plan.runs.append(one)
        plan.of.append(known[path])
    return plan


def _all_faults(faults: dict[str, list[str]], total: int) -> str:
    if total == 1:
        return next(iter(faults))
    bad = sum(map(len, faults.values()))
    lines = [f"{bad} of the {total} runs of this sweep cannot start, so none was started:"]
    for message, where in faults.items():
        more = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
        lines.append(f"  {message}\n    in: {where[0]}{more}")
    return "\n".join(lines)
