"""Submitting runs to a Slurm cluster and waiting for them, without a cluster."""

import errno
import logging
import os
import threading
import time
from pathlib import Path

import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep import overview, slurm
from qllm_exp.sweep.launch import exit_code
from qllm_exp.sweep.launcher import Work
from qllm_exp.sweep.slurm import Slurm


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


def make_work(folder: Path, count: int = 2) -> tuple[Sweep, Work]:
    """Return a sweep of new runs, and the work of submitting them."""
    directories = [RunDirectory(folder / f"run{number}") for number in range(count)]
    names = [directory.path.name for directory in directories]
    sweep = Sweep.create(folder / "sweep", names, {"name": "slurm"}, 0, "")
    statuses = {directory.path: directory.status() for directory in directories}
    return sweep, Work(
        directories, sweep.failure_limit(), lambda run: run.create(run_config("vdn"), None), statuses=statuses
    )


@pytest.mark.parametrize("is_listed", [True, False])
def test_of_two_identical_submissions_at_the_same_moment_one_submits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_listed: bool
) -> None:
    """Whether or not squeue lists the job at once."""
    caplog.set_level(logging.INFO)
    submitted: list[Path] = []

    def sbatch(folder: Path, environment: dict[str, str]) -> tuple[str, list[str]]:
        time.sleep(0.3)
        submitted.append(folder)
        return "17", []

    def query(cls: type[Queue], folder: Path) -> Queue:
        runs = [folder / f"run{number}" for number in range(2)] if submitted and is_listed else []
        return cls({run.absolute(): Job("17", "PENDING", "None", 0.0) for run in runs})

    monkeypatch.setattr(slurm, "_run_sbatch", sbatch)
    monkeypatch.setattr(Queue, "query", classmethod(query))
    sweep, work = make_work(tmp_path)
    results: list[list[object]] = []
    threads = [threading.Thread(target=lambda: results.append([*Slurm().start(sweep, work)])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(submitted) == 1 and results == [[], []]
    assert caplog.text.count("2 runs not submitted: another process submitted or started them meanwhile") == 1
    assert caplog.text.count("Slurm job 17: 2 runs in 2 tasks") == 1
    assert [directory.status()["submission"] for directory in work.directories] == [submitted[0].name] * 2


def test_what_another_process_could_not_submit_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [("", ["sbatch: error: invalid partition"]), ("18", [])]
    monkeypatch.setattr(slurm, "_run_sbatch", lambda folder, environment: answers.pop(0))
    monkeypatch.setattr(Queue, "query", classmethod(lambda cls, folder: cls({})))
    sweep, work = make_work(tmp_path)
    with pytest.raises(UserError, match="sbatch rejected the sweep: sbatch: error: invalid partition"):
        Slurm().start(sweep, work)
    assert [directory.status() for directory in work.directories] == [{}, {}] and not sweep.submissions()
    Slurm().start(sweep, work)
    assert not answers


def test_failed_runs_are_submitted_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[Path] = []
    monkeypatch.setattr(slurm, "_run_sbatch", lambda folder, environment: (submitted.append(folder) or "17", []))
    monkeypatch.setattr(Queue, "query", classmethod(lambda cls, folder: cls({})))
    sweep, work = make_work(tmp_path, 1)
    (directory,) = work.directories
    work.create(directory)
    directory.set_status_from_outside("failed", error="no")
    work = Work([directory], sweep.failure_limit(), statuses={directory.path: directory.status()})
    Slurm().start(sweep, work)
    Slurm().start(sweep, work)  # by a process that has planned before that
    assert len(submitted) == 1


def test_a_full_disk_is_one_line_and_leaves_the_runs_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: dict[str, object]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Queue, "query", classmethod(lambda cls, folder: cls({})))
    monkeypatch.setattr(slurm, "write_object", full)
    sweep, work = make_work(tmp_path)
    with pytest.raises(UserError, match=r"Cannot write to .*: No space left on device"):
        Slurm().start(sweep, work)
    assert [directory.status() for directory in work.directories] == [{}, {}]
    assert not list((sweep.path / "jobs").glob("*"))


def test_a_run_whose_directory_was_removed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, work = make_work(tmp_path, 1)
    monkeypatch.setattr(slurm, "GONE_S", 0.0)
    monkeypatch.setattr(Queue, "query", classmethod(lambda cls, folder: cls({})))
    (outcome,) = slurm._wait(sweep, work.directories)
    assert outcome.failed and "was removed while the run was in progress" in outcome.error
