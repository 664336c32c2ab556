"""Sweeps as jobs of a real one-node Slurm: isolation, packing, requeueing, status, retry, cancel."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from run_folders import final

HERE = Path(__file__).parent
SMALL = [
    *("env=matrix", "env.name=flaky_env", "mixer=vdn", "train=quick", "train.hidden=8"),
    *("train.evaluation.episodes=10", "train.evaluation.absolute_episodes=20"),
]
TINY = [*SMALL, "train.total_steps=4000", "train.evaluation.every=2000"]
LONG = [
    *SMALL,
    *("mixer=qmix", "train.total_steps=100000", "train.evaluation.every=25000"),
    *("train.checkpoint.every_s=0.5", "train.checkpoint.max_share=1"),
]
PAUSE = {"FLAKY_ENV_PAUSE": "0.012"}  # makes the long runs last more than ten seconds
SLURM = ["hydra/launcher=slurm", "hydra.launcher.mem_gb_per_run=0.5"]


class Cluster:
    """Types commands on the cluster's login node."""

    def __init__(self, variables, folder: Path):
        self.folder = folder
        self.environment = os.environ | variables | {"PYTHONPATH": str(HERE)}

    def type(self, *command, check=None, **more):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=280, env=self.environment | more
        )
        text = done.stdout + done.stderr
        assert check is None or done.returncode == check, text
        return done.returncode, text

    def python(self, module, *arguments, check=None, **more):
        return self.type(sys.executable, "-m", module, *arguments, check=check, **more)

    def command(self, *overrides):
        return [sys.executable, "-m", "qllm_exp", "-m", *overrides, *SLURM, f"dir={self.folder}"]

    def sweep(self, *overrides, check=0, **more):
        return self.type(*self.command(*overrides), check=check, **more)[1]

    def queue(self):
        return self.type("squeue", "-h", "-r", "-o", "%i %T %j", check=0)[1].splitlines()

    def until(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.queue(), self.status()[1])
            time.sleep(0.1)

    def until_empty(self, seconds=240):
        self.until(lambda: not self.queue(), seconds)

    @property
    def path(self) -> Path:
        (path,) = (one for one in self.folder.iterdir() if (one / "sweep.json").exists())
        return path

    def runs(self):
        return sorted(path.parent for path in self.folder.glob("*/config.yaml"))

    def status(self, *arguments):
        return self.python("launch.status", self.path, *arguments)

    def states(self):
        read = json.loads(self.status("--json")[1])[0]
        return {one["name"]: one["state"] for one in read["runs"]}

    def status_file(self, run: Path):
        return json.loads((run / "status.json").read_text())

    def training(self):
        """Runs that have a checkpoint."""
        return [one for one in self.runs() if (one / "checkpoint/state.pt").exists()]


