"""From run folders to plain records."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qllm_exp.tracking.run_dir import RunDirectory

# Settings that say where or how a run was made, not what it is.
_NOT_A_METHOD = (
    *("seed", "dir", "device", "env.name", "env.task", "env.workers", "tracking.", "sweep.", "mixer.file"),
    *("train.checkpoint.", "train.name", "train.source", "tfcaf.cache", "tfcaf.budget_usd"),
    *(
        "llm.backend",
        "llm.api_base",
        "llm.key_env",
        "llm.timeout_s",
        "llm.attempts",
        "llm.concurrency",
        "llm.usd_",
        "llm.path",
    ),
)
_OF_THE_FUNCTION = ("llm.", "tfcaf.")  # how a credit-assignment function came about: nothing to a mixer that uses none


@dataclass(frozen=True)
class Record:
    """A finished run: what it was, its evaluations and its final figures."""

    path: Path
    task: str  # 'lbf/8x8-2p-2f-coop-2s'
    method: str  # 'tfcaf', 'qmix', 'riit+tfcaf', 'qmix learning_rate=0.001'
    seed: int
    settings: dict[str, Any]  # dotted key to value
    steps: tuple[int, ...]  # environment steps of the evaluations
    returns: tuple[float, ...]  # mean episode return of each
    result: dict[str, Any]


def collect(paths: Iterable[Path]) -> list[Record]:
    """The finished runs among the folders. Their method names tell apart settings that differ within a task."""
    records = [record for path in paths if (record := _read(path)) is not None]
    return [_named(one, records) for one in records]


def _read(path: Path) -> Record | None:
    directory = RunDirectory(path)
    result = directory.result()
    if result is None:
        return None
    config = OmegaConf.to_container(OmegaConf.load(directory.config))
    assert isinstance(config, dict)
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    algorithm, mixer = config["algorithm"]["name"], config["mixer"]["name"]
    left_out = _NOT_A_METHOD + (() if mixer == "tfcaf" else _OF_THE_FUNCTION)
    settings = {k: v for k, v in _flat(config).items() if not k.startswith(left_out)}
    if directory.tfcaf.exists():
        settings["mixer.function"] = _digits(json.loads(directory.tfcaf.read_text(encoding="utf-8"))["program"])
    return Record(
        path=path,
        task=f"{config['env']['name']}/{config['env']['task']}",
        method=mixer if algorithm == "q_learning" else f"{algorithm}+{mixer}",
        seed=config["seed"],
        settings=settings,
        steps=tuple(row["env_step"] for row in evaluations),
        returns=tuple(row["return_mean"] for row in evaluations),
        result=result,
    )


def _digits(program: Any) -> str:
    """What tells one credit-assignment function from another in a name."""
    return hashlib.sha256(json.dumps(program, sort_keys=True).encode()).hexdigest()[:8]


def _flat(node: dict[Any, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat


def _named(one: Record, records: Sequence[Record]) -> Record:
    """Add to the method's name the settings in which runs of the same task and method differ."""
    alike = [r for r in records if (r.task, r.method) == (one.task, one.method)]
    keys = sorted({k for r in alike for k in r.settings})
    differ = [k for k in keys if any(r.settings.get(k) != one.settings.get(k) for r in alike)]
    if not differ:
        return one
    extra = " ".join(f"{k.rpartition('.')[2]}={one.settings.get(k)}" for k in differ)
    return Record(**{**one.__dict__, "method": f"{one.method} {extra}"})
