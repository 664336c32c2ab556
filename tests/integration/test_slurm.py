"""Sweeps as jobs of a real one-node Slurm: isolation, packing, requeues, status, retry, cancel."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import commands
import psutil
import pytest
from loopback_llm import Answer, Loopback
from programs import MPS_CONTROL, write_program
from run_folders import run_outcome

from qllm_exp.search.search_directory import SearchDirectory
from qllm_exp.sweep.mps import QUIT_S

HERE = Path(__file__).parent
SMALL = [
    *("env=matrix", "env.name=flaky_env", "mixer=vdn", "train=quick", "train.hidden=8"),
    *("train.evaluation.episodes=10", "train.evaluation.absolute_episodes=20"),
]
TINY = [*SMALL, "train.total_steps=4000", "train.evaluation.every=2000"]
LONG = [
    *SMALL,
    *("mixer=qmix", "env.num_envs=16", "train.batch_episodes=4"),
    *("train.total_steps=16000", "train.evaluation.every=8000"),
    *("train.checkpoint.every_s=0.5", "train.checkpoint.max_share=1"),
]
PAUSE = "0.04"  # seconds per step, so that a rollout takes a second and a long run 45 until `Cluster.hurry`
SLURM = ["hydra/launcher=slurm", "hydra.launcher.mem_gb_per_run=0.5"]


def checked(process, expected_code):
    """Return the exit code and all output of a process that has ended; None: any exit code is expected."""
    text = process.stdout + process.stderr
    assert expected_code is None or process.returncode == expected_code, text
    return process.returncode, text


class Cluster:
    """Runs commands as a user would on the login node of the cluster."""

    def __init__(self, variables, folder: Path):
        self.folder = folder
        self.fast = folder.parent / "fast"
        self.environment = os.environ | variables | {"PYTHONPATH": str(HERE), "FLAKY_ENV_FAST": str(self.fast)}

    def call(self, *command, expected_code=None):
        process = subprocess.run(command, capture_output=True, text=True, timeout=280, env=self.environment)
        return checked(process, expected_code)

    def python(self, module, *arguments, expected_code=None, **variables):
        process = commands.run(["-m", module, *arguments], timeout=280, env=self.environment | variables)
        return checked(process, expected_code)

    def sweep(self, *overrides, expected_code=0, **variables):
        arguments = ["-m", *overrides, *SLURM, f"dir={self.folder}"]
        return self.python("qllm_exp", *arguments, expected_code=expected_code, **variables)[1]

    def start_sweep(self, *overrides, **variables):
        arguments = ["-m", "qllm_exp", "-m", *overrides, *SLURM, f"dir={self.folder}"]
        return commands.start(arguments, env=self.environment | variables)

    def hurry(self):
        """Let the runs that pause in every step do so no longer."""
        self.fast.touch()

    def queue(self):
        return self.call("squeue", "-h", "-r", "-o", "%i %T %j", expected_code=0)[1].splitlines()

    def until(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.queue(), self.status()[1])
            time.sleep(0.2)

    def until_empty(self, seconds=240):
        self.until(lambda: not self.queue(), seconds)

    @property
    def path(self) -> Path:
        (path,) = (record.parent for record in self.folder.glob("*/sweep.json"))
        return path

    def runs(self):
        return sorted(path.parent for path in self.folder.glob("*/config.yaml"))

    def status(self, *arguments):
        return self.python("launch.status", self.path, *arguments)

    def states(self):
        status = json.loads(self.status("--json")[1])[0]
        return {run["name"]: run["state"] for run in status["runs"]}

    def status_file(self, run: Path):
        return json.loads((run / "status.json").read_text())

    def training(self):
        """Return the runs that have a checkpoint."""
        return [run for run in self.runs() if (run / "checkpoint/state.pt").exists()]


@pytest.fixture
def cluster(slurm, tmp_path):
    cluster = Cluster(slurm, tmp_path / "runs")
    yield cluster
    cluster.call("scancel", "--user", str(os.getuid()))
    deadline = time.monotonic() + 60
    while cluster.queue() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the results of the long run, trained here without an interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    commands.run(["-m", "qllm_exp", *LONG, f"dir={folder}"], check=True, timeout=280, env=environment)
    (run,) = (path.parent for path in folder.glob("*/config.yaml"))
    return run_outcome(run)


def test_packed_runs_fail_alone_and_retry_finishes_them(cluster):
    faults = "raise,w1,exit,w2,kill,w3,w4"
    args = [*TINY, f"+env.fault={faults}", "hydra.launcher.runs_per_job=4", "hydra.launcher.at_once=2"]
    text = cluster.sweep(*args)
    assert "7 runs: 0 finished, 0 running, 0 queued, 7 to run" in text and "7 runs in 2 tasks" in text
    cluster.until_empty()
    code, text = cluster.status()
    assert code == 1 and "7 runs: 4 finished, 3 failed" in text, text
    for error in (
        "RuntimeError: the simulator says no",
        "ended with exit code 9 without an error message",
        "killed by SIGKILL",
    ):
        assert error in text
    assert text.count("log: ") == 3 and text.count("    retry: ") == 3 and "-m qllm_exp retry" in text
    code, text = cluster.python("launch.retry", cluster.path, "runs_per_job=2", FLAKY_ENV_IS_WELL="1")
    assert code == 0 and "3 runs in 2 tasks" in text, text
    cluster.until_empty()
    assert set(cluster.states().values()) == {"finished"} and cluster.status()[0] == 0
    assert "7 runs: 7 finished, 0 running, 0 queued, 0 to run" in (text := cluster.sweep(*args))
    assert text.count("(n=1)") == 14  # 7 methods, in two tables
    assert len((cluster.path / "table.md").read_text().split("From the runs:")[1].split()) == 14


def disturb(cluster, job: str, how: str) -> None:
    if how == "requeue":
        cluster.call("scontrol", "requeue", job, expected_code=0)
    elif how == "signal":
        cluster.call("scancel", "--signal=USR2", job, expected_code=0)
    else:
        cluster.call(
            *("scontrol", "update", "PartitionName=main", f"GraceTime={30 if how == 'grace' else 0}"), expected_code=0
        )
        cluster.call("sbatch", "-p", "high", "-c", "4", "-o", "/dev/null", "--wrap", "sleep 2", expected_code=0)


@pytest.mark.parametrize("how", ["requeue", "signal", "preempt", "grace"])
def test_a_disturbed_run_resumes_and_ends_with_the_same_numbers(cluster, undisturbed, how):
    cluster.sweep(*LONG, FLAKY_ENV_PAUSE=PAUSE)
    cluster.until(cluster.training)
    (run,) = cluster.runs()
    job = cluster.queue()[0].split()[0]
    disturb(cluster, job, how)
    cluster.until(lambda: cluster.states() == {run.name: "queued"})
    cluster.hurry()
    cluster.until_empty()
    (log,) = cluster.path.glob("jobs/*/*.out")
    assert (how == "grace") == ("received SIGTERM: requeueing the job" in log.read_text())
    assert run_outcome(run) == undisturbed
    assert "resuming from the checkpoint" in (run / "log.txt").read_text()


def test_a_job_ends_only_when_its_runs_have_written_their_checkpoints(cluster):
    """Slurm signals every process of a job. A rollout of these runs takes longer than the grace period of a requeued job."""
    cluster.sweep(*LONG, FLAKY_ENV_PAUSE="0.25")
    cluster.until(cluster.training)
    (run,) = cluster.runs()
    time.sleep(1)  # into a rollout of six seconds
    before = cluster.status_file(run)
    cluster.call("scancel", "--signal=USR2", cluster.queue()[0].split()[0], expected_code=0)
    cluster.until(lambda: cluster.queue()[0].split()[1] == "PENDING")
    after = cluster.status_file(run)
    assert (before["state"], after["state"]) == ("running", "interrupted") and after["env_step"] > before["env_step"]


def test_a_time_limit_in_mid_run_changes_no_number(cluster, undisturbed):
    cluster.sweep(*LONG, "hydra.launcher.time=1", "hydra.launcher.stop_before_s=20", FLAKY_ENV_PAUSE="0.25")
    cluster.until(cluster.training)
    cluster.until(lambda: cluster.queue()[0].split()[1] == "PENDING")
    cluster.hurry()
    cluster.until_empty()
    (run,) = cluster.runs()
    (log,) = cluster.path.glob("jobs/*/*.out")
    assert run_outcome(run) == undisturbed and "timed-out" in log.read_text()


def test_the_submitting_process_may_be_killed_as_soon_as_the_jobs_are_there(cluster):
    args = [*TINY, "seed=0-3", "hydra.launcher.runs_per_job=2"]
    process = cluster.start_sweep(*args, FLAKY_ENV_PAUSE=PAUSE)
    while not cluster.queue():
        assert process.poll() is None
    process.kill()
    process.wait()
    text = cluster.sweep(*args)
    assert "4 runs: " in text and ", 0 to run" in text, text
    cluster.until_empty()
    assert set(cluster.states().values()) == {"finished"}


def test_one_group_of_seeds_follows_another_without_a_process_that_waits(cluster):
    groups = ["sweep.seeds=auto", "sweep.decide.first=3", "sweep.decide.step=3", "sweep.decide.most=6"]
    text = cluster.sweep(*TINY, "mixer=vdn,qmix", *groups, "hydra.launcher.runs_per_job=3", "hydra.launcher.at_once=3")
    assert "6 runs" in text and "a job of its own runs this command again" in text, text
    cluster.until_empty()
    logs = "\n".join(path.read_text() for path in cluster.path.glob("jobs/next_*.log"))
    assert len(cluster.runs()) == 12 and set(cluster.states().values()) == {"finished"}, logs
    table = (cluster.path / "table.md").read_text()
    assert "Cost: 12 runs instead of 12 with 6 seeds each" in table, "by the job after the last group"


def test_the_comparison_follows_the_trials_of_equal_tuning_without_a_process_that_waits(cluster):
    space = "++hydra.sweeper.space={vdn:{train.learning_rate:[0.001,0.01]}}"
    tune = ["sweep.name=tuned", "sweep.tune.trials=2", "sweep.tune.seeds=1", space, "seed=0-1"]
    text = cluster.sweep(*TINY, *tune, "hydra.launcher.runs_per_job=4", "hydra.launcher.at_once=4")
    assert "2 runs: " in text and "a job of its own runs this command again" in text, text
    cluster.until_empty()
    log = "\n".join(path.read_text() for path in cluster.folder.glob("tuned_trials/jobs/next_*.log"))
    record = json.loads((cluster.folder / "tuned/sweep.json").read_text())
    assert {len(names) for names in record["labels"].values()} == {2}, log
    assert all((cluster.folder / name / "result.json").exists() for name in record["runs"]), log


def test_jobs_prune_the_settings_of_a_search_together_and_stay_with_it_when_they_are_requeued(cluster):
    long = [override for override in LONG if not override.startswith("env.num_envs=")]
    search = [*long, "train.evaluation.every=1600", "env.num_envs=16,17,18,25", "sweep.prune=median"]
    slow_and_worse = {"FLAKY_ENV_PAUSE": PAUSE, "FLAKY_ENV_HANDICAP": "100"}
    cluster.sweep(*search, "hydra.launcher.runs_per_job=2", "hydra.launcher.at_once=2", **slow_and_worse)

    def decisions():
        return {path.parent.name: text for path in cluster.folder.glob("*/stop") if (text := path.read_text())}

    worst = next(run for run in cluster.runs() if "num_envs: 25" in (run / "config.yaml").read_text())
    cluster.until(lambda: worst.name in decisions())
    for job in cluster.queue():
        cluster.call("scontrol", "requeue", job.split()[0], expected_code=0)
    known = decisions()
    cluster.hurry()
    cluster.until_empty()
    states = cluster.states()
    by_copies = {
        next(line for line in (run / "config.yaml").read_text().splitlines() if "num_envs:" in line).split()[1]: run
        for run in cluster.runs()
    }
    assert states[by_copies["25"].name] == "pruned" and states[by_copies["16"].name] == "finished"
    assert known.items() <= decisions().items() and set(states.values()) == {"pruned", "finished"}
    assert {name for name, state in states.items() if state == "pruned"} == set(decisions())
    text = cluster.sweep(*search)
    assert f"{len(decisions())} pruned, 0 to run" in text, text
    code, text = cluster.python("launch.retry", cluster.path, by_copies["25"].name)
    assert code == 0 and "1 run in 1 task" in text, text
    cluster.until_empty()
    assert cluster.states()[by_copies["25"].name] == "finished"


def test_a_dead_run_is_reported_with_the_last_lines_of_its_logs(cluster):
    cluster.sweep(*LONG, FLAKY_ENV_PAUSE=PAUSE)
    cluster.until(cluster.training)
    (run,) = cluster.runs()
    worker = psutil.Process(cluster.status_file(run)["pid"])
    fork_server, job = worker.parents()[:2]
    for process in (job, fork_server, worker):
        process.kill()
    cluster.until_empty()
    code, text = cluster.status()
    assert code == 1 and "1 dead" in text and "ended without an error message" in text and "    | " in text, text
    assert "0 finished, 0 running, 0 queued, 1 to run" in cluster.sweep(*LONG, "sweep.dry_run=true")
    code, text = cluster.python("launch.logs", run)
    assert code == 0 and "ready after" in text and "submitit" in text


def test_queued_runs_keep_the_settings_they_were_submitted_with(cluster, tmp_path):
    own_file = tmp_path / "own" / "train" / "own.yaml"
    own_file.parent.mkdir(parents=True)
    own_file.write_text("defaults: [quick, _self_]\ntotal_steps: 7000\n")
    search = f"hydra.searchpath=[file://{own_file.parents[1]}]"
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN", expected_code=0)
    try:
        args = [override for override in TINY if not override.startswith(("train=", "train.total"))]
        cluster.sweep(*args, "train=own", search)
        assert set(cluster.states().values()) == {"queued"}
        own_file.write_text("defaults: [quick, _self_]\ntotal_steps: 1000\n")
    finally:
        cluster.call("scontrol", "update", "PartitionName=main", "State=UP", expected_code=0)
    cluster.until_empty()
    (run,) = cluster.runs()
    assert json.loads((run / "result.json").read_text())["env_steps"] >= 7000


def test_wait_returns_at_the_end_and_reports_failed_runs(cluster):
    args = [*TINY, "+env.fault=raise,well", "hydra.launcher.wait=true"]
    text = cluster.sweep(*args, expected_code=1)
    assert "1 of 2 runs failed" in text and "the simulator says no" in text and "(n=1)" in text


def test_wait_includes_runs_that_are_running_or_queued_already(cluster):
    arguments = [*LONG, "seed=0-1", "hydra.launcher.array_parallelism=1"]
    cluster.sweep(*arguments, FLAKY_ENV_PAUSE=PAUSE)
    cluster.until(cluster.training)
    process = cluster.start_sweep(*arguments, "hydra.launcher.wait=true")
    cluster.until(lambda: ", 0 to run" in process.stderr())
    cluster.hurry()
    assert process.wait(240) == 0
    text = process.stderr()
    assert "1 running, 1 queued, 0 to run" in text and "(n=2)" in text and "Slurm job" not in text, text
    cluster.until_empty(60)
    for run in cluster.runs():
        assert (run / "log.txt").read_text().count("ready after") == 1


def test_ctrl_c_during_a_slow_submission_loses_nothing(cluster, tmp_path):
    slow = tmp_path / "bin/sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 3\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(0o755)
    process = cluster.start_sweep(*TINY, PATH=f"{slow.parent}:{os.environ['PATH']}")
    cluster.until(lambda: list(cluster.folder.glob("*/jobs/*/packs.json")))
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 3 and "was submitted" in text, text
    cluster.until_empty()
    assert set(cluster.states().values()) == {"finished"}


def test_jobs_inherit_no_variable_of_the_allocation_that_submits_them(cluster, tmp_path):
    stale = [
        "SLURM_CPU_BIND",
        "SLURM_CPU_BIND_TYPE",
        "SLURM_MEM_PER_CPU",
        "SLURM_NTASKS_PER_NODE",
        "SLURM_TRES_PER_TASK",
    ]
    stale += [
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
        "SLURM_EXPORT_ENV",
        "PMI_RANK",
        "CUDA_VISIBLE_DEVICES",
        "SBATCH_JOB_NAME",
    ]
    seen = tmp_path / "variables"
    variables = dict.fromkeys(stale, "99stale") | {"SLURM_CPU_BIND": "quiet,mask_cpu:0x99stale"}
    cluster.sweep(*TINY, f"hydra.launcher.setup=['env > {seen}']", **variables)
    cluster.until_empty()
    assert set(cluster.states().values()) == {"finished"}
    assert "stale" not in seen.read_text() and f"SLURM_CONF={cluster.environment['SLURM_CONF']}" in seen.read_text()


def test_parts_of_a_gpu_and_mps_reach_the_job(cluster, tmp_path, monkeypatch):
    """Runs on device=cuda fail here, but the daemon runs before them and is stopped after them."""
    seen, calls, programs = tmp_path / "variables", tmp_path / "calls", tmp_path / "bin"
    write_program(programs, "nvidia-smi", "echo 'GPU 0: NVIDIA A100 (UUID: GPU-5a)'", monkeypatch)
    args = [*TINY, "device=cuda", "seed=0-1", "hydra.launcher.runs_per_job=2", "hydra.launcher.runs_per_gpu=2"]
    args += ["hydra.launcher.gres=shard:3", "hydra.launcher.mps=true"]
    cluster.sweep(*args, f"hydra.launcher.setup=['env > {seen}']", PATH=os.environ["PATH"])
    cluster.until_empty()
    assert "SLURM_SHARDS_ON_NODE=3\n" in seen.read_text() and "SLURM_CPUS_PER_TASK=2\n" in seen.read_text()
    assert set(cluster.states().values()) == {"dead"}
    assert "hydra.launcher.mps=true: there is no nvidia-cuda-mps-control on" in cluster.status()[1]
    write_program(programs, "nvidia-cuda-mps-control", MPS_CONTROL.format(calls=calls), monkeypatch)
    cluster.python("launch.retry", cluster.path, expected_code=0, PATH=os.environ["PATH"])
    cluster.until_empty()
    assert set(cluster.states().values()) == {"failed"}
    (started, stopped) = calls.read_text().splitlines()
    pipe = started.split()[-1]
    assert (
        started == f"start GPU-5a {pipe}" and stopped == f"quit -t {QUIT_S} GPU-5a {pipe}" and not Path(pipe).exists()
    )


@pytest.mark.parametrize(
    "output",
    [
        "echo Job 3 of your 5 is waiting; {sbatch} --parsable",
        "{sbatch} | sed 's/$/ on cluster local/'",
        "{sbatch} > /dev/null; echo",
    ],
)
def test_an_sbatch_of_the_site_may_print_what_it_likes(cluster, tmp_path, output):
    wrapper = tmp_path / "bin/sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/bash\n" + output.replace("{sbatch}", f'{shutil.which("sbatch")} "$@"') + "\n")
    if "--parsable" in output:
        wrapper.write_text(wrapper.read_text().replace('"$@" --parsable', '--parsable "$@"'))
    wrapper.chmod(0o755)
    text = cluster.sweep(*TINY, "seed=0-1", PATH=f"{wrapper.parent}:{os.environ['PATH']}")
    assert "2 runs in 2 tasks" in text, text
    cluster.until_empty()
    assert set(cluster.states().values()) == {"finished"}


def test_two_identical_submissions_at_the_same_moment_submit_once(cluster):
    processes = [cluster.start_sweep(*TINY, "seed=0-1", FLAKY_ENV_PAUSE=PAUSE) for _ in range(2)]
    texts = ["".join(process.communicate(timeout=120)) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert sum("2 runs in 2 tasks" in text for text in texts) == 1, texts
    assert sum("2 runs not submitted: another process" in text or ", 0 to run" in text for text in texts) == 1, texts
    assert len(cluster.queue()) == 2 and len(list(cluster.path.glob("jobs/*"))) == 1
    cluster.hurry()
    cluster.until_empty()
    assert set(cluster.states().values()) == {"finished"}


def test_status_and_logs_show_the_log_of_the_array_task_of_a_run(cluster):
    """The first task ends before its runs start, the second one later."""
    end_early = "[[ $SLURM_ARRAY_TASK_ID != 0 ]] || { echo node says no; exit 1; }"
    cluster.sweep(*TINY, "seed=0-1", f'hydra.launcher.setup=["{end_early}"]')
    cluster.until_empty()
    first, _ = cluster.runs()
    code, text = cluster.status()
    assert code == 1 and "1 finished" in text and "1 dead" in text and "| node says no" in text, text
    _, text = cluster.python("launch.status", cluster.folder)
    assert "| node says no" in text, text
    assert "node says no" in cluster.python("launch.logs", first)[1]


def test_a_rejected_submission_leaves_the_runs_as_they_were(cluster):
    text = cluster.sweep(*TINY, "hydra.launcher.partition=nowhere", expected_code=2)
    assert "sbatch rejected the sweep" in text and set(cluster.states().values()) == {"new"}
    cluster.sweep(*TINY, "hydra.launcher.sbatch={comment:hello}", "hydra.launcher.setup=[sleep 5]")
    assert cluster.call("squeue", "-h", "-o", "%k")[1].strip() == "hello"
    cluster.until_empty()
    assert set(cluster.states().values()) == {"finished"}


def test_max_failures_of_packed_runs(cluster):
    args = [*TINY, "+env.fault=raise,exit,w1,w2", "sweep.max_failures=2", "hydra.launcher.runs_per_job=4"]
    cluster.sweep(*args)
    cluster.until_empty()
    code, text = cluster.status()
    assert code == 1 and "2 failed, 2 new" in text and "not started: sweep.max_failures=2 was reached" in text, text


def test_cancelling_some_runs_of_a_pack_leaves_the_others_running(cluster):
    cluster.sweep(*LONG, "seed=0-2", "hydra.launcher.runs_per_job=3", "hydra.launcher.at_once=2", FLAKY_ENV_PAUSE=PAUSE)
    cluster.until(lambda: len(cluster.training()) == 2)
    first, _, last = cluster.runs()
    running = next(run for run in (first, last) if run in cluster.training())  # either may have been started first
    code, text = cluster.python("launch.cancel", cluster.path, first.name, last.name)
    assert code == 0 and "1 running" in text and "1 waiting" in text and "0 Slurm tasks cancelled" in text, text
    cluster.until(lambda: cluster.status_file(running)["state"] == "interrupted")
    cluster.hurry()
    cluster.until_empty()
    assert sorted(cluster.states().values()) == ["finished", "interrupted", "interrupted"]


def test_cancel_removes_runs_from_the_queue_and_stops_running_ones_at_a_checkpoint(cluster, undisturbed):
    args = [*LONG, "seed=0-2", "hydra.launcher.runs_per_job=2"]
    cluster.sweep(*args, FLAKY_ENV_PAUSE=PAUSE)
    cluster.until(lambda: len(cluster.training()) == 2)
    code, text = cluster.python("launch.cancel", cluster.path)
    assert code == 0 and "2 running" in text and "1 waiting" in text and "2 Slurm tasks cancelled" in text, text
    states = cluster.states()
    assert sorted(states.values()) == ["interrupted", "interrupted", "interrupted"] and not cluster.queue(), states
    assert "3 to run" in cluster.sweep(*args)
    cluster.until_empty()
    first = next(run for run in cluster.runs() if "_s0_" in run.name)
    assert run_outcome(first) == undisturbed


def test_a_device_that_the_jobs_do_not_have_is_rejected_before_anything_starts(cluster):
    text = cluster.sweep(*TINY, "device=cuda", expected_code=2)
    assert "device=cuda: the jobs have no GPU" in text and not cluster.folder.exists()
    text = cluster.sweep(*TINY, "hydra.launcher.time=soon", expected_code=2)
    assert "is not a time limit" in text


SEARCH = [
    *("env=mpe", "env.task=simple_spread", "env.num_envs=4", "env.episode_limit=8", "train=quick", "train.hidden=8"),
    *("train.batch_episodes=4", "train.evaluation.episodes=4", "tfcaf.candidates=2", "tfcaf.search.generations=2"),
    *("tfcaf.search.steps=[400,800]", "tfcaf.search.seeds=[1,1]", "hydra.launcher.runs_per_job=2"),
    *("llm=openai", "llm.model=openai/loopback", "llm.concurrency=1"),
]
FUNCTION = """
import torch

