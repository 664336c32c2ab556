"""One run: a full disk, and a run directory that is removed."""

import errno
import logging
import os
import resource
import shutil
from pathlib import Path

import pytest
from run_folders import run_config

from qllm_exp import experiment
from qllm_exp.errors import RunFailed
from qllm_exp.runs.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(run_config("vdn"), None)
    return directory


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_full_disk_has_an_exit_code_and_a_line_of_its_own(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def train(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(experiment, "_train", train)
    assert experiment.main([str(directory.path)]) == experiment.DISK_FULL
    error = capsys.readouterr().err
    assert error.startswith(f"error: Cannot write to {directory.path}: {os.strerror(number)}. Free some space")
    assert len(error.splitlines()) == 1 and directory.status()["state"] == "failed"


def test_a_log_that_cannot_be_written_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """logging would print a traceback for each line; the run itself fails on the full disk, and reports it once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with experiment._log_to(tmp_path / "log.txt"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            logging.getLogger("qllm_exp").error("a line that is longer than the disk")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == ""


def test_a_run_whose_directory_was_removed_fails_instead_of_writing_a_checkpoint(directory: RunDirectory) -> None:
    directory.lock()
    stop = experiment._StopRequest(directory)
    try:
        stop.request()  # by the heartbeat, which notices it
        assert stop()
        shutil.rmtree(directory.path)
        with pytest.raises(RunFailed, match="The run directory was removed"):
            stop()
    finally:
        stop.restore()
        directory.close()


def test_any_error_of_a_run_whose_directory_was_removed_is_explained_by_that(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*arguments: object) -> None:
        shutil.rmtree(directory.path)
        other = RunDirectory(directory.path)  # of a run that has the same name
        other.create(run_config("vdn"), None)
        other.lock()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(experiment, "_train", train)
    assert experiment.main([str(directory.path)]) == experiment.FAILED
    assert capsys.readouterr().err.startswith("error: The run directory was removed while the run was in progress.")
    assert RunDirectory(directory.path).status() == {}, "the other run's status is its own"
