"""sweep.prune: stop settings of a search that are worse than its other settings at equal environment steps.

A search is the settings of one method on one task; seeds (and samples of a generation procedure) are repetitions, and the value
of a setting at a step is the mean over those of its runs that have reached the step. Two rules decide whether a run in progress
stops, and with it all runs of its setting:

median    Google Vizier's rule (Golovin et al. 2017, section 3.2.2): its best value so far is below the median, over the other
          settings, of the mean of their values so far.
halving   asynchronous successive halving in the form that stops runs (Li et al. 2020, arXiv 1810.05934; Klein et al. 2020, arXiv
          2003.10865): at the last rung that it has reached, its value is not among the best 1/factor of the settings that have
          reached that rung by now, or not the best where these are fewer than `factor`.

A decision depends on nothing but the rows and decisions on disk. It is written as the stop request of the run, which the run obeys.
So every process that trains runs of a sweep can decide, the one on this machine as well as each job of Slurm, and a process that
replaces a killed one finds the decisions that were made.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from qllm_exp.config import schema
from qllm_exp.config.load import identifying_options, method_name, run_name, task_and_rules
from qllm_exp.errors import UserError
from qllm_exp.runs.metrics import EvaluationRow, read_rows
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.utils.text import count

if TYPE_CHECKING:  # it imports torch, which a Slurm job would import twice: its fork server does
    from qllm_exp.sweep.prepare import PreparedRun

NONE, MEDIAN, HALVING = "none", "median", "halving"  # values of sweep.prune

Curve = Mapping[int, float]  # environment step to return


@dataclass(frozen=True)
class Rule:
    """When a setting is stopped.

    Attributes:
        name: MEDIAN or HALVING.
        share: share of the environment steps before which nothing is stopped, 0 to 1.
        least: number of other settings that must have reached a step before one is stopped there.
        factor: at each rung of HALVING, the best 1/factor of the settings continue.
    """

    name: str
    share: float
    least: int
    factor: int

    @classmethod
    def of(cls, config: schema.SweepConfig) -> "Rule | None":
        """Return the rule that a configuration chooses; None for sweep.prune=none."""
        return None if config.prune == NONE else cls(config.prune, **asdict(config.pruning))

    def steps(self, grids: Sequence[Sequence[int]]) -> list[int]:
        """Return the environment steps at which settings are compared, increasing: where all runs evaluate, and go on after.

        Args:
            grids: of each kind of run, `train.evaluation.every` and `train.total_steps`.
        """
        longest = max(total for _, total in grids)
        common = set.intersection(*(set(range(every, total, every)) for every, total in grids))
        return sorted(step for step in common if step >= self.share * longest)

    def rungs(self, steps: Sequence[int], longest: int) -> list[int]:
        """Return the steps at which HALVING compares settings.

        Args:
            steps: as `steps` returns them.
            longest: largest `train.total_steps`.
        """
        rungs, target = list[int](), self.share * longest
        for step in steps:
            if step >= target:
                rungs.append(step)
                while target <= step:
                    target *= self.factor
        return rungs

    def verdict(self, own: Curve, others: Sequence[Curve], ended: Sequence[Curve], steps: Sequence[int]) -> str:
        """Return why a setting is stopped; '' if it continues.

        Args:
            own: returns of the setting, up to the step at which it is compared.
            others: returns of the other settings that are finished or in progress.
            ended: returns of the other settings that were pruned; those of a setting that stopped before the step count, too, for
                the median, as otherwise the survivors alone would set it.
            steps: for MEDIAN every step at which settings are compared, for HALVING the rungs.
        """
        reached = [step for step in steps if step in own]
        if not reached:
            return ""
        step = reached[-1]
        if self.name == MEDIAN:
            return self._below_median(own, others, ended, reached, step)
        values = [curve[step] for curve in (*others, *ended) if step in curve]
        kept = max(1, (len(values) + 1) // self.factor)
        limit = sorted([*values, own[step]])[-kept]
        if len(values) < self.least or own[step] >= limit:
            return ""
        among = f"the best {kept}" if kept > 1 else "the best"
        return f"at step {step:,} not {among} of {len(values) + 1} settings: return {own[step]:.4g} < {limit:.4g}"

    def _below_median(
        self, own: Curve, others: Sequence[Curve], ended: Sequence[Curve], reached: Sequence[int], step: int
    ) -> str:
        means = []
        for curve in [*(curve for curve in others if step in curve), *ended]:
            values = [curve[earlier] for earlier in reached if earlier in curve]
            means += [float(np.mean(values))] if values else []
        if len(means) < self.least:
            return ""
        best, median = max(own[earlier] for earlier in reached), float(np.median(means))
        if best >= median:
            return ""
        return (
            f"at step {step:,} below the median of {len(means)} other settings: best return {best:.4g} < {median:.4g}"
        )


def searches_of(
    runs: "Sequence[PreparedRun]", rule: Rule, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the searches that runs make up, for the record of a sweep.

    Args:
        runs: runs of a sweep.
        rule: when settings are stopped.
        known: the searches that are in the record already.

    Returns:
        By method and task: `grids`, as `Rule.steps` takes them, and `settings`, the names of the runs of each setting.

    Raises:
        UserError: a search has too few settings, or its runs are evaluated at no common step.
    """
    settings: dict[str, dict[str, list[str]]] = defaultdict(dict)
    grids: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for search, content in known.items():
        grids[search] |= {(every, total) for every, total in content["grids"]}
        settings[search] |= {key: list(names) for key, names in content["settings"].items()}
    for run in runs:
        config = run.config
        method = method_name(config.algorithm.name, config.mixer.name)
        search = f"{method} on {task_and_rules(config.env)}"
        names = settings[search].setdefault(_setting(run), [])
        if run.directory.path.name not in names:
            names.append(run.directory.path.name)
        grids[search].add((config.train.evaluation.every, config.train.total_steps))
    for search, runs_of_setting in settings.items():
        number = len(runs_of_setting)
        if number <= rule.least:
            raise UserError(
                f"sweep.prune={rule.name} stops settings of a method that are worse than its other settings, never a method. "
                f"{search} has {count(number, 'setting')}: nothing can be stopped, since sweep.pruning.least={rule.least} others "
                "must have reached a step. Add values, e.g. train.learning_rate=1e-4,3e-4,1e-3,3e-3, or type sweep.prune=none."
            )
        if not rule.steps(sorted(grids[search])):
            listed = ", ".join(f"every {every:,} of {total:,}" for every, total in sorted(grids[search]))
            raise UserError(
                f"sweep.prune={rule.name} compares evaluations at equal environment steps, and the runs of {search} have none in "
                f"common from sweep.pruning.share={rule.share:g} of the longest run on, before the end of the shortest: they are "
                f"evaluated {listed} steps. Choose a common, smaller train.evaluation.every, or a smaller sweep.pruning.share."
            )
    return {
        search: {"grids": sorted(grids[search]), "settings": runs_of_setting}
        for search, runs_of_setting in settings.items()
    }


