"""Restores a run directory from what Weights & Biases has of the run: the inverse of `wandb_payload`.

What tables are made from is restored exactly: configuration (except where and how the run was made), metrics, function and
versions. The service stores numbers without their type (1.0 becomes 1), and in some places NaN and infinity as texts.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qllm_exp.config import schema
from qllm_exp.runs.dotted_keys import flatten, nest
from qllm_exp.runs.json_files import read_object, write_object
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking.wandb_payload import ROWS_KEY, TASK_PREFIX, WHOLE_FLOATS_KEY, id_from_name
from qllm_exp.utils.files import strict_json

ORIGIN_FILE = "told.json"  # in the folder: {"mark": fingerprint of its source, "id": ..., "url": ...}

_FORMAT = 1  # of these folders; a new number makes all of them be restored again
_HOST = "Weights & Biases"
_REQUIRED_KEYS = {"env.name", "env.task", "mixer.name", "algorithm.name", "seed"}  # every run of this package has them
_COUNTS = {"env_step", "env_step_exact", "env_steps", "episodes", "updates"}  # integers; other metrics are floats
_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass(frozen=True)
class RemoteRun:
    """A run as the server has it.

    Attributes:
        id: of the run.
        display_name: name that is shown on its page, where a user can change it.
        state: 'running', 'finished', 'crashed', ... in the service's terms.
        heartbeat: time of the last heartbeat, ISO 8601; '' if there is none.
        history_lines: rows of its history, as counted so far.
        url: of its page.
        config: configuration with dotted keys, however the service nests it.
        summary: summary with dotted keys, likewise.
    """

    id: str
    display_name: str
    state: str
    heartbeat: str
    history_lines: int
    url: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run's folder; '' for a run that this package did not make."""
        name = str(self.config.get("run") or self.display_name)
        made_here = self.id == id_from_name(name) and self.config.keys() >= _REQUIRED_KEYS and name == Path(name).name
        return name if made_here and not name.startswith(".") else ""

    @property
    def function(self) -> str:
        """First digits of the hash of its function; '' if it has none."""
        return str(self.config.get("function") or "")

    @property
    def rows(self) -> int:
        """Number of rows that the run reported; -1 if it reported none."""
        return int(self.summary.get(ROWS_KEY, -1))

    @property
    def result(self) -> dict[str, Any]:
        """Content of result.json; {} for a run that is not finished."""
        if self.state != "finished" or "final_return" not in self.summary:
            return {}
        return nest(
            {
                key: _typed(key, value)
                for key, value in self.summary.items()
                if "/" not in key and not key.startswith("_") and key != "env_step"
            }
        )

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the folder is restored from."""
        content = [_FORMAT, self.state, self.history_lines, dict(self.config), dict(self.summary)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_run(node: Mapping[str, Any], url: str) -> RemoteRun:
    """Return a run from the service's fields of it.

    Args:
        node: fields of the run, with `config` and `summaryMetrics` already parsed from JSON.
        url: of its page.
    """
    return RemoteRun(
        id=str(node["name"]),
        display_name=str(node.get("displayName") or ""),
        state=str(node.get("state") or ""),
        heartbeat=str(node.get("heartbeatAt") or ""),
        history_lines=int(node.get("historyLineCount") or 0),
        url=url,
        config=flatten(dict(node.get("config") or {})),
        summary=flatten(dict(node.get("summaryMetrics") or {})),
    )


def is_current(folder: Path, run: RemoteRun) -> bool:
    """Whether the folder was restored from what the server has now."""
    return bool(read_object(folder / ORIGIN_FILE).get("mark") == run.fingerprint)


def restore(folder: Path, run: RemoteRun, history: Iterable[Mapping[str, Any]], function: str) -> None:
    """Create a run directory. An unfinished run gets its configuration, versions and status, but no rows and no function.

    Args:
        folder: to create.
        run: as the server has it.
        history: rows as the service has them, for a finished run.
        function: JSON text of the function that the run uses; '' for none.
    """
    folder.mkdir(parents=True)
    directory = RunDirectory(folder)
    directory.config.write_text(OmegaConf.to_yaml(OmegaConf.create(_configuration(run.config))))
    missing = ""
    if run.result:
        rows = _metrics_rows(history)
        directory.metrics.write_text("".join(strict_json(row) + "\n" for row in rows))
        if function:
            directory.tfcaf.write_text(function, encoding="utf-8")
        missing = _missing_parts(run, len(rows), function)
    versions = {
        key.removeprefix("versions."): value for key, value in run.config.items() if key.startswith("versions.")
    }
    write_object(directory.versions, versions)
    if run.result and not missing:
        directory.finish(run.result)
    write_status(folder, run, missing)
    if not missing:  # without this file the run is read again the next time
        origin = {"mark": run.fingerprint, "id": run.id, "url": run.url}
        write_object(folder / ORIGIN_FILE, origin)


def write_status(folder: Path, run: RemoteRun, missing: str = "") -> None:
    """Write status.json, with the run's state in this package's terms and the heartbeat that the server has of it.

    Args:
        folder: of the run.
        run: as the server has it.
        missing: what the server lacks of a finished run; '' if it has everything.
    """
    status: dict[str, Any] = {
        "env_step": run.summary.get("env_step", 0),
        "total_steps": run.config.get("train.total_steps", 0),
        "host": _HOST,
        "pid": run.id,
    }
    if run.result and not missing:
        status["state"] = "finished"
    elif run.state == "running":
        status |= {
            "state": "running",
            "heartbeat": time.time(),
        }  # the server takes minutes to notice that a run is dead
    elif run.state == "crashed":  # the server has had no heartbeat for a while
        status |= {"state": "running", "heartbeat": _seconds(run.heartbeat)}
    elif run.state in ("preempting", "preempted"):
        status["state"] = "interrupted"
    elif run.state == "pending":
        status["state"] = "new"
    else:
        reason = missing or f"W&B reports {run.state}"
        status |= {"state": "failed", "error": f"{reason}: {run.url}"}
    write_object(folder / "status.json", status)
    if "heartbeat" in status:
        os.utime(
            folder / "status.json", (status["heartbeat"], status["heartbeat"])
        )  # the date of a heartbeat is its age


def _missing_parts(run: RemoteRun, rows: int, function: str) -> str:
    """What the server lacks of a finished run, as a sentence; '' if it has everything."""
    if rows < run.rows or not rows:
        total = max(run.rows, 0) or "own"
        return f"the server has {rows} of its {total} rows (to upload them: python -m qllm_exp.results sync)"
    if run.function and not function:
        return f"its function, the artifact tfcaf-{run.function}, is not on the server"
    return ""


def _configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """Content of config.yaml. The server has neither the tracking configuration nor the folder of a run."""
    whole_floats = set(config.get(WHOLE_FLOATS_KEY) or ())
    groups = {field.name for field in fields(schema.RunConfig)} - {"tracking", "sweep"}
    flat = {
        key: float(value) if key in whole_floats else value
        for key, value in config.items()
        if "." in key and key.partition(".")[0] in groups
    }
    return {
        **nest(flat),
        "sweep": {"name": str(config.get("sweep") or "")},
        "seed": int(config["seed"]),
        "device": str(config.get("device") or "auto"),
    }


def _metrics_rows(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl in order of their numbers, from 0 up to the first number that is missing."""
    by_number = {int(row["_step"]): row for row in history}
    rows: list[dict[str, Any]] = []
    while len(rows) in by_number:
        rows.append(_metrics_row(by_number[len(rows)]))
    return rows


def _metrics_row(logged: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl. Where the service stores histories as tables, keys that a row does not have are None."""
    metrics = {
        key: value
        for key, value in logged.items()
        if "/" in key and value is not None and not key.startswith(TASK_PREFIX)
    }
    kind = next(iter(metrics)).partition("/")[0] if metrics else "training"
    named = {key.partition("/")[2]: value for key, value in sorted(metrics.items())}
    typed = {key: _typed(key, value) for key, value in named.items()}
    return {"kind": kind, "env_step": int(logged["env_step"]), **typed}


def _typed(key: str, value: Any) -> Any:
    """A value of a metric with the type that it had in the run."""
    if isinstance(value, str):
        value = _NON_FINITE.get(value, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return int(value) if key in _COUNTS or key.startswith("parameters.") else float(value)


def _seconds(heartbeat: str) -> float:
    """Seconds since 1970; 0 if there is no valid time."""
    try:
        return datetime.fromisoformat(heartbeat).timestamp()
    except ValueError:
        return 0.0
