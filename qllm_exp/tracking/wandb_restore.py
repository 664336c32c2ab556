"""A run's folder, made again from what Weights & Biases was told of the run: the way back of `mirrored`.

What makes tables comes back as it was: configuration (but for what says where and how), figures, function, versions. The
service keeps numbers without their kind (1.0 is 1), and those that are not finite as words in some places.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qllm_exp.config import schema
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking.wandb_payload import BY_TASK, ROWS, WHOLE, dotted, id_of
from qllm_exp.utils.files import write_atomically

TOLD = "told.json"  # in the folder: {"mark": of what it was made from, "id": ..., "url": ...}

_FORMAT = 1  # of these folders; another one makes them all anew
_HOST = "Weights & Biases"
_NAMED = {"env.name", "env.task", "mixer.name", "algorithm.name", "seed"}  # every run of this package says these
_COUNTS = {"env_step", "env_step_exact", "env_steps", "episodes", "updates"}  # whole numbers; other figures are floats
_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass(frozen=True)
class RemoteRun:
    """A run as the server shows it.

    Attributes:
        shown: the name that it is shown under. state: 'running', 'finished', 'crashed', ... in the service's words.
        heartbeat: its last sign of life, ISO 8601; '' where there is none. lines: rows of its history, as counted so far.
        config, summary: with dotted keys, whatever way the service nests them.
    """

    id: str
    shown: str
    state: str
    heartbeat: str
    lines: int
    url: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the run's folder; '' for a run that this package did not make."""
        name = str(self.config.get("run") or self.shown)
        ours = self.id == id_of(name) and self.config.keys() >= _NAMED and name == Path(name).name
        return name if ours and not name.startswith(".") else ""

    @property
    def function(self) -> str:
        """The first digits of its function's hash; '' where it has none."""
        return str(self.config.get("function") or "")

    @property
    def rows(self) -> int:
        """How many rows the run has by its own account, -1 where it gave none."""
        return int(self.summary.get(ROWS, -1))

    @property
    def result(self) -> dict[str, Any]:
        """result.json; {} for a run that is not finished."""
        if self.state != "finished" or "final_return" not in self.summary:
            return {}
        return _nested(
            {
                key: _figure(key, value)
                for key, value in self.summary.items()
                if "/" not in key and not key.startswith("_") and key != "env_step"
            }
        )

    @property
    def mark(self) -> str:
        """Changes with whatever the folder is made from."""
        every = [_FORMAT, self.state, self.lines, dict(self.config), dict(self.summary)]
        return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()


def told(node: Mapping[str, Any], url: str) -> RemoteRun:
    """From the fields that the service has of a run; `config` and `summaryMetrics` parsed."""
    return RemoteRun(
        id=str(node["name"]),
        shown=str(node.get("displayName") or ""),
        state=str(node.get("state") or ""),
        heartbeat=str(node.get("heartbeatAt") or ""),
        lines=int(node.get("historyLineCount") or 0),
        url=url,
        config=dotted(dict(node.get("config") or {})),
        summary=dotted(dict(node.get("summaryMetrics") or {})),
    )