@pytest.fixture
def cluster(slurm, tmp_path):
    made = Cluster(slurm, tmp_path / "runs")
    yield made
    made.type("scancel", "--user", str(os.getuid()))
    end = time.monotonic() + 60
    while made.queue() and time.monotonic() < end:
        time.sleep(0.2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The long run, run here in one piece."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "qllm_exp", *LONG, f"dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    subprocess.run(command, check=True, capture_output=True, timeout=280, env=environment)
    (run,) = (path.parent for path in folder.glob("*/config.yaml"))
    return final(run)


def test_packed_runs_fail_alone_are_named_and_are_finished_by_retry(cluster):
    faults = "raise,w1,w2,w3,exit,w4,w5,w6,kill,w7,w8,w9"
    args = [*TINY, f"+env.fault={faults}", "hydra.launcher.runs_per_job=4", "hydra.launcher.at_once=2"]
    text = cluster.sweep(*args)
    assert "12 runs: 0 done, 0 running, 0 queued, 12 to run" in text and "12 runs in 3 tasks" in text
    cluster.until_empty()
    code, text = cluster.status()
    assert code == 1 and "12 runs: 9 done, 3 failed" in text, text
    for error in ("RuntimeError: the simulator says no", "ended with exit code 9 without a word", "killed by SIGKILL"):
        assert error in text
    assert text.count("log: ") == 3 and text.count("    again: ") == 3 and "launch.retry" in text
    code, text = cluster.python("launch.retry", cluster.path, "runs_per_job=1", FLAKY_ENV_IS_WELL="1")
    assert code == 0 and "3 runs in 3 tasks" in text, text
    cluster.until_empty()
    assert set(cluster.states().values()) == {"done"} and cluster.status()[0] == 0
    assert "12 runs: 12 done, 0 running, 0 queued, 0 to run" in (text := cluster.sweep(*args))
    assert text.count("(n=1)") == 24  # 12 methods, in two tables
    assert len((cluster.path / "table.md").read_text().split("From the runs:")[1].split()) == 24


def disturb(cluster, job: str, how: str) -> None:
    if how == "requeue":
        cluster.type("scontrol", "requeue", job, check=0)
    elif how == "signal":
        cluster.type("scancel", "--signal=USR2", job, check=0)
    else:
        cluster.type(*("scontrol", "update", "PartitionName=main", f"GraceTime={30 if how == 'grace' else 0}"), check=0)
        cluster.type("sbatch", "-p", "high", "-c", "4", "-o", "/dev/null", "--wrap", "sleep 2", check=0)


@pytest.mark.parametrize("how", ["requeue", "signal", "preempt", "grace"])
def test_a_disturbed_run_goes_on_from_its_checkpoint_and_ends_with_the_same_numbers(cluster, undisturbed, how):
    cluster.sweep(*LONG, **PAUSE)
    cluster.until(cluster.training)
    (run,) = cluster.runs()
    job = cluster.queue()[0].split()[0]
    disturb(cluster, job, how)
    cluster.until(lambda: cluster.states() == {run.name: "queued"})
    cluster.until_empty()
    (log,) = cluster.path.glob("jobs/*/*.out")
    assert (how == "grace") == ("asked to end by SIGTERM: to be queued again" in log.read_text())
    assert final(run) == undisturbed
    assert "going on from the checkpoint" in (run / "log.txt").read_text()


def test_a_job_ends_only_when_its_runs_have_written_their_checkpoints(cluster):
    """Slurm signals every process of the job; a cycle of these runs takes longer than it leaves a job that is queued again."""
    cluster.sweep(*LONG, "train.total_steps=8000", "train.evaluation.every=8000", FLAKY_ENV_PAUSE="0.25")
    cluster.until(cluster.training)
    (run,) = cluster.runs()
    time.sleep(1)  # into a cycle of six seconds
    before = cluster.status_file(run)
    cluster.type("scancel", "--signal=USR2", cluster.queue()[0].split()[0], check=0)
    cluster.until(lambda: cluster.queue()[0].split()[1] == "PENDING")
    after = cluster.status_file(run)
    assert (before["state"], after["state"]) == ("running", "interrupted") and after["env_step"] > before["env_step"]


def test_a_time_limit_in_mid_run_changes_no_number(cluster, undisturbed):
    cluster.sweep(*LONG, "hydra.launcher.time=1", "hydra.launcher.stop_before_s=20", FLAKY_ENV_PAUSE="0.08")
    cluster.until(lambda: cluster.queue() and cluster.queue()[0].split()[1] == "PENDING")
    cluster.until_empty()
    (run,) = cluster.runs()
    (log,) = cluster.path.glob("jobs/*/*.out")
    assert final(run) == undisturbed and "timed-out" in log.read_text()


def test_the_submitting_process_may_be_killed_as_soon_as_the_jobs_are_there(cluster):
    args = [*TINY, "seed=0-3", "hydra.launcher.runs_per_job=2"]
    process = subprocess.Popen(
        cluster.command(*args), env=cluster.environment | PAUSE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not cluster.queue():
        assert process.poll() is None
    process.kill()
    process.wait()
    text = cluster.sweep(*args)
    assert "4 runs: " in text and ", 0 to run" in text, text
    cluster.until_empty()
    assert set(cluster.states().values()) == {"done"}


def test_a_job_that_dies_without_a_word_is_reported_with_its_last_lines(cluster):
    cluster.sweep(*LONG, **PAUSE)
    cluster.until(cluster.training)
    (run,) = cluster.runs()
    child = cluster.status_file(run)["pid"]
    family = psutil.Process(child).parents()[:2]  # the one that forked it, and the one in which the pack runs
    for process in [*reversed(family), psutil.Process(child)]:
        process.kill()
    cluster.until_empty()
    code, text = cluster.status()
    assert code == 1 and "1 dead" in text and "ended without a word" in text and "    | " in text, text
    assert "0 done, 0 running, 0 queued, 1 to run" in cluster.sweep(*LONG, "sweep.dry_run=true")
    code, text = cluster.python("launch.logs", run)
    assert code == 0 and "ready after" in text and "submitit" in text


def test_queued_runs_keep_the_settings_they_were_submitted_with(cluster, tmp_path):
    mine = tmp_path / "mine" / "train" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("defaults: [quick, _self_]\ntotal_steps: 7000\n")
    search = f"hydra.searchpath=[file://{mine.parents[1]}]"
    cluster.type("scontrol", "update", "PartitionName=main", "State=DOWN", check=0)
    try:
        args = [a for a in TINY if not a.startswith(("train=", "train.total"))]
        cluster.sweep(*args, "train=mine", search)
        assert set(cluster.states().values()) == {"queued"}
        mine.write_text("defaults: [quick, _self_]\ntotal_steps: 1000\n")
    finally:
        cluster.type("scontrol", "update", "PartitionName=main", "State=UP", check=0)
    cluster.until_empty()
    (run,) = cluster.runs()
    assert json.loads((run / "result.json").read_text())["env_steps"] >= 7000


def test_wait_returns_at_the_end_and_says_what_failed(cluster):
    args = [*TINY, "+env.fault=raise,well", "hydra.launcher.wait=true"]
    text = cluster.sweep(*args, check=1)
    assert "1 of 2 runs failed" in text and "the simulator says no" in text and "(n=1)" in text


def test_wait_waits_for_what_runs_and_is_queued_already(cluster):
    cluster.sweep(*LONG, "seed=0-4", **PAUSE)
    cluster.until(cluster.training)
    text = cluster.sweep(*LONG, "seed=0-4", "hydra.launcher.wait=true", **PAUSE)
    assert ", 0 to run" in text and "(n=5)" in text and "Slurm job" not in text, text
    assert not cluster.queue()
    for run in cluster.runs():
        assert (run / "log.txt").read_text().count("ready after") == 1


def test_ctrl_c_while_slurm_takes_its_time_loses_nothing(cluster, tmp_path):
    slow = tmp_path / "bin/sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 3\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(0o755)
    environment = cluster.environment | {"PATH": f"{slow.parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(cluster.command(*TINY), env=environment, stderr=subprocess.PIPE, text=True)
    cluster.until(lambda: list(cluster.folder.glob("*/jobs/*/packs.json")))
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 3 and "was submitted" in text, text
    cluster.until_empty()
    assert set(cluster.states().values()) == {"done"}


def test_what_slurm_refuses_leaves_the_runs_as_they_were(cluster):
    text = cluster.sweep(*TINY, "hydra.launcher.partition=nowhere", check=2)
    assert "sbatch did not take the sweep" in text and set(cluster.states().values()) == {"new"}
    cluster.sweep(*TINY, "hydra.launcher.sbatch={comment:hello}", "hydra.launcher.setup=[sleep 5]")
    assert cluster.type("squeue", "-h", "-o", "%k")[1].strip() == "hello"
    cluster.until_empty()
    assert set(cluster.states().values()) == {"done"}


def test_max_failures_of_packed_runs(cluster):
    args = [*TINY, "+env.fault=raise,exit,w1,w2", "sweep.max_failures=2", "hydra.launcher.runs_per_job=4"]
    cluster.sweep(*args)
    cluster.until_empty()
    code, text = cluster.status()
    assert code == 1 and "2 failed, 2 new" in text and "not started, since 2 runs had failed" in text, text


def test_one_run_of_a_pack_is_cancelled_and_the_others_go_on(cluster):
    cluster.sweep(*LONG, "seed=0-2", "hydra.launcher.runs_per_job=3", "hydra.launcher.at_once=2", **PAUSE)
    cluster.until(lambda: len(cluster.training()) == 2)
    first, _, last = cluster.runs()
    code, text = cluster.python("launch.cancel", cluster.path, first.name, last.name)
    assert code == 0 and "1 running" in text and "1 waiting" in text and "0 Slurm tasks cancelled" in text, text
    cluster.until_empty()
    assert sorted(cluster.states().values()) == ["done", "stopped", "stopped"]


def test_cancel_takes_runs_out_of_the_queue_and_stops_them_at_a_checkpoint(cluster, undisturbed):
    args = [*LONG, "seed=0-2", "hydra.launcher.runs_per_job=2"]
    cluster.sweep(*args, **PAUSE)
    cluster.until(lambda: len(cluster.training()) == 2)
    code, text = cluster.python("launch.cancel", cluster.path)
    assert code == 0 and "2 running" in text and "1 waiting" in text and "2 Slurm tasks cancelled" in text, text
    states = cluster.states()
    assert sorted(states.values()) == ["stopped", "stopped", "stopped"] and not cluster.queue(), states
    assert "3 to run" in cluster.sweep(*args)
    cluster.until_empty()
    first = next(run for run in cluster.runs() if "_s0_" in run.name)
    assert final(first) == undisturbed


def test_a_device_that_the_jobs_do_not_have_is_refused_before_anything_starts(cluster):
    text = cluster.sweep(*TINY, "device=cuda", check=2)
    assert "device=cuda: these jobs have no GPU" in text and not cluster.folder.exists()
    text = cluster.sweep(*TINY, "hydra.launcher.time=soon", check=2)
    assert "is no time limit" in text
