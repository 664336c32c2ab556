"""Run directories: other clocks than the one here, removed directories, JSON for every program, and the umask."""

import json
import math
import os
import threading
import time
from pathlib import Path

import pytest
from run_folders import run_config

from qllm_exp.results.records.reader import Reader
from qllm_exp.runs import run_directory, run_state
from qllm_exp.runs.metrics import MetricsReader, read_rows
from qllm_exp.runs.run_directory import Busy, RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue
from qllm_exp.utils.files import parse_strict_json

ROW = {"kind": "evaluation", "env_step": 0, "return_mean": math.nan, "return_std": math.inf, "episodes": 4}


def write_heartbeat(folder: Path, clock_s: float = 0.0, age_s: float = 0.0, date: float | None = None) -> RunDirectory:
    """Write the status file of a run that another machine runs.

    Args:
        folder: the run directory.
        clock_s: the clock of that machine minus the clock here, in seconds.
        age_s: age of the heartbeat, in seconds.
        date: date of the file, in seconds since 1970; None: the date of the heartbeat by the clock here.
    """
    now = time.time() - age_s
    status = {"state": "running", "host": "node9", "pid": 17, "heartbeat": now + clock_s}
    (folder / "status.json").write_text(json.dumps(status))
    os.utime(folder / "status.json", (now, now) if date is None else (date, date))
    return RunDirectory(folder)


@pytest.mark.parametrize("clock_s", [-600.0, -61.0, 0.0, 61.0, 600.0, 86400.0])
def test_the_clock_of_another_machine_neither_kills_nor_revives_its_runs(tmp_path: Path, clock_s: float) -> None:
    alive = write_heartbeat(tmp_path, clock_s, age_s=5.0)
    assert alive.owner() == "process 17 on node9"
    assert run_state.state_of(alive, Queue({})).state == run_state.RUNNING
    dead = write_heartbeat(tmp_path, clock_s, age_s=100.0)
    assert dead.owner() == ""
    state = run_state.state_of(dead, Queue({}))
    assert state.state == run_state.DEAD and "last heartbeat 1 min 40 s ago" in state.reason


def test_the_clock_here_counts_as_little_as_that_of_the_other_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_heartbeat(tmp_path, age_s=5.0)
    now = time.time()
    monkeypatch.setattr(run_directory.time, "time", lambda: now + 600)
    assert directory.owner() == "process 17 on node9" and directory.heartbeat_age_s() < 60


def test_a_copied_status_file_revives_no_run(tmp_path: Path) -> None:
    copied = write_heartbeat(tmp_path, age_s=3600.0, date=time.time())
    assert copied.owner() == "" and copied.heartbeat_age_s() == pytest.approx(3600, abs=5)


def test_a_run_of_a_job_that_runs_is_never_dead_by_the_clock_of_its_node(tmp_path: Path) -> None:
    """The job started a minute ago, its node is ten minutes behind."""
    directory = write_heartbeat(tmp_path, clock_s=-600.0, age_s=5.0)
    queue = Queue({tmp_path.absolute(): Job("7_1", "RUNNING", "None", time.time() - 60)})
    assert run_state.state_of(directory, queue).state == run_state.RUNNING
    write_heartbeat(tmp_path, clock_s=600.0, age_s=70.0)  # of the job's earlier start: it was requeued
    assert run_state.state_of(directory, queue).state == run_state.QUEUED


def test_before_it_takes_a_run_over_a_process_watches_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system dates files by the clock of the writing machine, which is ten minutes behind."""
    monkeypatch.setattr(run_directory, "WATCH_S", 2.0)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.2):
            write_heartbeat(tmp_path, age_s=600.0)

    directory = write_heartbeat(tmp_path, age_s=600.0)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(Busy, match="process 17 on node9"):
            directory.lock()
    finally:
        stop.set()
        thread.join()
    directory.lock()  # nothing refreshes it any more
    directory.close()


def test_a_directory_that_was_removed_is_noticed_even_if_another_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    directory = RunDirectory(path)
    directory.lock()
    assert not directory.was_removed()
    path.rename(tmp_path / "elsewhere")
    assert directory.was_removed()
    path.mkdir()
    RunDirectory(path).lock()
    assert directory.was_removed()
    directory.close()


def test_the_status_before_a_submission_can_be_restored(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.set_status_from_outside("queued", submission="ab12")
    directory.restore_status({})
    assert not (tmp_path / "status.json").exists()
    directory.set_status_from_outside("failed", error="no")
    before = directory.status()
    directory.set_status_from_outside("queued", submission="ab12")
    directory.restore_status(before)
    assert directory.status() == {"state": "failed", "error": "no"}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A finished run whose environment gave the reward NaN."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(run_config("vdn"), None)
    directory.open_metrics(0)
    directory.append(ROW)  # type: ignore[arg-type]
    directory.append(ROW | {"env_step": 50, "return_mean": 0.5, "return_std": 0.0})  # type: ignore[arg-type]
    directory.set_status("finished", **{"return": math.nan})
    directory.finish({"final_return": 0.5, "absolute_return": math.nan, "parameters": {"agent": 3}})
    directory.close()
    return directory


def test_every_file_is_json_though_returns_are_nan(directory: RunDirectory) -> None:
    for line in directory.metrics.read_bytes().splitlines():
        parse_strict_json(line)
    for name in ("status.json", "result.json"):
        parse_strict_json((directory.path / name).read_bytes())


def test_all_readers_agree_on_returns_that_are_nan(directory: RunDirectory) -> None:
    for rows in (read_rows(directory.metrics), MetricsReader(directory.metrics).read_new()):
        assert [math.isnan(row["return_mean"]) for row in rows] == [True, False]  # type: ignore[typeddict-item]
        assert math.isnan(rows[0]["return_std"]) and rows[1]["return_mean"] == 0.5  # type: ignore[typeddict-item]
    result = directory.result()
    assert result is not None and math.isnan(result["absolute_return"]) and result["parameters"] == {"agent": 3}
    finished = Reader().finished(directory.path)
    assert finished is not None and math.isnan(finished[0].returns[0]) and finished[0].returns[1] == 0.5
    assert math.isnan(finished[0].result["absolute_return"])


def test_rows_that_an_older_version_wrote_with_nan_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "evaluation", "env_step": 0, "return_mean": NaN}\n')
    assert math.isnan(read_rows(tmp_path / "metrics.jsonl")[0]["return_mean"])


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    previous = os.umask(mask)
    try:
        directory = RunDirectory(tmp_path / "run")
        directory.create(run_config("vdn"), "{}")
        directory.lock()
        directory.open_metrics(0)
        directory.set_status("running")
        directory.close()
    finally:
        os.umask(previous)
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.path.iterdir()}
    assert modes.keys() == {"config.yaml", "tfcaf.json", ".lock", "metrics.jsonl", "status.json"}
    assert set(modes.values()) == {0o666 & ~mask}