def is_made(folder: Path, run: RemoteRun) -> bool:
    """Whether the folder was made of what the server shows now."""
    try:
        return bool(json.loads((folder / TOLD).read_text())["mark"] == run.mark)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(folder: Path, run: RemoteRun, history: Iterable[Mapping[str, Any]], function: str) -> None:
    """Fill an empty folder. What a run that is not finished has come to is in its status alone, without rows and function.

    Args:
        history: rows as the service has them, for a finished run. function: JSON text of the one it uses, '' for none.
    """
    folder.mkdir(parents=True)
    directory = RunDirectory(folder)
    directory.config.write_text(OmegaConf.to_yaml(OmegaConf.create(_configuration(run.config))))
    lacking = ""
    if run.result:
        rows = _rows(history)
        directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if function:
            directory.tfcaf.write_text(function, encoding="utf-8")
        lacking = _lacking(run, len(rows), function)
    versions = {key.removeprefix("versions."): v for key, v in run.config.items() if key.startswith("versions.")}
    (folder / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    if run.result and not lacking:
        directory.finish(run.result)
    note_status(folder, run, lacking)
    if not lacking:  # else it is looked at again the next time
        (folder / TOLD).write_text(json.dumps({"mark": run.mark, "id": run.id, "url": run.url}) + "\n")


def note_status(folder: Path, run: RemoteRun, lacking: str = "") -> None:
    """Write status.json: how the run stands, in the words of a run's folder, with the sign of life that the server has of it."""
    at = {"env_step": run.summary.get("env_step", 0), "total_steps": run.config.get("train.total_steps", 0)}
    alive = {"host": _HOST, "pid": run.id}
    if run.result and not lacking:
        said: dict[str, Any] = {"state": "finished"}
    elif run.state == "running":
        said = {"state": "running", "heartbeat": time.time()}  # the server waits for minutes before it says otherwise
    elif run.state == "crashed":  # its sender gave no sign of life any more, and nobody knows of the run
        said = {"state": "running", "heartbeat": _seconds(run.heartbeat)}
    elif run.state in ("preempting", "preempted"):
        said = {"state": "interrupted"}
    elif run.state == "pending":
        said = {"state": "new"}
    else:
        said = {"state": "failed", "error": f"{lacking or f'W&B says {run.state}'}: {run.url}"}
    write_atomically(folder / "status.json", json.dumps({**at, **alive, **said}, indent=1) + "\n")


def _lacking(run: RemoteRun, rows: int, function: str) -> str:
    """What the server does not have of a finished run, in words; '' when it has all."""
    if rows < run.rows or not rows:
        return f"the server has {rows} of its {max(run.rows, 0) or 'own'} rows (to send them: python -m qllm_exp.results sync)"
    if run.function and not function:
        return f"its function, the artifact tfcaf-{run.function}, is not on the server"
    return ""


def _configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.yaml. Of the tracking and of the folder of a run nothing is told."""
    whole = set(config.get(WHOLE) or ())
    own = {key: float(value) if key in whole else value for key, value in config.items()}
    groups = {one.name for one in fields(schema.RunConfig)} - {"tracking", "sweep"}
    nested = _nested({key: value for key, value in own.items() if "." in key and key.partition(".")[0] in groups})
    sweep = {"name": str(config.get("sweep") or "")}
    return {**nested, "sweep": sweep, "seed": int(config["seed"]), "device": str(config.get("device") or "auto")}


def _rows(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, by their numbers from 0 on; those after one that is missing do not count."""
    by_number = {int(one["_step"]): one for one in history}
    found: list[dict[str, Any]] = []
    while (number := len(found)) in by_number:
        found.append(_row(by_number[number]))
    return found


def _row(logged: Mapping[str, Any]) -> dict[str, Any]:
    """Where the service keeps histories as tables, what a row has not is None in it."""
    named = {key: value for key, value in logged.items() if "/" in key and value is not None}
    figures = {key: value for key, value in named.items() if not key.startswith(BY_TASK)}
    kind = next(iter(figures)).partition("/")[0] if figures else "training"
    own = {key.partition("/")[2]: value for key, value in sorted(figures.items())}
    step = int(logged["env_step"])
    return {"kind": kind, "env_step": step, **{key: _figure(key, value) for key, value in own.items()}}


def _figure(key: str, value: Any) -> Any:
    """A figure of the kind that it had."""
    value = _WORDS.get(value, value) if isinstance(value, str) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return int(value) if key in _COUNTS or key.startswith("parameters.") else float(value)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The way back of `dotted`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return nested


def _seconds(heartbeat: str) -> float:
    """Since 1970; 0 where nothing is said."""
    try:
        return datetime.fromisoformat(heartbeat).timestamp()
    except ValueError:
        return 0.0
