"""sweep.tune: equal tuning. Every method gets the same number of trials, seeds and environment steps over a stated space.

A trial is a setting of one method on one task. The first has the fixed settings, those of the command; the others are drawn without
repetition from the values that `hydra.sweeper.space` lists for the method (random search, Bergstra and Bengio 2012). The trial
with the highest mean final return is chosen, and the chosen settings are trained beside the fixed ones, with the seeds of the
command.

Trials have seeds that no other run may have (`schema.SEARCH_SEEDS`), so no return that chose a setting is in the comparison. They
are a sweep of their own, NAME_trials, and the comparison is the sweep NAME. All follows from the command and the results on disk.
"""

import logging
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from qllm_exp.config import schema
from qllm_exp.config.load import load_run, method_name, task_and_rules, unused_in
from qllm_exp.errors import UserError
from qllm_exp.runs.metrics import read_rows
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep.fast_compose import Overrides
from qllm_exp.sweep.launch import LaunchResult
from qllm_exp.sweep.launcher import NEXT_GROUP
from qllm_exp.sweep.plan import Plan
from qllm_exp.sweep.pruning import NONE
from qllm_exp.sweep.seed_groups import AUTO
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

FIXED, TUNED = "fixed", "tuned"  # labels of methods in the comparison
# No trial may differ in these options.
_KEPT_EQUAL = ("seed", "env.", "sweep.", "tfcaf.", "train.total_steps", "train.evaluation.")
_OWN_KEYS = ("seed", "sweep.name", "sweep.search", "sweep.prune")  # set for trials and comparison

Space = Mapping[str, Mapping[str, Sequence[Any]]]  # by method: values by dotted key


@dataclass(frozen=True)
class Method:
    """A method on a task.

    Attributes:
        name: 'qmix', 'riit+tfcaf'.
        task: 'lbf/8x8-2p-2f-coop-2s'.
        overrides: those of the command, without the seed.
        trials: overrides of each trial beside these; those of the first are ().
    """

    name: str
    task: str
    overrides: Overrides
    trials: list[Overrides]

    def setting(self, trial: int) -> Overrides:
        """Return the overrides of a trial, by its index."""
        varied = set(map(_key, self.trials[trial]))
        return (*(text for text in self.overrides if _key(text) not in varied), *self.trials[trial])


def launch_tuned(
    combinations: Sequence[Sequence[str]],
    space: Space,
    compose: Callable[[Overrides], DictConfig],
    start: Callable[..., LaunchResult],
    next_command: Sequence[str],
) -> int:
    """Run the trials, then the fixed settings beside the chosen ones, and return the exit code.

    With a launcher that does not wait, the trials are submitted, and `next_command` follows once they have ended.

    Args:
        combinations: overrides of each run of the command.
        space: the values that trials draw from.
        compose: Hydra's function from overrides to a configuration.
        start: `launch` for some overrides; passes further arguments on.
        next_command: arguments of the command.

    Raises:
        UserError: the sweep cannot start.
    """
    methods, seeds, sweep = read_methods(combinations, space, compose)
    rule = [] if sweep.prune == NONE else [f"sweep.prune={sweep.prune}"]
    trials = [
        (*method.setting(number), *rule, f"sweep.name={sweep.name}_trials", "sweep.search=tuning", f"seed={seed}")
        for method in methods
        for number in range(sweep.tune.trials)
        for seed in schema.SEARCH_SEEDS[: sweep.tune.seeds]
    ]
    log.info(
        "tuning: %d trials of each method on each task with %s each; then fixed and chosen settings with %s, %d runs at most",
        sweep.tune.trials,
        count(sweep.tune.seeds, "seed"),
        count(len(seeds), "seed"),
        2 * len(methods) * len(seeds),
    )
    comparison = [f"sweep.name={sweep.name}", "sweep.prune=none"]
    # What is wrong with the comparison is found before the trials, not after them.
    start([(*method.setting(0), *comparison, seed) for method in methods for seed in seeds], only_plan=True)
    # A command that nobody typed starts no trial again: one that failed would fail in job after job.
    result = start(trials, next_command=next_command, only_plan=bool(os.environ.get(NEXT_GROUP)))
    directories = [result.plan.runs[index].directory for index in result.plan.run_index]
    if sweep.dry_run or not directories:
        return result.exit_code
    seeds_per_trial = sweep.tune.seeds
    trial_runs = [directories[first : first + seeds_per_trial] for first in range(0, len(directories), seeds_per_trial)]
    tried = [trial_runs[first : first + sweep.tune.trials] for first in range(0, len(trial_runs), sweep.tune.trials)]
    ended = [directory.result() is not None or bool(directory.pruned()) for directory in directories]
    if not all(ended):
        log.info("%s of the tuning not finished; the same command goes on with them", count(ended.count(False), "run"))
        return result.exit_code or (1 if os.environ.get(NEXT_GROUP) else 0)
    chosen = [_best(runs) for runs in tried]
    settings = [method.setting(0) for method in methods]
    settings += [method.setting(best) for method, best in zip(methods, chosen, strict=True)]
    final = [(*setting, *comparison, seed) for setting in settings for seed in seeds]

    def entries(plan: Plan) -> dict[str, Any]:
        names = [plan.runs[index].directory.path.name for index in plan.run_index]
        half = len(names) // 2
        return {
            "decide": asdict(sweep.tune) | {"space": {method: dict(values) for method, values in space.items()}},
            "decisions": report(methods, tried, chosen, sweep.tune),
            "labels": {FIXED: names[:half], TUNED: names[half:]},
        }

    return start(final, entries=entries).exit_code


