"""The trainings of a search: ordinary runs, planned and started like those of a sweep, on all cores or on Slurm.

Stage by stage the trainings become longer and the candidates fewer (successive halving, Jamieson and Talwalkar 2016), so that bad
candidates cost little. The plain sum and QMIX are trained once in every stage with the same seeds and steps.

The score of a training is the mean of its last three evaluations, since a single evaluation varies more than candidates differ.
There are up to ten; fewer where a rollout is longer than a tenth of the training, since one evaluation then stands for several
points of the curve.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, cast

from qllm_exp.config import schema
from qllm_exp.config.load import config_class
from qllm_exp.errors import DIVERGED, UserError
from qllm_exp.runs.metrics import EvaluationRow, read_rows
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.search.archive import BASELINES
from qllm_exp.search.search_directory import Row, SearchDirectory
from qllm_exp.sweep.launch import run_plan
from qllm_exp.sweep.launcher import Launcher
from qllm_exp.sweep.plan import plan_configs
from qllm_exp.utils.text import count

POINTS = 10  # evaluations of a training that the log keeps
_SCORED = 3  # different evaluations, the last ones, whose mean is the score
_SEEDS_PER_SAMPLE = 1_000
_TUNING_SEED = _SEEDS_PER_SAMPLE - 1  # no stage has so many seeds


class Trainings:
    """Trains functions and baselines.

    Args:
        run: the configuration of the search.
        key: the key of the search.
        directory: its directory.
        launcher: where the runs take place; it waits for them.
        show: called with a few words on the trainings that start.
    """

    def __init__(
        self,
        run: schema.RunConfig,
        key: str,
        directory: SearchDirectory,
        launcher: Launcher,
        show: Callable[[str], None],
    ) -> None:
        self._run, self._key, self._directory, self._launcher = run, key, directory, launcher
        self._options, self._show = run.tfcaf.search, show

    def train(self, functions: Sequence[str], stage: int) -> None:
        """Train functions in a stage, with each of its seeds; trainings that the log has are not repeated.

        Args:
            functions: keys of functions, and names of baselines.
            stage: index of the stage.

        Raises:
            UserError: a training has failed, or was stopped.
        """
        seeds = [self._seed(number) for number in range(self._options.seeds[stage])]
        known = {(row["function"], row["seed"]) for row in self._directory.of_kind("training", stage=stage)}
        missing = [
            (function, seed) for function in functions for seed in seeds if (function, seed) not in known
        ]  # in the order of the log
        if not missing:
            return
        steps = self._options.steps[stage]
        self._show(f"stage {stage + 1}: {count(len(missing), 'training')} of {steps:,} steps")
        configs = [self._config(function, stage, seed) for function, seed in missing]
        rows: list[Row] = []
        for (function, seed), directory in zip(missing, self._start(configs), strict=True):
            evaluations = _evaluations(directory)
            different = {row["env_step_exact"]: row["return_mean"] for row in evaluations}
            rows.append(
                {
                    "kind": "training",
                    "function": function,
                    "stage": stage,
                    "seed": seed,
                    "return": fmean(list(different.values())[-_SCORED:]) if different else None,
                    "curve": [row["return_mean"] for row in evaluations],
                    "evaluations": len(different),
                    "run": directory.path.name,
                    "env_steps": steps,
                }
            )
        self._directory.append(rows)

    def train_constants(self, function: str) -> RunDirectory:
        """Train a function along with its constants in the last stage, and return the directory of the run.

        Args:
            function: key of the function.

        Raises:
            UserError: the training has failed, or was stopped.
        """
        config = self._config(function, len(self._options.steps) - 1, self._seed(_TUNING_SEED))
        assert isinstance(config.mixer, schema.FunctionMixerConfig)
        self._show(f"constants of the best function: 1 training of {config.train.total_steps:,} steps")
        (directory,) = self._start([replace(config, mixer=replace(config.mixer, trainable_constants=True))])
        return directory

    def _seed(self, number: int) -> int:
        """Return a seed of the trainings of this search; independent searches (`tfcaf.sample`) have others."""
        offset = self._run.tfcaf.sample * _SEEDS_PER_SAMPLE + number
        return schema.SEARCH_SEEDS[offset % len(schema.SEARCH_SEEDS)]

    def _config(self, function: str, stage: int, seed: int) -> schema.RunConfig:
        """Return the configuration of a training."""
        run, steps = self._run, self._options.steps[stage]
        evaluation = replace(run.train.evaluation, every=max(1, steps // POINTS), absolute_episodes=1)
        assert isinstance(run.mixer, schema.FunctionMixerConfig)
        file = str(self._directory.function_path(function))
        # Candidates are trained as they are written, whatever the runs that use the result do.
        mixer: schema.MixerConfig = replace(run.mixer, file=file, trainable_constants=False)
        if function in BASELINES:
            mixer = config_class("mixer", function)()
        return replace(
            run,
            mixer=mixer,
            train=replace(run.train, total_steps=steps, evaluation=evaluation),
            tracking=schema.TrackingConfig(),
            sweep=schema.SweepConfig(name="trainings", search=self._key),
            seed=seed,
            dir=str(self._directory.runs),
        )

    def _start(self, configs: Sequence[schema.RunConfig]) -> list[RunDirectory]:
        """Train what is not finished, and return the directory of each configuration."""
        plan = plan_configs(configs, self._launcher.device_resolver(), self._launcher.memory)
        command = self._directory.resume_command
        run_plan(plan, self._launcher, command)
        directories = [plan.runs[index].directory for index in plan.run_index]
        unfinished = [directory for directory in directories if directory.result() is None]
        failed = [directory for directory in unfinished if not _has_diverged(directory)]
        if failed:
            status = failed[0].status()
            raise UserError(
                f"{count(len(failed), 'training')} of the search did not finish, e.g. {failed[0].path}: "
                f"{status.get('error') or status.get('state', 'not started')}. The same command trains what is missing: {command}"
            )
        return directories


def _has_diverged(directory: RunDirectory) -> bool:
    """Whether a run has failed by its own function: its parameters are no longer numbers."""
    return str(directory.status().get("error", "")).startswith(DIVERGED)


def _evaluations(directory: RunDirectory) -> list[EvaluationRow]:
    """Return the evaluations of a training at the points of its curve, without the one before the first step; [] if it diverged.

    The points that one rollout has passed have the same evaluation: the same `env_step_exact` and return.
    """
    if directory.result() is None:
        return []
    rows: Any = read_rows(directory.metrics, "evaluation")
    evaluations = cast(list[EvaluationRow], rows)
    return [row for row in evaluations if row["env_step"] > 0]
