"""Slots of a pool (cores and GPUs), the state of a run, locks, and options of the Slurm launcher."""

import errno
import json
import os
import socket
import time

import pytest

from qllm_exp.cluster import retry
from qllm_exp.errors import UserError
from qllm_exp.runs import run_state, sweep_directory
from qllm_exp.runs.run_directory import Busy, RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue
from qllm_exp.sweep import pool
from qllm_exp.sweep.slurm import Slurm, to_minutes
from qllm_exp.utils import files


@pytest.fixture
def machine(monkeypatch):
    def set_resources(cores, gpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)

    return set_resources


def test_cores_are_divided_and_runs_on_the_cpu_get_no_gpu(machine):
    machine(4, "0,1")
    assert [(sorted(slot.cores), slot.gpu) for slot in pool.make_slots(0, "cpu")] == [
        ([0], ""),
        ([1], ""),
        ([2], ""),
        ([3], ""),
    ]
    assert [sorted(slot.cores) for slot in pool.make_slots(2, "cpu")] == [[0, 1], [2, 3]]
    assert [slot.cores for slot in pool.make_slots(9, "cpu")] == [None] * 9


def test_runs_get_gpus_in_turn(machine):
    machine(16, "3,GPU-5a")
    assert [slot.gpu for slot in pool.make_slots(0, "cuda")] == ["3", "GPU-5a"]
    assert [slot.gpu for slot in pool.make_slots(5, "cuda")] == ["3", "GPU-5a", "3", "GPU-5a", "3"]
    assert {slot.gpu for slot in pool.make_slots(4, "cuda:1")} == {""}
    machine(3, "")
    assert [slot.gpu for slot in pool.make_slots(0, "cuda")] == ["", "", ""]


def state_with(directory, queue=None, **status):
    (directory.path / "status.json").write_text(json.dumps(status))
    return run_state.state_of(directory, queue or Queue({}))


def test_state_of_a_run(tmp_path):
    directory, now, here = RunDirectory(tmp_path), time.time(), socket.gethostname()
    pending = Queue({tmp_path.absolute(): Job("7_1", "PENDING", "Resources", 0.0)})
    started = Queue({tmp_path.absolute(): Job("7_1", "RUNNING", "None", now - 10)})
    assert run_state.state_of(directory, Queue({})).state == run_state.NEW
    assert state_with(directory, pending, state="queued").state == run_state.QUEUED
    assert state_with(directory, state="queued").state == run_state.DEAD, "its job left the queue"
    assert state_with(directory, state="running", host=here, heartbeat=now).state == run_state.DEAD, (
        "no process holds its lock"
    )
    assert state_with(directory, state="running", host="node9", heartbeat=now - 30).state == run_state.RUNNING
    dead = state_with(directory, state="running", host="node9", heartbeat=now - 70, env_step=5, total_steps=10)
    assert dead.state == run_state.DEAD and "at 50%" in dead.reason and "1 min 10 s" in dead.reason
    assert (
        state_with(directory, pending, state="running", host="node9", heartbeat=now - 70).state == run_state.QUEUED
    ), "requeued"
    assert (
        state_with(directory, started, state="running", host="node9", heartbeat=now - 70).state == run_state.QUEUED
    ), "waiting for its turn"
    assert state_with(directory, state="failed", error="no").reason == "no"
    assert state_with(directory, pending, state="interrupted").state == run_state.QUEUED
    assert state_with(directory, state="interrupted", env_step=1, total_steps=4).reason == "at 25%"
    directory.stop_request.touch()
    assert state_with(directory, state="queued").state == run_state.INTERRUPTED
    (tmp_path / "result.json").write_text('{"final_return": 1.0}')
    assert state_with(directory, state="failed").state == run_state.FINISHED


def test_a_run_of_another_machine_is_locked_while_its_heartbeat_is_recent(tmp_path):
    directory = RunDirectory(tmp_path)
    (tmp_path / ".lock").write_text("")
    state_with(directory, state="running", host="node9", pid=17, heartbeat=time.time() - 30)
    with pytest.raises(Busy, match="process 17 on node9"):
        directory.lock()
    state_with(directory, state="running", host="node9", pid=17, heartbeat=time.time() - 61)
    directory.lock()
    with pytest.raises(Busy, match=f"process {os.getpid()} on"):
        RunDirectory(tmp_path).lock()
    directory.close()
    RunDirectory(tmp_path).lock()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(90, 90), ("90", 90), ("4:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("0-0:0:30", 1), ("59:59", 60)],
)
def test_time_limits_as_sbatch_accepts_them(limit, expected):
    assert to_minutes(limit) == expected


@pytest.mark.parametrize("limit", ["soon", "", "1:2:3:4", "-5", "1.5", "0"])
def test_invalid_time_limits_are_rejected(limit):
    with pytest.raises(UserError):
        to_minutes(limit)


def test_a_job_requests_resources_for_the_runs_at_a_time():
    launcher = Slurm(runs_per_job=8, at_once=4, cpus_per_run=2, mem_gb_per_run=1.5, gpus_per_job=1)
    parameters = launcher._job_parameters("name", 4)
    assert (parameters["cpus_per_task"], parameters["mem"], parameters["gpus_per_node"]) == (8, "6144MB", 1)
    assert parameters["srun_args"] == ["--cpus-per-task=8"]
    assert parameters["additional_parameters"]["requeue"] is True
    with pytest.raises(UserError, match=r"hydra\.launcher\.at_once=0"):
        Slurm(at_once=0)


def test_runs_and_sweeps_work_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(handle, kind):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    directory = RunDirectory(tmp_path)
    directory.lock()
    directory.set_status("running")
    assert RunDirectory(tmp_path).owner() == f"process {os.getpid()} on {socket.gethostname()}", "by its heartbeat"
    directory.close()
    sweep = sweep_directory.Sweep.create(tmp_path / "sweep", ["run"], {"name": "local"}, 0, "")
    with sweep.lock():
        assert sweep.owner() == ""


def test_retry_parses_options_as_a_sweep_does():
    assert retry._parse_option("time=12:00:00") == ("time", "12:00:00")
    assert retry._parse_option("hydra.launcher.mem_gb_per_run=8") == ("mem_gb_per_run", 8)
    assert retry._parse_option("partition=1e3") == ("partition", "1e3")
    with pytest.raises(UserError, match="Write KEY=VALUE"):
        retry._parse_option("time=[")


@pytest.mark.parametrize(
    "option",
    [{"mem_gb_per_run": "4G"}, {"gpus_per_job": "a100:1"}, {"setup": "module load gcc"}, {"stop_before_s": -1}],
)
def test_invalid_job_options_are_rejected(option):
    with pytest.raises(UserError, match=next(iter(option))):
        Slurm(**option)
