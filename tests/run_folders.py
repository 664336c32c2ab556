"""Folders of runs, for tests: making some that were never run, and reading what a run found."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qllm_exp.config import schema
from qllm_exp.config.load import config_class, run_name

STEPS = (0, 50_000, 100_000, 150_000, 200_000)


def make(
    folder: Path,
    run: schema.RunConfig,
    final: float,
    absolute: float | None = None,
    returns: Sequence[float] | None = None,
    steps: Sequence[int] = STEPS,
    program: Any = None,
    usd: float | None = 0.25,
) -> Path:
    """A finished run, whose evaluations rise to `final` where no others are given. `program`: of a function, any JSON."""
    path = folder / run_name(run, json.dumps(program))
    path.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(run)), path / "config.yaml")
    every = returns if returns is not None else [final * at / (len(steps) - 1) for at in range(len(steps))]
    rows = [
        {"kind": "evaluation", "env_step": step, "return_mean": value} for step, value in zip(steps, every, strict=True)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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


def unfinished(folder: Path, run: schema.RunConfig, state: str, error: str = "") -> Path:
    """A run that stands as `state` says: 'failed', 'interrupted', ..."""
    path = folder / run_name(run, "")
    path.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(run)), path / "config.yaml")
    (path / "status.json").write_text(json.dumps({"state": state, "host": "elsewhere", "error": error}))
    return path


def of(mixer: str, seed: int = 0, task: str = "8x8-2p-2f-coop-2s", env: str = "lbf", **more: Any) -> schema.RunConfig:
    """A configuration by the names of its mixer and task."""
    chosen = {"env": config_class("env", env)(task=task), "mixer": config_class("mixer", mixer)()}
    return schema.RunConfig(**chosen, seed=seed, **more)


def final(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All that a finished run found, but for what the clock decides: its rows, and its final figures."""
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("wall_s", None)
    return rows, {k: result[k] for k in ("final_return", "absolute_return", "env_steps", "episodes", "updates")}
