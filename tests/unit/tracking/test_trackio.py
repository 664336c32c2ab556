"""The script of the documentation that logs a sweep to Trackio, with a stand-in for its package."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from run_folders import make_run, run_config

from qllm_exp.runs.metrics import MetricsReader
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.tracking import wandb_payload

PAGE = Path(__file__).parents[3] / "docs" / "pages" / "guide" / "wandb.md"


class Trackio(ModuleType):
    """Keeps what is logged, as trackio 0.43 does: by project and run, where the same row twice is two rows."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.projects: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self._rows: list[tuple[int, dict[str, Any]]] | None = None

    def delete_project(self, project: str, force: bool = False) -> bool:
        return self.projects.pop(project, None) is not None

    def init(
        self,
        project: str,
        name: str,
        group: str,
        *,
        config: dict[str, Any],
        embed: bool,
        auto_log_cpu: bool,
        auto_log_gpu: bool,
    ) -> None:
        assert (embed, auto_log_cpu, auto_log_gpu) == (False, False, False)
        self.configs[name] = config | {"group": group}
        self._rows = self.projects.setdefault(project, {}).setdefault(name, [])

    def log(self, metrics: dict[str, Any], step: int) -> None:
        assert self._rows is not None
        self._rows.append((step, metrics))

    def finish(self) -> None:
        self._rows = None


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Trackio:
    module = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def test_the_script_logs_the_rows_that_wandb_gets(tmp_path: Path, trackio: Trackio) -> None:
    folders = [make_run(tmp_path, run_config(mixer, seed), 0.5) for mixer in ("vdn", "qmix") for seed in range(2)]
    Sweep.create(tmp_path / "sweep", [folder.name for folder in folders], {"name": "local"}, 0, "")
    (script,) = re.findall(r"```python\n(import json.*?)```", PAGE.read_text(), re.DOTALL)
    for _ in range(2):  # twice, without a doubled row
        exec(script.replace("runs/SWEEP", str(tmp_path / "sweep")), {})
    (logged,) = trackio.projects.values()
    assert logged.keys() == {folder.name for folder in folders} and list(trackio.projects) == ["sweep"]
    for folder in folders:
        directory = RunDirectory(folder)
        task = wandb_payload.task_key(directory.read_config())
        rows = [wandb_payload.history_row(row, task) for row in MetricsReader(directory.metrics).read_new()]
        expected = [
            (row["env_step"], {key for key in row if key != "env_step" and not key.startswith(task)}) for row in rows
        ]
        assert [(step, set(metrics)) for step, metrics in logged[folder.name]] == expected and rows
        assert all(
            row[key] == value
            for row, (_, metrics) in zip(rows, logged[folder.name], strict=True)
            for key, value in metrics.items()
        )
        assert trackio.configs[folder.name]["group"] == directory.read_config().mixer.name