def _setting(run: "PreparedRun") -> str:
    """Return the name of the setting of a run: that of the run without its seed, and without the sample of its function."""
    config, function = run.config, run.tfcaf_hash
    if function is not None and config.llm.name != "bundled" and not getattr(config.mixer, "file", ""):
        procedure = identifying_options(config.llm), identifying_options(replace(config.tfcaf, sample=0))
        function = json.dumps(procedure, sort_keys=True)
    return run_name(replace(config, seed=0), function)


class Pruner:
    """Stops settings of the searches of a sweep, as `Rule` decides. Any number of processes may do so at the same time.

    Args:
        sweep: the sweep; its record has the rule and the searches.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._rule = Rule(**sweep.record.prune)
        self._searches = {
            name: _Search(self._rule, search["grids"], search["settings"], sweep)
            for name, search in sweep.record.searches.items()
        }
        for search in self._searches.values():
            search.complete()

    @classmethod
    def of(cls, sweep: Sweep) -> "Pruner | None":
        """Return the pruner of a sweep; None if it has none."""
        return cls(sweep) if sweep.record.prune else None

    def update(self, active: Sequence[RunDirectory]) -> None:
        """Judge runs by what is on disk now, and request those to stop that are hopeless, with all runs of their settings.

        Args:
            active: directories of the runs in progress.
        """
        names = {directory.path.name for directory in active}
        for search in self._searches.values():
            search.judge(names)


class _Search:
    """The settings of one method on one task.

    Args:
        rule: when settings are stopped.
        grids: as `Rule.steps` takes them.
        settings: names of the runs of each setting.
        sweep: the sweep.
    """

    def __init__(
        self, rule: Rule, grids: Sequence[Sequence[int]], settings: Mapping[str, Sequence[str]], sweep: Sweep
    ) -> None:
        self._rule = rule
        self._steps = rule.steps(grids)
        if rule.name == HALVING:
            self._steps = rule.rungs(self._steps, max(total for _, total in grids))
        self._runs = {key: [sweep.directory(name) for name in names] for key, names in settings.items()}
        self._curves: dict[Path, tuple[tuple[int, int], Curve]] = {}  # with size and date of the metrics file

    def complete(self) -> None:
        """Request all runs of each pruned setting not to start: the process that decided may have been killed meanwhile."""
        for runs in self._runs.values():
            reason = next(filter(None, (directory.pruned() for directory in runs)), "")
            if reason:
                self._stop(runs, reason)

    def judge(self, active: set[str]) -> None:
        """Stop the settings of runs in progress that are worse than the others.

        Args:
            active: names of the runs in progress.
        """
        judged = {
            key: [directory for directory in runs if directory.path.name in active and not directory.was_overruled()]
            for key, runs in self._runs.items()
        }
        if not any(judged.values()):
            return
        curves = {key: self._mean_curve(runs) for key, runs in self._runs.items()}
        pruned = {key for key, runs in self._runs.items() if any(directory.pruned() for directory in runs)}
        for key in self._runs:  # in the order of the command, each with the decisions before it
            if key in pruned:
                continue
            others = [curves[other] for other in self._runs if other != key and other not in pruned]
            ended = [curves[other] for other in self._runs if other != key and other in pruned]
            for directory in judged[key]:
                last = max(self._curve(directory), default=0)
                own = {step: value for step, value in curves[key].items() if step <= last}
                reason = self._rule.verdict(own, others, ended, self._steps)
                if reason:
                    self._stop(self._runs[key], reason)
                    pruned.add(key)
                    break

    def _stop(self, runs: Sequence[RunDirectory], reason: str) -> None:
        for directory in runs:
            if directory.result() is None and not directory.pruned() and not directory.was_overruled():
                with suppress(OSError):  # a full disk: the next call tries again
                    directory.prune(reason)

    def _mean_curve(self, runs: Sequence[RunDirectory]) -> Curve:
        """Return the returns of a setting: at each step the mean over those of its runs that have reached it."""
        values: dict[int, list[float]] = defaultdict(list)
        for directory in runs:
            for step, value in self._curve(directory).items():
                values[step].append(value)
        return {step: float(np.mean(values[step])) for step in self._steps if step in values}

    def _curve(self, directory: RunDirectory) -> Curve:
        """Return the returns of a run at the steps at which settings are compared; a return that is no number is the worst."""
        try:
            file = directory.metrics.stat()
            stamp = file.st_size, file.st_mtime_ns
            if self._curves.get(directory.path, (None,))[0] != stamp:
                rows = cast(list[EvaluationRow], read_rows(directory.metrics, "evaluation"))
                returns = {row["env_step"]: row["return_mean"] for row in rows}
                curve = {
                    step: returns[step] if math.isfinite(returns[step]) else -math.inf
                    for step in self._steps
                    if step in returns
                }
                self._curves[directory.path] = stamp, curve
        except (OSError, UserError):  # not started yet, or a damaged file, which the tables report
            return {}
        return self._curves[directory.path][1]
