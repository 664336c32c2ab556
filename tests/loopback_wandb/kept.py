"""What the stand-in server keeps, and how it says it."""

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

ENTITY = "team"


@dataclass
class Run:
    """A run as the server has it. `begun`: how often a client began it, or went on with it."""

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
    begun: int = 0
    heartbeat: str = "2026-11-21T13:00:00Z"  # its last sign of life

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows as logged, without the client's own figures but for `_step`."""
        rows = [json.loads(line) for line in self.lines]
        return [{k: v for k, v in row.items() if k == "_step" or not k.startswith("_")} for row in rows]

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in self.raw_config.items() if k != "_wandb"}


@dataclass
class Artifact:
    """A version of an artifact. `files`: name to content."""

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
    """A saved workspace. `name`: unique in its project; `shown`: what people call it."""

    id: str
    name: str
    project: str
    shown: str
    spec: dict[str, Any]
    saved: int = 0  # how often


class Kept:
    """Everything that the server has. `asked`: how often each operation was asked for."""

    url: str

    def __init__(self) -> None:
        self._by_id: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.views: list[View] = []
        self.asked: Counter[str] = Counter()
        self._uploads: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def runs(self) -> dict[str, Run]:
        with self._lock:
            return {run.name: run for run in self._by_id.values()}

    def add(self, run: Run) -> None:
        """A run that somebody else made."""
        with self._lock:
            self._by_id[run.id] = run

    def delete(self, id_: str) -> None:
        """As a person does it on the run's page."""
        with self._lock:
            del self._by_id[id_]


def keys_of(run: Run) -> dict[str, Any]:
    return {"lastStep": run.history[-1]["_step"] if run.lines else -1, "keys": {}}
