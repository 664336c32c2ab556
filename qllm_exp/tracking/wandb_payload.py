"""The data that Weights & Biases receives about a run, built from its run directory: texts and numbers, no paths.

`wandb_restore` rebuilds a run directory from this data.
"""

import hashlib
import secrets
from typing import Any

from qllm_exp.config import schema
from qllm_exp.config.load import identifying_options
from qllm_exp.runs.dotted_keys import flatten
from qllm_exp.runs.json_files import read_object, write_object
from qllm_exp.runs.metrics import MetricsRow
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.versions import MACHINE_KEYS

# Prefix of metrics that are logged a second time, per task: the panels of a dashboard cannot select runs.
TASK_PREFIX = "tasks/"
ROWS_KEY = "mirror/rows"  # in the summary: number of rows of the run
WHOLE_FLOATS_KEY = (
    "whole_floats"  # in the configuration: keys whose value is 1.0 and not 1; the service stores both as 1
)


def run_id(directory: RunDirectory) -> str:
    """Return the run's id, which depends on the name of its folder only, not on who starts it or where it lies."""
    return id_from_name(directory.path.absolute().name)


def id_from_name(name: str) -> str:
    """Return the first 16 hexadecimal digits of the hash of the name of a run's folder."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def task_key(run: schema.RunConfig) -> str:
    """Return the prefix of the metrics of one task: 'tasks/lbf/8x8-2p-2f-coop-2s'."""
    return f"{TASK_PREFIX}{_metric_name(run.env.name)}/{_metric_name(run.env.task)}"


def _metric_name(text: str) -> str:
    """The text with '-' for every character that a metric name should not have."""
    return "".join(character if character.isalnum() or character in "_-" else "-" for character in text)


def wandb_config(directory: RunDirectory) -> schema.WandbConfig:
    """Return the run's W&B configuration; the defaults for a run that is tracked locally only."""
    tracking = directory.read_config().tracking
    return tracking if isinstance(tracking, schema.WandbConfig) else schema.WandbConfig()


def run_labels(run: schema.RunConfig) -> dict[str, Any]:
    """Return group, job type and tags, as keywords of `wandb.init`."""
    tags = sorted({*run.sweep.tags, *getattr(run.tracking, "tags", [])})
    return {"group": run.sweep.name or None, "job_type": f"{run.algorithm.name}/{run.mixer.name}", "tags": tags}


def flat_config(directory: RunDirectory) -> dict[str, Any]:
    """Return the configuration with dotted keys, as typed on the command line, and short names for what runs are grouped by.

    Only what defines a run is included: no folder, no address of a model's server, no name of an API key.
    """
    run = directory.read_config()
    flat = flatten(identifying_options(run))
    flat.pop("mixer.file", None)  # a path means nothing on another machine; `function` identifies the function
    names = {
        "env": run.env.name,
        "task": run.env.task,
        "algorithm": run.algorithm.name,
        "mixer": run.mixer.name,
        "run": directory.path.absolute().name,
        "train": run.train.name,
        "sweep": run.sweep.name,
        "device": run.device.partition(":")[0],
    }
    if directory.tfcaf.exists():
        names |= {"llm": run.llm.name, "function": read_function(directory)["hash"][:8]}
    else:  # the run has no function, so the language model that would have written one does not describe it
        flat = {key: value for key, value in flat.items() if not key.startswith(("llm.", "tfcaf."))}
    versions = {
        f"versions.{name}": version
        for name, version in read_object(directory.versions).items()
        if name not in MACHINE_KEYS
    }
    whole_floats = sorted(key for key, value in flat.items() if isinstance(value, float) and value.is_integer())
    return flat | versions | names | {WHOLE_FLOATS_KEY: whole_floats}


def read_function(directory: RunDirectory) -> dict[str, Any]:
    """Return the stored credit-assignment function: source, program, verdict, provenance (see credit/stored_function.py)."""
    return read_object(directory.tfcaf)


def history_row(row: MetricsRow, task: str) -> dict[str, Any]:
    """Return a metrics row under names that keep kinds apart: {'env_step': ..., 'evaluation/return_mean': ...}.

    Args:
        row: of the metrics file.
        task: `task_key` of the run; the return of an evaluation is logged a second time under it.
    """
    named = {f"{row['kind']}/{key}": value for key, value in row.items() if key not in ("kind", "env_step")}
    if row["kind"] == "evaluation" and "return_mean" in row:
        named[f"{task}/return_mean"] = row["return_mean"]
    return {"env_step": row["env_step"], **named}


def summary(result: dict[str, Any], rows: int, task: str) -> dict[str, Any]:
    """Return the final numbers with dotted keys, the number of rows, and under names with a slash what dashboards show.

    Args:
        result: content of result.json; {} for a run that is not finished.
        rows: number of rows of the metrics file.
        task: `task_key` of the run.
    """
    flat = flatten(result)
    dashboard = {f"{task}/{key}": flat[key] for key in ("final_return", "absolute_return") if key in flat}
    if flat.get("wall_s"):
        dashboard["speed/steps_per_s"] = flat["env_steps"] / flat["wall_s"]
    return {**flat, **dashboard, ROWS_KEY: rows}


class UploadState:
    """The state of a run's upload, in `wandb.json` in its folder: what the server is known to have.

    {"folder": the folder's mark, "project": ..., "entity": ..., "url": of the run's page, "rows": confirmed by the server,
     "state": of the run at the last upload}

    The mark is a random text that is also in the run's configuration on the server. It tells this folder from another folder
    with the same name.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._path = directory.path / "wandb.json"
        self._content = read_object(self._path)
        self.mark = str(self._content.get("folder") or secrets.token_hex(8))

    @property
    def rows(self) -> int:
        """Number of rows that the server has confirmed."""
        return int(self._content.get("rows", 0))

    @property
    def state(self) -> str:
        """State of the run at the last upload."""
        return str(self._content.get("state", ""))

    @property
    def url(self) -> str:
        """URL of the run's page; '' until the run is created on the server."""
        return str(self._content.get("url", ""))

    def was_created_in(self, tracking: schema.WandbConfig) -> bool:
        """Whether the run was created on the server from this folder, in the project that the configuration names."""
        place = (self._content.get("project"), self._content.get("entity"))
        return bool(self.url) and place == (tracking.project, tracking.entity)

    def write(self, tracking: schema.WandbConfig, url: str, rows: int, state: str) -> None:
        """Write `wandb.json`.

        Args:
            tracking: names project and entity.
            url: of the run's page.
            rows: number of rows that the server has confirmed.
            state: of the run.
        """
        self._content = {
            "folder": self.mark,
            "project": tracking.project,
            "entity": tracking.entity,
            "url": url,
            "rows": rows,
            "state": state,
        }
        write_object(self._path, self._content)