def read_methods(
    combinations: Sequence[Sequence[str]], space: Space, compose: Callable[[Overrides], DictConfig]
) -> tuple[list[Method], list[str], schema.SweepConfig]:
    """Return the methods of a command with their trials, the overrides of its seeds, and the options of its sweep.

    Args:
        combinations: overrides of each run.
        space: the values that trials draw from.
        compose: Hydra's function from overrides to a configuration.

    Raises:
        UserError: the methods cannot be tuned equally.
    """
    seeds = list(dict.fromkeys(text for overrides in combinations for text in overrides if _key(text) == "seed"))
    bases = dict.fromkeys(
        tuple(text for text in overrides if _key(text) not in _OWN_KEYS) for overrides in combinations
    )
    own = [text for text in combinations[0] if _key(text) in ("sweep.name", "sweep.prune")]
    runs = {base: load_run(compose((*base, *own))) for base in bases}
    sweep = next(iter(runs.values())).sweep
    if sweep.seeds == AUTO:
        raise UserError(
            "sweep.tune needs the same seeds for every method, which sweep.seeds=auto chooses. Remove one of the two."
        )
    if not sweep.name:
        raise UserError("sweep.tune makes two sweeps, NAME_trials and NAME. Type a name: sweep.name=tuned.")
    if sweep.tune.trials < 2:
        raise UserError(
            "sweep.tune.trials=1 would try the fixed settings alone. Allowed: 0 for no tuning, or at least 2."
        )
    methods: dict[tuple[str, str], Method] = {}
    for base, run in runs.items():
        name, task = method_name(run.algorithm.name, run.mixer.name), task_and_rules(run.env)
        if (name, task) in methods:
            raise UserError(
                f"{name} on {task} has several fixed settings ({' '.join(base)}, and others). Give the fixed settings of a "
                "method once, and list what trials vary in hydra.sweeper.space."
            )
        methods[name, task] = Method(name, task, base, _draw(name, run, space, sweep.tune.trials))
    return list(methods.values()), seeds or [f"seed={next(iter(runs.values())).seed}"], sweep


def _draw(name: str, run: schema.RunConfig, space: Space, trials: int) -> list[Overrides]:
    """Return the overrides of each trial of a method, the same on every task with the same fixed settings.

    Args:
        name: name of the method.
        run: a run with the fixed settings.
        space: the values that trials draw from.
        trials: number of trials.

    Raises:
        UserError: the space has no such method, too few settings, or options that no trial may vary.
    """
    if name not in space:
        raise UserError(
            f"hydra.sweeper.space has no values for {name}. It has {', '.join(space) or 'none'}. Add them there."
        )
    values = space[name]
    for key in values:
        try:
            attrgetter(key)(run)
        except AttributeError:
            raise UserError(f"hydra.sweeper.space: {key!r} is not an option of {name}. Remove it there.") from None
        if key.startswith(_KEPT_EQUAL):
            raise UserError(f"hydra.sweeper.space: {key} must be equal for all trials of {name}. Remove it there.")
        if key in unused_in(run):
            raise UserError(
                f"hydra.sweeper.space: {key} has no effect with the other options of {name}. Remove it there."
            )
    options = {key: list(dict.fromkeys(listed)) for key, listed in values.items()}
    fixed = [attrgetter(key)(run) for key in options]
    size = math.prod(map(len, options.values()))
    settings = [
        _setting(list(options.values()), number)
        for number in random.Random(name).sample(range(size), min(size, trials))
    ]
    others = [setting for setting in settings if setting != fixed][: trials - 1]
    drawn = [
        (),
        *(tuple(f"{key}={_text(value)}" for key, value in zip(options, other, strict=True)) for other in others),
    ]
    if len(drawn) < trials:
        raise UserError(
            f"hydra.sweeper.space has {count(len(drawn), 'setting')} of {name}, the fixed one included, and every method gets "
            f"sweep.tune.trials={trials}. Add values, or type sweep.tune.trials={len(drawn)}."
        )
    return drawn


