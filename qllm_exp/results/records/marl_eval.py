"""JSON files of marl-eval, which BenchMARL and Mava write: environment / task / algorithm / seed / step / metric.

    {"vmas": {"simple_spread": {"qmix": {"seed_0": {"step_0": {"step_count": 1000, "return": [3.1, 2.7]}, ...,
                                                    "absolute_metrics": {"return": [3.4]}}}}}}

The metric of an evaluation is a list: a value per episode, or their mean. The file has neither the options of the task nor
those of the method. BenchMARL's `absolute_metrics` holds the highest single episode of all evaluations, so it is not the absolute
metric and is left out; Mava's holds the best parameters, evaluated once more.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.results.records.external import ExternalRun, SourceMapping, check_curve, is_number, read_json
from qllm_exp.results.records.reader import FUNCTION, Record
from qllm_exp.utils.text import count, inert

ABSOLUTE = "absolute_metrics"
OWN_RETURN = "mean_episode_return"  # name of the return in Mava's files, and in those of `document`
_BENCHMARL_RETURN = "return"
_RETURNS = (_BENCHMARL_RETURN, OWN_RETURN, "episode_return")
_SEED = re.compile(r"(?:seed_|run_)?(\d{1,20})(?:_.*)?")
_STEP = re.compile(r"step_(\d{1,20})")
_LAYOUT = "environment / task / algorithm / seed_N / step_N"
_BENCHMARL_UNIT = (
    "mean over agents and groups of the sum of their rewards; steps: frames, that is, steps over all copies"
)
_UNKNOWN_UNIT = "the file does not say whether the rewards of the agents are averaged or summed; steps: its step_count"


def read(path: Path, mapping: SourceMapping) -> list[ExternalRun]:
    """Return the runs of a file.

    Args:
        path: the file.
        mapping: what the user states about it.

    Raises:
        UserError: the file does not have the layout of marl-eval, a run has no seed, or its metrics do not fit together.
    """
    runs = []
    for env, tasks in _items(read_json(path), str(path)):
        for task, methods in _items(tasks, f"{path}: {env}"):
            for method, seeds in _items(methods, f"{path}: {env}/{task}"):
                for name, content in _items(seeds, f"{path}: {env}/{task}/{method}"):
                    runs.append(_read_run(path, (env, task, method, name), content, mapping))
    return runs


def _items(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        raise UserError(f"{inert(place)} is not an object with entries. A marl-eval file has {_LAYOUT}.")
    return ((inert(key), value) for key, value in node.items())


def _read_run(path: Path, names: tuple[str, str, str, str], content: Any, mapping: SourceMapping) -> ExternalRun:
    env, task, method, name = names
    place = f"{path}: {'/'.join(names)}"
    seed = _SEED.fullmatch(name)
    if seed is None:
        raise UserError(f"{place} has no seed: {name!r} is not of the form seed_N or run_N.")
    numbered = {int(match[1]): step for key, step in _items(content, place) if (match := _STEP.fullmatch(key))}
    if not numbered:
        raise UserError(f"{place} has no evaluation (step_N). A marl-eval file has {_LAYOUT}.")
    evaluations = [numbered[number] for number in sorted(numbered)]
    metric = _return_metric(place, evaluations, mapping.metric)
    steps, returns, episodes = [], [], set()
    for number, evaluation in zip(sorted(numbered), evaluations, strict=True):
        values = _values(f"{place}/step_{number}", evaluation, metric)
        steps.append(evaluation.get("step_count"))
        returns.append(values)
        episodes.add(len(values))
    if len(episodes) > 1:
        raise UserError(
            f"{place}: {metric} has {min(episodes)} values in some evaluations and {max(episodes)} in others. All evaluations "
            "must have the same number of episodes."
        )
    numbers, means = check_curve(f"{place}/{metric}", steps, [_mean(values) for values in returns])
    absolute = _absolute(place, content.get(ABSOLUTE), metric)
    is_benchmarl = any(_BENCHMARL_RETURN in evaluation for evaluation in evaluations)
    is_mean = metric == _BENCHMARL_RETURN
    unit = mapping.unit or (_BENCHMARL_UNIT if is_mean else f"{metric}; {_UNKNOWN_UNIT}")
    values_text = count(episodes.pop(), "value")
    return ExternalRun(
        path=path.joinpath(*(part.replace("/", "-") for part in names)),
        program=mapping.program or ("benchmarl" if is_benchmarl else "marl-eval"),
        env=env,
        task=task,
        method=method,
        seed=int(seed[1]),
        steps=numbers,
        returns=means,
        unit=f"{unit}; {values_text} per evaluation",
        absolute=None if is_benchmarl else absolute,
    )


def _return_metric(place: str, evaluations: Iterable[Any], wanted: str) -> str:
    """Return the name of the metric that is the return: the wanted one, or the first usual name that an evaluation has."""
    names = {key: None for evaluation in evaluations for key, _ in _items(evaluation, place)}
    for name in (wanted,) if wanted else _RETURNS:
        if name in names:
            return name
    available = ", ".join(name for name in names if name not in ("step_count", "elapsed_time")) or "none"
    expected = wanted or " or ".join(_RETURNS)
    raise UserError(
        f"{place} has no metric {expected}. Metrics of the file: {available}. Name one in a mapping file: metric: NAME."
    )


def _values(place: str, evaluation: Mapping[str, Any], metric: str) -> list[Any]:
    values = evaluation.get(metric)
    if isinstance(values, list) and values:
        return values
    if isinstance(values, int | float):
        return [values]
    raise UserError(f"{place} has no {metric}, which other evaluations of the run have. Leave the run out.")


def _mean(values: list[Any]) -> Any:
    """Return the mean of numbers; the first value that is not one, which `check_curve` refuses."""
    for value in values:
        if not is_number(value):
            return value
    try:
        return fmean(values)
    except OverflowError:  # their sum is too large for a float
        return math.inf


def _absolute(place: str, content: Any, metric: str) -> float | None:
    if not isinstance(content, dict) or metric not in content:
        return None
    value = _mean(_values(f"{place}/{ABSOLUTE}", content, metric))
    _, (absolute,) = check_curve(f"{place}/{ABSOLUTE}/{metric}", [0], [value])
    return absolute


def document(records: Iterable[Record]) -> dict[str, Any]:
    """Return finished runs in the layout of marl-eval.

    Runs of several functions that share method and seed get the digits of their function behind the seed.
    """
    content: dict[str, Any] = {}
    for record in records:
        env, _, task = record.task.partition("/")
        seeds = content.setdefault(env, {}).setdefault(task, {}).setdefault(record.method, {})
        name = f"seed_{record.seed}"
        if name in seeds:
            name = f"{name}_function_{record.settings.get(FUNCTION)}"
        run: dict[str, Any] = {
            f"step_{number}": {"step_count": step, OWN_RETURN: [value]}
            for number, (step, value) in enumerate(zip(record.steps, record.returns, strict=True))
        }
        if "absolute_return" in record.result:
            run[ABSOLUTE] = {OWN_RETURN: [record.result["absolute_return"]]}
        seeds[name] = run
    return content
