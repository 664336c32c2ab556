"""Where runs go: cores and GPUs; and how a run stands, from its folder and the queue."""

import errno
import json
import os
import socket
import time

import pytest

from launch import retry
from qllm_exp.errors import UserError
from qllm_exp.runs import run_state, sweep_directory
from qllm_exp.runs.run_directory import Busy, RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue
from qllm_exp.sweep import pool
from qllm_exp.sweep.slurm import Slurm, minutes
from qllm_exp.utils import files


@pytest.fixture
def machine(monkeypatch):
    def made(cores, gpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)

    return made


def test_a_core_for_each_run_and_no_gpu_for_runs_on_the_cpu(machine):
    machine(4, "0,1")
    assert [(sorted(s.cores), s.gpu) for s in pool.slots(0, "cpu")] == [([0], ""), ([1], ""), ([2], ""), ([3], "")]
    assert [sorted(s.cores) for s in pool.slots(2, "cpu")] == [[0, 1], [2, 3]]
    assert [s.cores for s in pool.slots(9, "cpu")] == [None] * 9


def test_gpus_are_handed_round(machine):
    machine(16, "3,GPU-5a")
    assert [s.gpu for s in pool.slots(0, "cuda")] == ["3", "GPU-5a"]
    assert [s.gpu for s in pool.slots(5, "cuda")] == ["3", "GPU-5a", "3", "GPU-5a", "3"]
    assert {s.gpu for s in pool.slots(4, "cuda:1")} == {""}
    machine(3, "")
    assert [s.gpu for s in pool.slots(0, "cuda")] == ["", "", ""]


def at(directory, queue=None, **status):
    (directory.path / "status.json").write_text(json.dumps(status))
    return run_state.state_of(directory, queue or Queue({}))


def test_how_a_run_stands(tmp_path):
    directory, now, here = RunDirectory(tmp_path), time.time(), socket.gethostname()
    waits = Queue({tmp_path.absolute(): Job("7_1", "PENDING", "Resources", 0.0)})
    runs = Queue({tmp_path.absolute(): Job("7_1", "RUNNING", "None", now - 10)})
    assert run_state.state_of(directory, Queue({})).state == run_state.NEW
    assert at(directory, waits, state="queued").state == run_state.QUEUED
    assert at(directory, state="queued").state == run_state.DEAD, "its job has gone"
    assert at(directory, state="running", host=here, heartbeat=now).state == run_state.DEAD, "nobody holds its lock"
    assert at(directory, state="running", host="node9", heartbeat=now - 30).state == run_state.RUNNING
    dead = at(directory, state="running", host="node9", heartbeat=now - 70, env_step=5, total_steps=10)
    assert dead.state == run_state.DEAD and "at 50%" in dead.why and "1 min 10 s" in dead.why
    assert at(directory, waits, state="running", host="node9", heartbeat=now - 70).state == run_state.QUEUED, "requeued"
    assert at(directory, runs, state="running", host="node9", heartbeat=now - 70).state == run_state.QUEUED, (
        "not yet its turn"
    )
    assert at(directory, state="failed", error="no").why == "no"
    assert at(directory, waits, state="interrupted").state == run_state.QUEUED
    assert at(directory, state="interrupted", env_step=1, total_steps=4).why == "at 25%"
    directory.stop_request.touch()
    assert at(directory, state="queued").state == run_state.STOPPED
    (tmp_path / "result.json").write_text('{"final_return": 1.0}')
    assert at(directory, state="failed").state == run_state.DONE


def test_a_run_of_another_machine_is_left_alone_until_it_is_silent(tmp_path):
    directory = RunDirectory(tmp_path)
    (tmp_path / ".lock").write_text("")
    at(directory, state="running", host="node9", pid=17, heartbeat=time.time() - 30)
    with pytest.raises(Busy, match="process 17 on node9"):
        directory.lock()
    at(directory, state="running", host="node9", pid=17, heartbeat=time.time() - 61)
    directory.lock()
    with pytest.raises(Busy, match=f"process {os.getpid()} on"):
        RunDirectory(tmp_path).lock()
    directory.close()
    RunDirectory(tmp_path).lock()


@pytest.mark.parametrize(
    ("given", "expected"),
    [(90, 90), ("90", 90), ("4:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("0-0:0:30", 1), ("59:59", 60)],
)
def test_time_limits_as_sbatch_takes_them(given, expected):
    assert minutes(given) == expected


@pytest.mark.parametrize("given", ["soon", "", "1:2:3:4", "-5", "1.5", "0"])
def test_what_is_no_time_limit_is_refused(given):
    with pytest.raises(UserError):
        minutes(given)


def test_resources_are_for_the_runs_at_a_time():
    given = Slurm(runs_per_job=8, at_once=4, cpus_per_run=2, mem_gb_per_run=1.5, gpus_per_job=1)._parameters("name", 4)
    assert (given["cpus_per_task"], given["mem"], given["gpus_per_node"]) == (8, "6144MB", 1)
    assert given["srun_args"] == ["--cpus-per-task=8"] and given["additional_parameters"]["requeue"] is True
    with pytest.raises(UserError, match=r"hydra\.launcher\.at_once=0"):
        Slurm(at_once=0)


def test_a_file_system_without_locks_is_lived_with(tmp_path, monkeypatch):
    def none_here(handle, kind):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", none_here)
    directory = RunDirectory(tmp_path)
    directory.lock()
    directory.set_status("running")
    assert RunDirectory(tmp_path).owner() == f"process {os.getpid()} on {socket.gethostname()}", "by its heartbeat"
    directory.close()
    sweep = sweep_directory.Sweep.start(tmp_path / "sweep", ["run"], {"name": "local"}, 0)
    with sweep.held():
        assert sweep.holder() == ""


def test_options_of_retry_are_read_as_a_sweeps_are():
    assert retry._option("time=12:00:00") == ("time", "12:00:00")
    assert retry._option("hydra.launcher.mem_gb_per_run=8") == ("mem_gb_per_run", 8)
    with pytest.raises(UserError, match="write KEY=VALUE"):
        retry._option("time=[")


@pytest.mark.parametrize(
    "given", [{"mem_gb_per_run": "4G"}, {"gpus_per_job": "a100:1"}, {"setup": "module load gcc"}, {"stop_before_s": -1}]
)
def test_options_of_jobs_that_make_no_sense_are_refused(given):
    with pytest.raises(UserError, match=next(iter(given))):
        Slurm(**given)
