"""sweep.seeds=auto: seeds in groups, until it is decided which methods differ.

Every decision follows from the results on disk. So the same command, after a kill too, makes the same decisions and runs what is
missing of the group that they call for.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qllm_exp.config import schema
from qllm_exp.config.load import method_name, run_name, task_and_rules
from qllm_exp.errors import UserError
from qllm_exp.results.statistics.aggregate import Array
from qllm_exp.results.statistics.sequential import MAX_METHODS, PairDecision, decide_pairs
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import state_of
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.sweep.fast_compose import Overrides, varying_keys
from qllm_exp.sweep.plan import Plan
from qllm_exp.sweep.repetitions import override_key
from qllm_exp.utils.text import count

AUTO = "auto"  # value of sweep.seeds


def all_seeds(decide: schema.DecideConfig) -> list[Overrides]:
    """Return the overrides of every seed that a method may get.

    Raises:
        UserError: `sweep.decide.most` is smaller than `sweep.decide.first`.
    """
    if decide.most < decide.first:
        raise UserError(
            f"sweep.decide.most={decide.most} is smaller than sweep.decide.first={decide.first}, the seeds of the first group. "
            f"Type sweep.decide.most={decide.first} or more."
        )
    return [(f"seed={seed}",) for seed in range(decide.most)]


def without_seeds(combinations: Sequence[Sequence[str]], typed: Sequence[str]) -> list[Overrides]:
    """Return the combinations without the seeds of an experiment preset, each once.

    Args:
        combinations: overrides of each run.
        typed: overrides of the command line.

    Raises:
        UserError: the command line has seeds too, or several functions for one method.
    """
    seeds = [override for override in typed if override_key(override) == "seed"]
    if seeds:
        raise UserError(f"sweep.seeds=auto chooses the seeds. Remove {' '.join(seeds)}, or remove sweep.seeds=auto.")
    samples = {
        override for overrides in combinations for override in overrides if override_key(override) == "tfcaf.sample"
    }
    if len(samples) > 1:
        raise UserError(
            f"sweep.seeds=auto tests methods over seeds, and {', '.join(sorted(samples))} are samples of one method. "
            "Give a single tfcaf.sample, or list the seeds."
        )
    kept = [tuple(override for override in overrides if override_key(override) != "seed") for overrides in combinations]
    return list(dict.fromkeys(kept))


@dataclass
class SeedGroups:
    """The runs that a sweep may need with sweep.seeds=auto, and which of them it needs by now.

    Attributes:
        plan: plan of every run that may be needed.
        combinations: overrides of each run, as `plan.run_index` counts them.

    Raises:
        UserError: a task has a single method, or too many.
    """

    plan: Plan
    combinations: Sequence[Overrides]
    _runs: dict[str, dict[str, list[int]]] = field(init=False)  # task -> method -> an index of plan.runs for each seed

    def __post_init__(self) -> None:
        self._runs = self._methods_by_task()
        for task, methods in self._runs.items():
            if len(methods) < 2:
                raise UserError(
                    f"sweep.seeds=auto compares methods, and {task} has only {next(iter(methods))}. Add another one, e.g. "
                    "mixer=tfcaf,qmix, or list the seeds: seed=0-4."
                )
            if len(methods) > MAX_METHODS:
                raise UserError(
                    f"sweep.seeds=auto compares at most {MAX_METHODS} methods on a task, and {task} has {len(methods)}. Choose "
                    "fewer, or list the seeds: seed=0-19."
                )

    @property
    def decide(self) -> schema.DecideConfig:
        """The options of sweep.seeds=auto."""
        return self.plan.sweep.decide

    def needed(self) -> Plan:
        """Return the plan of the runs that are needed by now: every group that was tested, and the group to test next."""
        used = self._used()
        numbers = [
            index
            for key, methods in self._runs.items()
            for name, runs in methods.items()
            for index in runs[: used[key][name]]
        ]
        queue = Queue.query(Path(self.plan.dir))
        runs = [self.plan.runs[index] for index in sorted(numbers)]
        return replace(self.plan, runs=runs, states=[state_of(run.directory, queue) for run in runs], run_index=[])

    def report(self) -> list[str]:
        """Return a line for each task on its pairs of methods, and a line on the cost against `sweep.decide.most` seeds."""
        most = self.decide.most
        lines = [
            "Seeds in groups (sweep.seeds=auto) until it is decided which methods differ, by their final returns. The error level "
            f"is {self.decide.level:g} on each task, for all of its pairs and groups together. The intervals of the table do not "
            "allow for this choice of n: judge pairs by these decisions."
        ]
        for task, methods in self._runs.items():
            lines.append(f"{task}: {'; '.join(self._pair_text(pair) for pair in self._decisions(methods))}.")
        used = sum(seeds for methods in self._used().values() for seeds in methods.values())
        fixed = sum(len(methods) for methods in self._runs.values()) * most
        lines.append(
            f"Cost: {count(used, 'run')} instead of {fixed} with {most} seeds each ({100 * (1 - used / fixed):.0f} % fewer)."
        )
        return lines

    def _pair_text(self, pair: PairDecision) -> str:
        first, second = pair.methods
        seeds = self._seeds(pair.groups)
        if pair.decided:
            return f"{first} is better than {second} ({seeds} seeds)"
        if seeds == self.decide.most:
            return f"{first} and {second} are not decided ({seeds} seeds, the most)"
        return f"{first} and {second} are not decided yet ({seeds} seeds)"

    def _seeds(self, groups: int) -> int:
        """Return the number of seeds that so many groups have."""
        if groups == 0:
            return 0
        return min(self.decide.first + (groups - 1) * self.decide.step, self.decide.most)

    @property
    def _max_groups(self) -> int:
        return 1 + math.ceil((self.decide.most - self.decide.first) / self.decide.step)

    def _used(self) -> dict[str, dict[str, int]]:
        """Return the number of seeds that each method needs by now, by task and method."""
        used: dict[str, dict[str, int]] = {}
        for task, methods in self._runs.items():
            pairs = self._decisions(methods)
            used[task] = {
                name: self._seeds(
                    max(
                        pair.groups if pair.decided else min(pair.groups + 1, self._max_groups)
                        for pair in pairs
                        if name in pair.methods
                    )
                )
                for name in methods
            }
        return used

    def _decisions(self, methods: dict[str, list[int]]) -> list[PairDecision]:
        """Return the decision on each pair of the methods of a task."""
        scores = {name: self._groups(runs) for name, runs in methods.items()}
        return decide_pairs(scores, self.decide.level, self._max_groups)

    def _groups(self, runs: Sequence[int]) -> list[Array]:
        """Return the final returns of each group of a method's runs, up to the first group that is not complete."""
        groups = []
        for group in range(self._max_groups):
            members = runs[self._seeds(group) : self._seeds(group + 1)]
            scores = np.array([_score(self.plan.runs[index].directory) for index in members])
            if not np.isfinite(scores).all():
                break
            groups.append(scores)
        return groups

    def _methods_by_task(self) -> dict[str, dict[str, list[int]]]:
        """Return the runs of each method, by seed, for each task.

        Methods are named as in tables, by what differs if need be. Options of the environment that differ define another task,
        since returns under different rules cannot be compared.
        """
        varying = {
            key
            for key in varying_keys(self.combinations) - {"mixer", "algorithm", "seed", "env"}
            if not key.startswith("env.") or key == "env.num_envs"
        }
        runs: dict[str, dict[str, list[int]]] = defaultdict(dict)  # by task, and by name of the run without its seed
        labels: dict[str, tuple[str, ...]] = {}  # from the shortest
        for overrides, index in zip(self.combinations, self.plan.run_index, strict=True):
            run = self.plan.runs[index]
            task = task_and_rules(run.config.env)
            key = run_name(replace(run.config, seed=0), run.tfcaf_hash)
            base = method_name(run.config.algorithm.name, run.config.mixer.name)
            options = [text for text in overrides if override_key(text) in varying]
            labels.setdefault(key, (base, " ".join([base, *options]), key))
            seeds = runs[task].setdefault(key, [])
            if index not in seeds:
                seeds.append(index)
        return {
            task: {_shortest_unique(labels, key, methods): indices for key, indices in methods.items()}
            for task, methods in runs.items()
        }


def _shortest_unique(labels: Mapping[str, Sequence[str]], key: str, keys: Iterable[str]) -> str:
    """Return the first label of a method that no other method has.

    Args:
        labels: labels of each method, by its key; the last one is unique.
        key: key of the method.
        keys: keys of the methods that it is to be told from.
    """
    candidates = enumerate(labels[key])
    return next(label for level, label in candidates if [labels[other][level] for other in keys].count(label) == 1)


def _score(directory: RunDirectory) -> float:
    """Return the final return of a run; nan if it is not finished."""
    result = directory.result()
    return math.nan if result is None else float(result.get("final_return", math.nan))
