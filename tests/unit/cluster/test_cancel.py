"""The command `cancel`."""

import errno
import os
from pathlib import Path

import pytest
from run_folders import make_unfinished_run, run_config

from qllm_exp.cluster.cancel import main
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    run = make_unfinished_run(tmp_path, run_config("vdn"), "new")
    monkeypatch.setattr(Path, "touch", full)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: Cannot write {run / 'stop'}: No space left on device.")


def test_a_pruned_run_does_not_keep_the_job_of_cancelled_runs_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned, waiting = (make_unfinished_run(tmp_path, run_config("vdn", seed), "queued") for seed in (0, 1))
    RunDirectory(pruned).prune("at step 5 because")
    job = Job("7", "RUNNING", "", 0.0)
    queues = iter([Queue(dict.fromkeys((pruned, waiting), job))] * 2)
    monkeypatch.setattr(Queue, "query", lambda folder: next(queues, Queue({})))
    cancelled: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **options: cancelled.append(command))
    assert main([str(tmp_path)]) == 0
    assert cancelled == [["scancel", "7"]] and "1 waiting run; 1 Slurm task cancelled" in capsys.readouterr().out
    assert RunDirectory(pruned).pruned() and RunDirectory(waiting).stop_request.exists()
