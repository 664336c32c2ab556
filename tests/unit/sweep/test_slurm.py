"""Waiting for the runs of a Slurm cluster, without one."""

from pathlib import Path

import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep import overview, slurm
from qllm_exp.sweep.launch import exit_code


@pytest.mark.parametrize(("state", "code"), [("queued", 1), ("failed", 1), ("interrupted", 3)])
def test_a_command_that_waits_has_the_exit_code_of_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    runs = [make_run(tmp_path, run_config("vdn"), 0.5), make_unfinished_run(tmp_path, run_config("vdn", 1), state)]
    sweep = Sweep.create(tmp_path / "sweep", [run.name for run in runs], {"name": "slurm"}, 0, "")
    monkeypatch.setattr(slurm, "GONE_S", 0.0)
    monkeypatch.setattr(Queue, "query", classmethod(lambda cls, folder: cls({})))  # the queued run is in no queue: dead
    directories = [RunDirectory(run) for run in runs]
    outcomes = slurm._wait(sweep, directories)
    assert exit_code(directories, outcomes, waited=True) == overview.read_status(sweep.path).exit_code() == code
