"""Slots of a pool (cores and GPUs), the state of a run, locks, and options of the Slurm launcher."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf
from programs import write_program
from run_folders import run_config

from qllm_exp.cluster import retry
from qllm_exp.errors import UserError
from qllm_exp.experiment import DISK_FULL
from qllm_exp.runs import run_directory, run_state, sweep_directory
from qllm_exp.runs.run_directory import Busy, DiskFull, RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue
from qllm_exp.sweep import pool
from qllm_exp.sweep.local import Local
from qllm_exp.sweep.progress import outcome_line
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


@pytest.mark.parametrize(
    ("n_jobs", "runs_per_gpu", "gpus"),
    [
        (0, 0, ["0", "1"]),
        (0, 2, ["0", "1", "0", "1"]),
        (0, 9, ["0", "1"] * 4),  # one per core at most
        (3, 2, ["0", "1", "0"]),
        (5, 2, ["0", "1", "0", "1"]),  # a limit beside that of n_jobs
        (5, 0, ["0", "1", "0", "1", "0"]),
    ],
)
def test_runs_that_share_a_gpu(machine, n_jobs, runs_per_gpu, gpus):
    machine(8, "0,1")
    launcher = Local(n_jobs=n_jobs, runs_per_gpu=runs_per_gpu)
    slots = pool.make_slots(launcher.n_jobs, "cuda", launcher.runs_per_gpu)
    assert [slot.gpu for slot in slots] == gpus and launcher.max_parallel("cuda") == len(gpus)
    assert launcher.max_parallel("cpu") == (n_jobs or 8), "no limit for runs on the CPU"


NVIDIA_SMI = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11aa)
  MIG 3g.20gb     Device  0: (UUID: MIG-22bb)
  MIG 1g.5gb      Device  1: (UUID: MIG-33cc)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-44dd)
"""


@pytest.mark.parametrize(
    ("output", "gpus"),
    [
        (NVIDIA_SMI, ["MIG-22bb", "MIG-33cc", "GPU-44dd"]),
        ("GPU 0: Tesla V100 (UUID: GPU-11aa)\nGPU 1: Tesla V100 (UUID: GPU-22bb)\n", ["GPU-11aa", "GPU-22bb"]),
        ("No devices found.\n", []),
    ],
)
def test_the_driver_lists_gpus_and_instances_of_partitioned_gpus(tmp_path, monkeypatch, output, gpus):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_program(tmp_path / "bin", "nvidia-smi", f"cat <<'LIST'\n{output}LIST", monkeypatch)
    assert pool.list_gpus() == gpus