def credit_assignment(agents_q, global_state):
    weights = torch.softmax({weight} * global_state[:, 0:3], dim=1)
    return (weights * agents_q).sum(dim=1, keepdim=True)
"""


def test_a_search_trains_its_candidates_as_jobs_and_is_resumed_after_a_kill(cluster, tmp_path):
    with Loopback(lambda call: Answer(f"```python{FUNCTION.format(weight=1 + call.number / 4)}```")) as server:
        key = {"OPENAI_API_KEY": "sk-planted"}
        words = [*SEARCH, f"llm.api_base={server.url}", f"tfcaf.cache={tmp_path / 'cache'}", f"dir={cluster.folder}"]
        command = ["-m", "qllm_exp.tfcaf", "search", *words, *SLURM]
        process = commands.start(command, env=cluster.environment | key, imports="litellm")
        while not cluster.queue():
            assert process.poll() is None, process.stderr()
            time.sleep(0.2)
        process.kill()
        process.wait()
        assert len(server.calls) == 2
        (path,) = cluster.folder.glob("search_*")
        submitted = set(path.glob("runs/*/jobs/*"))
        cluster.python("qllm_exp.tfcaf", "search", "--resume", path, *SLURM, expected_code=0, **key)
        assert len(server.calls) == 4, "no call is repeated"
    directory = SearchDirectory(path)
    trainings = directory.of_kind("training")
    assert {row["stage"] for row in trainings} == {0, 1} and len({row["run"] for row in trainings}) == len(trainings)
    for row in trainings:
        run = directory.run(row["run"])
        assert run.result() is not None and (run.path / "log.txt").read_text().count("ready after") == 1
    jobs = set(path.glob("runs/*/jobs/*"))
    assert len(submitted) == 1 and submitted < jobs, "what was submitted before the kill was not submitted again"
