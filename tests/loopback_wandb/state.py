"""The state of the stand-in server."""

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

ENTITY = "team"


@dataclass
class Run:
    """A run as the server has it.

    Attributes:
        starts: how often a client created or resumed it.
    """

    id: str
    project: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # of the history
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    starts: int = 0
    heartbeat: str = "2026-11-21T13:00:00Z"  # the last one

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows as logged, without the client's own keys except `_step`."""
        rows = [json.loads(line) for line in self.lines]
        return [{k: v for k, v in row.items() if k == "_step" or not k.startswith("_")} for row in rows]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, without the client's own entry."""
        return {k: v["value"] for k, v in self.raw_config.items() if k != "_wandb"}


@dataclass
class Artifact:
    """A version of an artifact.

    Attributes:
        files: name to content.
    """

    id: str
    name: str
    type: str
    digest: str
    metadata: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)  # that logged it
    state: str = "PENDING"


@dataclass
class View:
    """A saved workspace.

    Attributes:
        name: unique in its project.
        display_name: name that users see.
    """

    id: str
    name: str
    project: str
    display_name: str
    spec: dict[str, Any]
    saved: int = 0  # how often


class ServerState:
    """Everything that the server has.

    Attributes:
        requests: how often each operation was requested.
    """

    url: str

    def __init__(self) -> None:
        self._by_id: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.views: list[View] = []
        self.requests: Counter[str] = Counter()
        self._uploads: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def runs(self) -> dict[str, Run]:
        """Runs by display name."""
        with self._lock:
            return {run.name: run for run in self._by_id.values()}

    def add(self, run: Run) -> None:
        """Add a run that another program made."""
        with self._lock:
            self._by_id[run.id] = run

    def delete(self, id_: str) -> None:
        """Delete a run, as a user does on its page."""
        with self._lock:
            del self._by_id[id_]


def history_keys(run: Run) -> dict[str, Any]:
    """The service's `historyKeys` of a run."""
    return {"lastStep": run.history[-1]["_step"] if run.lines else -1, "keys": {}}
