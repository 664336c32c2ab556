"""Helpers for tests: create run directories without running anything, and read the results of a run."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qllm_exp.config import schema
from qllm_exp.config.load import config_class, run_name
from qllm_exp.utils.files import strict_json

STEPS = (0, 50_000, 100_000, 150_000, 200_000)


def make_run(
    folder: Path,
    run: schema.RunConfig,
    final: float,
    absolute: float | None = None,
    returns: Sequence[float] | None = None,
    steps: Sequence[int] = STEPS,
    program: Any = None,
    usd: float | None = 0.25,
    metrics: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Create the directory of a finished run.

    Args:
        folder: where to create it.
        run: configuration.
        final: final return.
        absolute: absolute metric; None: as `final`.
        returns: returns of the evaluations; None: they rise linearly to `final`.
        steps: environment steps of the evaluations.
        program: program of the credit-assignment function, any JSON; None: no function.
        usd: price of the function.
        metrics: means of each evaluation of what the environment reports, by name, e.g. 'win'.
    """
    path = folder / run_name(run, json.dumps(program))
    path.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(run)), path / "config.yaml")
    if returns is None:
        returns = [final * index / (len(steps) - 1) for index in range(len(steps))]
    rows: list[dict[str, Any]] = [
        {"kind": "evaluation", "env_step": step, "return_mean": value}
        for step, value in zip(steps, returns, strict=True)
    ]
    for name, means in (metrics or {}).items():
        for row, mean in zip(rows, means, strict=True):
            row[f"{name}_mean"] = mean
    (path / "metrics.jsonl").write_text("".join(strict_json(row) + "\n" for row in rows))
    result = {
        "final_return": final,
        "absolute_return": final if absolute is None else absolute,
        "wall_s": 100.0,
        "env_steps": 200_000,
        "parameters": {"agent": 26_310, "mixer": 0 if run.mixer.name == "tfcaf" else 1000},
    }
    (path / "result.json").write_text(json.dumps(result))
    if program is not None:
        (path / "tfcaf.json").write_text(json.dumps({"program": program, "cost": {"calls": 7, "usd": usd}}))
    return path


def make_unfinished_run(folder: Path, run: schema.RunConfig, state: str, error: str = "") -> Path:
    """Create the directory of a run whose status file has a state: 'failed', 'interrupted', ..."""
    path = folder / run_name(run, "")
    path.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(run)), path / "config.yaml")
    (path / "status.json").write_text(json.dumps({"state": state, "host": "elsewhere", "error": error}))
    return path


def run_config(
    mixer: str,
    seed: int = 0,
    task: str = "8x8-2p-2f-coop-2s",
    env: str = "lbf",
    env_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> schema.RunConfig:
    """Return a configuration by the names of its mixer and task."""
    env_config = config_class("env", env)(task=task, **env_options or {})
    mixer_config = config_class("mixer", mixer)()
    return schema.RunConfig(env=env_config, mixer=mixer_config, seed=seed, **options)


def run_outcome(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the metrics rows and final results of a run, without wall times."""
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("wall_s", None)
    keys = ("final_return", "absolute_return", "env_steps", "episodes", "updates")
    return rows, {key: result[key] for key in keys}