def _setting(options: Sequence[Sequence[Any]], number: int) -> list[Any]:
    """Return the combination of a number, from 0 to the number of all combinations.

    Args:
        options: the values of each option.
        number: the last option varies fastest.
    """
    setting = []
    for values in reversed(options):
        number, index = divmod(number, len(values))
        setting.append(values[index])
    return setting[::-1]


def _text(value: Any) -> str:
    """Return a value as it is typed: true for True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _score(runs: Sequence[RunDirectory]) -> float:
    """Return the mean final return of a trial over its seeds; nan if one was pruned or diverged."""
    return fmean(float(result["final_return"]) if (result := run.result()) else math.nan for run in runs)


def _best(trials: Sequence[Sequence[RunDirectory]]) -> int:
    """Return the index of the trial with the highest score; of equal ones the first.

    Args:
        trials: the runs of each trial, which have ended.
    """
    scores = [_score(runs) for runs in trials]
    known = [score if math.isfinite(score) else -math.inf for score in scores]
    return known.index(max(known))


def report(
    methods: Sequence[Method],
    tried: Sequence[Sequence[Sequence[RunDirectory]]],
    chosen: Sequence[int],
    tune: schema.TuneConfig,
) -> list[str]:
    """Return lines for the comparison: how the methods were tuned, what was chosen on each task, and what that cost.

    Args:
        methods: the methods.
        tried: the runs of each trial of each method.
        chosen: index of the chosen trial of each method.
        tune: how the methods were tuned.
    """
    first, last = schema.SEARCH_SEEDS[0], schema.SEARCH_SEEDS[tune.seeds - 1]
    lines = [
        f"Equal tuning: {tune.trials} trials of each method on each task, the fixed settings among them, with {tune.seeds} seeds "
        f"({first}-{last}), none of which is in this table; chosen by the highest mean final return."
    ]
    by_task: dict[str, list[str]] = defaultdict(list)
    costs: dict[str, list[RunDirectory]] = defaultdict(list)
    for method, trials, best in zip(methods, tried, chosen, strict=True):
        setting = " ".join(method.trials[best]) or "the fixed settings"
        fixed = _score(trials[0])
        beside = (
            "" if best == 0 else f", fixed settings {fixed:.3f}" if math.isfinite(fixed) else ", fixed settings pruned"
        )
        by_task[method.task].append(f"{method.name}: {setting} ({_score(trials[best]):.3f}{beside})")
        costs[method.name] += [run for runs in trials for run in runs]
    lines += [f"Chosen on {task}: {'; '.join(texts)}." for task, texts in by_task.items()]
    lines.append(f"Cost of tuning: {'; '.join(_cost(name, runs) for name, runs in costs.items())}.")
    return lines


def _cost(name: str, runs: Sequence[RunDirectory]) -> str:
    """Return 'qmix 24 runs, 12,000,000 steps, 1.3 core hours' for the trials of a method."""
    results = [run.result() for run in runs]
    steps = sum(
        int(result["env_steps"] if result else run.status().get("env_step") or 0)
        for run, result in zip(runs, results, strict=True)
    )
    wall_s = sum(float(result["wall_s"] if result else _wall_s(run)) for run, result in zip(runs, results, strict=True))
    pruned = f" ({results.count(None)} pruned)" if None in results else ""
    return f"{name} {count(len(runs), 'run')}{pruned}, {steps:,} steps, {wall_s / 3600:.2g} core hours"


def _wall_s(run: RunDirectory) -> float:
    """Return the seconds of training of a run that has not finished."""
    rows = read_rows(run.metrics) if run.metrics.exists() else []
    times = [row["wall_s"] for row in rows if row["kind"] != "absolute"]
    return max(times, default=0.0)
