"""The logs of Slurm jobs in a sweep directory."""

import json
import os
from pathlib import Path

import pytest

from qllm_exp.runs.sweep_directory import Sweep


def submit(sweep: Sweep, token: str, packs: list[list[str]], logs: list[str], date: float) -> Path:
    """Create the folder of a submission.

    Args:
        sweep: the sweep.
        token: name of the folder.
        packs: names of the runs of each array task.
        logs: names of the log files that exist.
        date: date of the submission, in seconds since 1970.
    """
    folder = sweep.path / "jobs" / token
    folder.mkdir(parents=True)
    (folder / "packs.json").write_text(json.dumps(packs))
    os.utime(folder / "packs.json", (date, date))
    for number, name in enumerate(logs):
        (folder / name).write_text(f"output of {name}\n")
        os.utime(folder / name, (date + number, date + number))  # the last one is the newest
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    runs = [f"run{task}" for task in range(12)]
    return Sweep.create(tmp_path / "sweep", runs, {"name": "slurm"}, 0, "")


def test_a_run_has_the_log_of_its_own_array_task(sweep: Sweep) -> None:
    packs = [[f"run{task}"] for task in range(12)]
    logs = [f"17_{task}_0_log.out" for task in range(12) if task != 5]
    folder = submit(sweep, "a1", packs, logs, 1000.0)
    for task in range(12):
        expected = None if task == 5 else folder / f"17_{task}_0_log.out"  # task 5 has not started
        assert sweep.job_log(f"run{task}") == expected


def test_a_submission_of_one_task_is_not_an_array(sweep: Sweep) -> None:
    folder = submit(sweep, "a1", [["run0", "run1"]], ["17_0_log.out", "17_0_0_log.out", "17_1_0_log.out"], 1000.0)
    assert sweep.job_log("run0") == sweep.job_log("run1") == folder / "17_0_log.out"
    assert sweep.job_log("run2") is None


def test_the_latest_submission_counts_whatever_its_jobs_write_later(sweep: Sweep) -> None:
    older = submit(sweep, "b2", [["run0"], ["run1"]], ["17_0_0_log.out", "17_1_0_log.out"], 1000.0)
    newer = submit(sweep, "a1", [["run0"]], ["18_0_log.out"], 2000.0)
    (older / "17_1_0_result.pkl").touch()  # dates the folder, not the submission
    assert sweep.submissions() == [older, newer]
    assert sweep.job_log("run0") == newer / "18_0_log.out"
    assert sweep.job_log("run1") == older / "17_1_0_log.out"


def test_a_submission_without_a_list_of_runs_is_skipped(sweep: Sweep) -> None:
    (sweep.path / "jobs" / "a1").mkdir(parents=True)
    assert sweep.submissions() == [] and sweep.job_log("run0") is None
