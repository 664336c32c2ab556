"""Runs and their evaluations as rows of a data frame, which the Python API returns and an archive holds."""

from collections.abc import Iterable, Mapping
from typing import Any

from qllm_exp.results.records.collect import Collection, Record
from qllm_exp.runs.metrics import read_rows
from qllm_exp.runs.run_directory import RunDirectory


def run_rows(collection: Collection) -> list[dict[str, Any]]:
    """Return a row per run, finished runs first: names, state, results and settings. What a run does not have is missing."""
    rows = [
        {
            "run": record.name,
            "path": record.path,
            **_names(record.task),
            "method": record.method,
            "seed": record.seed,
            "state": "finished",
            "reason": "",
            "final_return": record.result.get("final_return"),
            "absolute_return": record.result.get("absolute_return"),
            "env_steps": record.result.get("env_steps"),
            "updates": record.result.get("updates"),
            "parameters": record.parameters if "parameters" in record.result else None,
            "wall_s": record.wall_s,
            **record.settings,
        }
        for record in collection.finished
    ]
    rows += [
        {
            "run": run.name,
            "path": run.path,
            **_names(run.task),
            "method": run.method,
            "seed": run.seed,
            "state": run.state,
            "reason": run.reason,
            **run.settings,
        }
        for run in collection.unfinished
    ]
    return rows


def metrics_rows(records: Iterable[Record], *kinds: str) -> list[dict[str, Any]]:
    """Return a row per metrics row of finished runs, after the names of its run.

    Args:
        records: finished runs.
        kinds: kinds of rows, among `KINDS`; of a run of another program only evaluations and the absolute metric are known.
    """
    rows = []
    for record in records:
        labels = {"run": record.name, **_names(record.task), "method": record.method, "seed": record.seed}
        content = _external_rows(record) if record.program else read_rows(RunDirectory(record.path).metrics, *kinds)
        rows += [labels | dict(row) for row in content if row["kind"] in kinds]
    return rows


def _external_rows(record: Record) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for index, (step, value) in enumerate(zip(record.steps, record.returns, strict=True)):
        others = {f"{name}_mean": values[index] for name, values in record.episode_metrics.items()}
        rows.append({"kind": "evaluation", "env_step": step, "return_mean": value, **others})
    if "absolute_return" in record.result:
        absolute = record.result["absolute_return"]
        rows.append({"kind": "absolute", "env_step": record.steps[-1], "return_mean": absolute})
    return rows


def _names(task: str) -> dict[str, str]:
    env, _, name = task.partition("/")
    return {"env": env, "task": name}
