"""What Weights & Biases is told about a run, made from its folder: words and figures, no paths. `unmirrored` is the way back."""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from qllm_exp.config import schema
from qllm_exp.config.load import identity_of
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.versions import OF_THE_MACHINE
from qllm_exp.utils.files import write_atomically

# What begins the names of figures that are told once more, for a dashboard: its panels cannot choose runs.
BY_TASK = "tasks/"
ROWS = "mirror/rows"  # in the summary: how many rows the run has
WHOLE = "whole_floats"  # in the configuration: keys whose value is 1.0, say, and not 1; the service makes no difference


def run_id(directory: RunDirectory) -> str:
    """The run's id, the same for whoever starts it."""
    return id_of(directory.path.absolute().name)


def id_of(name: str) -> str:
    """16 digits of the hash of the name of a run's folder."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def task_key(run: schema.RunConfig) -> str:
    """'tasks/lbf/8x8-2p-2f-coop-2s': begins the names of figures of one task."""
    parts = ("".join(c if c.isalnum() or c in "_-" else "-" for c in part) for part in (run.env.name, run.env.task))
    return BY_TASK + "/".join(parts)


def settings_of(directory: RunDirectory) -> schema.WandbConfig:
    """Where the run is sent; the defaults for one that is tracked in its folder only."""
    tracking = directory.read_config().tracking
    return tracking if isinstance(tracking, schema.WandbConfig) else schema.WandbConfig()


def words(run: schema.RunConfig) -> dict[str, Any]:
    """Group, kind and tags, by the names that the client gives them."""
    tags = sorted({*run.sweep.tags, *getattr(run.tracking, "tags", [])})
    return {"group": run.sweep.name or None, "job_type": f"{run.algorithm.name}/{run.mixer.name}", "tags": tags}


def flat_config(directory: RunDirectory) -> dict[str, Any]:
    """The configuration with dotted keys, as they are typed on the command line, and plain names for what one groups by.

    Only what defines a run is told: no folder, no address of a model's server, no name of a key.
    """
    run = directory.read_config()
    flat = dotted(identity_of(run))
    flat.pop("mixer.file", None)  # `function` says which; a path says nothing elsewhere
    names = {"env": run.env.name, "task": run.env.task, "algorithm": run.algorithm.name, "mixer": run.mixer.name}
    names |= {
        "run": directory.path.absolute().name,
        "train": run.train.name,
        "sweep": run.sweep.name,
        "device": run.device.partition(":")[0],
    }
    if not directory.tfcaf.exists():  # who would have written a function says nothing of a run that has none
        flat = {key: value for key, value in flat.items() if not key.startswith(("llm.", "tfcaf."))}
    else:
        names |= {"llm": run.llm.name, "function": function(directory)["hash"][:8]}
    versions = _read(directory.path / "versions.json")
    known = {f"versions.{name}": version for name, version in versions.items() if name not in OF_THE_MACHINE}
    whole = sorted(key for key, value in flat.items() if isinstance(value, float) and value.is_integer())
    return flat | known | names | {WHOLE: whole}


def function(directory: RunDirectory) -> dict[str, Any]:
    """The stored credit-assignment function: source, program, verdict, provenance; see tfcaf/entry.py."""
    return _read(directory.tfcaf)


def logged(row: dict[str, Any], task: str) -> dict[str, Any]:
    """A row of the metrics file under names that keep kinds apart: {'env_step': ..., 'evaluation/return_mean': ...}.

    Args:
        task: `task_key` of the run, under which the return of an evaluation is told once more.
    """
    named = {f"{row['kind']}/{key}": value for key, value in row.items() if key not in ("kind", "env_step")}
    if row["kind"] == "evaluation" and "return_mean" in row:
        named[f"{task}/return_mean"] = row["return_mean"]
    return {"env_step": row["env_step"], **named}


def summary(result: dict[str, Any], rows: int, task: str) -> dict[str, Any]:
    """The final figures with dotted keys, how many rows there are, and what dashboards draw, each under a name with a slash.

    Args:
        result: {} for a run that is not finished.
    """
    told = dotted(result)
    drawn = {f"{task}/{key}": told[key] for key in ("final_return", "absolute_return") if key in told}
    if told.get("wall_s"):
        drawn["speed/steps_per_s"] = told["env_steps"] / told["wall_s"]
    return {**told, **drawn, ROWS: rows}


def dotted(node: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Nested dicts as one, with keys such as 'train.learning_rate'."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= dotted(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat


class UploadState:
    """`wandb.json` in a run's folder: what the server is known to have.

    {"folder": this folder's mark, "project": ..., "entity": ..., "url": of the run's page, "rows": confirmed,
     "state": that it was left in}

    The mark, a random word in the run's configuration there, tells this folder from another one with the same name.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._path = directory.path / "wandb.json"
        self._known = _read(self._path)
        self.folder = str(self._known.get("folder") or secrets.token_hex(8))

    @property
    def rows(self) -> int:
        return int(self._known.get("rows", 0))

    @property
    def state(self) -> str:
        return str(self._known.get("state", ""))

    @property
    def url(self) -> str:
        """Empty until the run was begun on the server."""
        return str(self._known.get("url", ""))

    def begun_in(self, tracking: schema.WandbConfig) -> bool:
        """Whether it was begun from this folder, in the project that these settings name."""
        place = (self._known.get("project"), self._known.get("entity"))
        return bool(self.url) and place == (tracking.project, tracking.entity)

    def write(self, tracking: schema.WandbConfig, url: str, rows: int, state: str) -> None:
        place = {"folder": self.folder, "project": tracking.project, "entity": tracking.entity}
        self._known = {**place, "url": url, "rows": rows, "state": state}
        write_atomically(self._path, json.dumps(self._known, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read