def test_a_worker_gets_the_environment_of_its_slot(tmp_path):
    slot = pool.Slot(gpu="GPU-5a", mps_pipe="/pipe")
    assert pool.Slot().environment == {} and pool.Slot(gpu="3").environment == {"CUDA_VISIBLE_DEVICES": "3"}
    code = f"""
import json, os
from qllm_exp import experiment
from qllm_exp.sweep.fork_server import _run_worker
experiment.main = lambda arguments: print(json.dumps(dict(os.environ))) or 0
_run_worker({{"path": {str(tmp_path)!r}, "cores": [], "environment": {slot.environment!r}}})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    environment = json.loads((tmp_path / "console.txt").read_text())
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-5a" and environment["CUDA_MPS_PIPE_DIRECTORY"] == "/pipe"


def state_with(directory, queue=None, **status):
    path = directory.path / "status.json"
    path.write_text(json.dumps(status))
    if "heartbeat" in status:
        os.utime(path, (status["heartbeat"], status["heartbeat"]))  # the file was written then
    return run_state.state_of(directory, queue or Queue({}))


class Ended:
    """Stands in for the worker of a run that has ended.

    Args:
        code: its exit code.
        remove: a folder that it removes first; None: none.
    """

    lost = False

    def __init__(self, code, remove=None):
        self.code, self.remove = code, remove

    def poll(self):
        if self.remove is not None:
            shutil.rmtree(self.remove)
        return self.code


class Ends:
    """Observer of a pool: keeps the outcomes that it is told of."""

    def __init__(self):
        self.outcomes = []

    def show(self, active):
        pass

    def run_ended(self, outcome):
        self.outcomes.append(outcome)


def run_pool(folder, monkeypatch, workers, slots=2, create=None):
    """Run a pool with a stand-in for each worker, and return the pool and its observer.

    Args:
        folder: for the run directories.
        monkeypatch: of pytest.
        workers: for each run, a function from its directory to the stand-in for its worker.
        slots: number of runs at a time.
        create: called with each directory before it starts; None: it is created.
    """

    def make(directory):
        directory.path.mkdir(parents=True)
        directory.config.touch()

    directories = [RunDirectory(folder / f"run{number}") for number in range(len(workers))]
    by_path = dict(zip([directory.path for directory in directories], workers, strict=True))
    monkeypatch.setattr(pool.Pool, "_start_worker", lambda self, directory, slot: by_path[directory.path](directory))
    observer = Ends()
    started = pool.Pool(directories, [pool.Slot()] * slots, observer, create or make)
    started.run()
    return started, observer


def finish(directory):
    directory.finish({"final_return": 1.0})
    return Ended(0)


def test_a_removed_run_directory_fails_its_own_run_only(tmp_path, monkeypatch):
    started, observer = run_pool(
        tmp_path / "runs",
        monkeypatch,
        [
            lambda directory: Ended(1, directory.path),
            lambda directory: Ended(-signal.SIGKILL, directory.path),
            lambda directory: Ended(0, directory.path),  # it finished, and was removed before anybody looked
            finish,
        ],
        slots=1,
    )
    assert len(observer.outcomes) == 4 and not started.not_started
    for outcome in observer.outcomes[:3]:
        assert outcome.failed and "was removed while the run was in progress" in outcome.error
        assert outcome_line(outcome).count("\n") == 0 and not outcome.directory.path.exists()
    assert not observer.outcomes[3].failed


def test_the_folder_of_all_runs_may_be_removed(tmp_path, monkeypatch):
    _, observer = run_pool(
        tmp_path / "runs", monkeypatch, [lambda directory: Ended(1, directory.path.parent), finish], slots=1
    )
    assert [outcome.failed for outcome in observer.outcomes] == [True, False]


def test_a_full_disk_is_reported_once_and_no_further_run_starts(tmp_path, monkeypatch):
    started, observer = run_pool(
        tmp_path / "runs", monkeypatch, [lambda directory: Ended(DISK_FULL)] * 3 + [finish] * 4, slots=3
    )
    (outcome,) = observer.outcomes
    line = outcome_line(outcome)
    assert "the disk is full" in line and "Free some space" in line and "No further run starts" in line
    assert "run0" not in line and "\n" not in line, "it concerns all runs"
    assert [ended.disk_full for ended in started.outcomes] == [True] * 3 and len(started.not_started) == 4


def test_a_run_whose_directory_cannot_be_created_fails_alone(tmp_path, monkeypatch):
    (tmp_path / "run0").touch()  # a file where the directory should be

    def create(directory):
        directory.create(run_config("vdn"), None)

    _, observer = run_pool(tmp_path, monkeypatch, [finish, finish], slots=1, create=create)
    assert [outcome.failed for outcome in observer.outcomes] == [True, False]
    assert "Cannot write the run directory" in observer.outcomes[0].error


def test_a_full_disk_while_directories_are_created_is_reported_once(tmp_path, monkeypatch):
    def create(directory):
        raise DiskFull(directory.path, os.strerror(errno.ENOSPC))

    started, observer = run_pool(tmp_path, monkeypatch, [finish] * 3, create=create)
    (outcome,) = observer.outcomes
    assert "No space left on device" in outcome_line(outcome) and len(started.not_started) == 2


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


def test_a_run_of_another_machine_is_locked_while_its_heartbeat_is_recent(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "WATCH_S", 0.1)
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


def test_a_time_that_yaml_has_made_a_number_is_pointed_out(caplog):
    with caplog.at_level("WARNING", "qllm_exp"):
        for limit in ("2:00:00", 120, "5-00:00:00"):
            Slurm(time=limit)
        assert not caplog.records
        Slurm(time=OmegaConf.create("time: 2:00:00").time)
    assert (
        "is in minutes, so the limit is 120 h 00 min. YAML reads H:M:S as a number unless it is quoted" in caplog.text
    )


@pytest.mark.parametrize("limit", ["soon", "", "1:2:3:4", "-5", "1.5", "0"])
def test_invalid_time_limits_are_rejected(limit):
    with pytest.raises(UserError):
        to_minutes(limit)


def test_a_job_requests_resources_for_the_runs_at_a_time():
    launcher = Slurm(runs_per_job=8, at_once=4, cpus_per_run=2, mem_gb_per_run=1.5, gpus_per_job=1)
    parameters = launcher._job_parameters("name", 4)
    assert (parameters["cpus_per_task"], parameters["mem"], parameters["gpus_per_node"]) == (8, "6144MB", 1)
    assert parameters["srun_args"] == ["--cpus-per-task=8"]
    assert parameters["additional_parameters"] == {"requeue": True}
    with pytest.raises(UserError, match=r"hydra\.launcher\.at_once=-1"):
        Slurm(at_once=-1)


@pytest.mark.parametrize(
    ("options", "at_once"),
    [
        ({}, 1),
        ({"gpus_per_job": 2}, 2),
        ({"gpus_per_job": 2, "runs_per_gpu": 3}, 6),
        ({"gpus_per_job": 2, "runs_per_gpu": 3, "at_once": 5}, 5),
        ({"gpus_per_job": 1, "at_once": 4}, 4),
        ({"gres": "gpu:1g.10gb:2", "runs_per_gpu": 2}, 4),
        ({"gres": "gpu:a100", "runs_per_gpu": 2}, 2),
        ({"gres": "gpu:2,lscratch:100", "runs_per_gpu": 2}, 4),
        ({"gres": "shard:4", "runs_per_gpu": 3}, 3),
        ({"gres": "lscratch:100"}, 1),
    ],
)
def test_runs_at_a_time_by_the_gpus_of_a_job(options, at_once):
    launcher = Slurm(runs_per_job=8, array_parallelism=10, **options)
    assert launcher.max_parallel("cuda") == 10 * at_once
    gres = options.get("gres")
    assert launcher._job_parameters("name", at_once)["additional_parameters"].get("gres") == gres
    has_gpu = "gpus_per_job" in options or (gres or "").startswith(("gpu", "shard"))
    assert launcher._resolve_device("auto") == ("cuda" if has_gpu else "cpu")


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
    [
        *({"mem_gb_per_run": "4G"}, {"gpus_per_job": "a100:1"}, {"setup": "module load gcc"}, {"stop_before_s": -1}),
        *({"runs_per_gpu": -1}, {"mps": "yes"}, {"gres": ""}, {"gres": "gpu:"}, {"gres": 2}),
    ],
)
def test_invalid_job_options_are_rejected(option):
    with pytest.raises(UserError, match=rf"{next(iter(option))}=.* is not allowed. Allowed: "):
        Slurm(**option)


@pytest.mark.parametrize("option", [{"runs_per_gpu": 1.5}, {"mps": 1}, {"n_jobs": True}])
def test_invalid_options_of_this_machine_are_rejected(option):
    with pytest.raises(UserError, match=rf"{next(iter(option))}=.* is not allowed. Allowed: "):
        Local(**option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_job": 1, "gres": "gpu:1"}, "gres=gpu:1 and gpus_per_job=1 both request GPUs. .*gpus_per_job=0"),
        ({"sbatch": {"gres": "shard:2"}}, "Remove it, and use hydra.launcher.gres=shard:2"),
        ({"mps": True}, "mps=true: the jobs have no GPU. Use hydra/launcher=slurm_gpu"),
        ({"mps": True, "gres": "lscratch:9"}, "mps=true: the jobs have no GPU"),
        ({"mps": True, "gres": "mps:50"}, "the cluster runs MPS itself. Use hydra.launcher.mps=false"),
        (
            {"at_once": 8, "gpus_per_job": 1, "runs_per_gpu": 4},
            "at_once=8 is not allowed: with runs_per_gpu=4, 4 runs at a time fit on 1 GPU. Use .*runs_per_gpu=8, or at_once=4",
        ),
    ],
)
def test_options_that_contradict_each_other_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        Slurm(**options)


def test_the_job_that_plans_the_next_group_has_no_gpu(tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "1", "")

    monkeypatch.setattr(subprocess, "run", run)
    sweep = sweep_directory.Sweep.create(tmp_path / "sweep", ["run"], {"name": "slurm"}, 0, "")
    Slurm(gres="gpu:1", sbatch={"mail-type": "FAIL"})._submit_next(sweep, ["-m"], ["7"])
    assert "--mail-type=FAIL" in commands[0] and not [word for word in commands[0] if "gres" in word]
