"""Sweeps on this machine, as a user types them: planning, killing, stopping, moving, other sweepers."""

import json
import os
import random
import re
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
PAUSE = {"FLAKY_ENV_PAUSE": "0.004"}


def command(folder, *overrides, several=True):
    return [sys.executable, "-m", "qllm_exp", *(["-m"] if several else []), *overrides, f"dir={folder}"]


def start(folder, *overrides, **more):
    return subprocess.Popen(
        command(folder, *overrides), env=os.environ | {"PYTHONPATH": str(HERE)} | more,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def call(folder, *overrides, check=0, several=True, **more):
    environment = os.environ | {"PYTHONPATH": str(HERE)} | more
    done = subprocess.run(
        command(folder, *overrides, several=several),
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    text = done.stdout + done.stderr
    assert check is None or done.returncode == check, text
    return text


def tool(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(HERE)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def sweep_of(folder: Path) -> Path:
    (path,) = (path.parent for path in folder.glob("*/sweep.json"))
    return path


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def kill_all(process) -> None:
    """The sweep and every process under it, as the machine's failure would."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        if one.is_running():
            one.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=10)


def steps_in(run: Path) -> int:
    """Environment steps of a run's last checkpoint."""
    import torch

    try:
        return torch.load(run / "checkpoint/state.pt", weights_only=True)["run"]["env_steps"]
    except FileNotFoundError:
        return 0


@pytest.mark.timeout(900)
def test_killed_with_its_children_at_twenty_random_moments_a_sweep_ends_with_the_same_numbers(tmp_path):
    args = [
        *SMALL, "mixer=qmix", "seed=0-1", "train.total_steps=400000", "train.evaluation.every=40000",
        "train.checkpoint.every_s=0.3", "train.checkpoint.max_share=1",
    ]  # fmt: skip
    call(tmp_path / "whole", *args)
    chance, kept = random.Random(0), {}
    for number in range(20):
        process = start(tmp_path / "r", *args, FLAKY_ENV_PAUSE="0.02")  # too slow to end before the last kill
        if number % 2:  # while it plans, prepares and starts, or once runs are being run
            until(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 1)  # noqa: B023
        time.sleep(chance.uniform(0, 3))
        assert process.poll() is None
        kill_all(process)
        for run in runs(tmp_path / "r"):
            steps = steps_in(run) if not (run / "result.json").exists() else 400_000
            assert steps >= kept.get(run.name, 0), "what a checkpoint held is not trained again"
            kept[run.name] = steps
    assert sum(kept.values()) > 0, "some of the kills came in mid-training"
    text = call(tmp_path / "r", *args)
    assert "FAILED" not in text
    for one, two in zip(runs(tmp_path / "whole"), runs(tmp_path / "r"), strict=True):
        assert one.name == two.name and final(one) == final(two)
        began = [int(m.replace(",", "")) for m in re.findall(r"checkpoint at ([\d,]+)", (two / "log.txt").read_text())]
        assert began == sorted(began), "each start went on from where the one before was at least"


def test_the_plan_is_shown_and_nothing_is_written(tmp_path):
    args = [*TINY, "mixer=qmix,vdn", "llm=bundled,openai", "seed=0-1"]
    text = call(tmp_path / "r", *args, "--dry-run")
    assert "4 runs: 0 done, 0 running, 0 queued, 4 to run" in text and not (tmp_path / "r").exists()
    assert "4 combinations left out, since llm makes no difference there: llm=openai is the run of llm=bundled" in text
    call(tmp_path / "r", *args)
    text = call(tmp_path / "r", *TINY, "mixer=qmix,vdn", "seed=0-4", "--dry-run")
    assert "10 runs: 4 done, 0 running, 0 queued, 6 to run" in text
    assert re.search(r"time: about \d+ s, \d at a time; \d+ s of computing", text), text
    text = call(tmp_path / "one", *TINY, "--dry-run", several=False)
    assert "1 run: 0 done, 0 running, 0 queued, 1 to run" in text and not (tmp_path / "one").exists()


def test_two_sweeps_at_once_share_runs_without_training_them_twice(tmp_path):
    args = [*TINY, "train.total_steps=20000", "seed=0-2"]
    both = [start(tmp_path / "r", *args, **PAUSE) for _ in range(2)]
    texts = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert all("FAILED" not in text and "(n=3)" in text for text in texts)
    for run in runs(tmp_path / "r"):
        assert (run / "log.txt").read_text().count("ready after") == 1


def test_a_moved_folder_goes_on_where_it_was(tmp_path):
    args = [
        *TINY,
        "train.total_steps=100000",
        "train.checkpoint.every_s=0.2",
        "train.checkpoint.max_share=1",
        "seed=0-1",
    ]
    call(tmp_path / "whole", *args)
    process = start(tmp_path / "r", *args, **PAUSE)
    until(lambda: list((tmp_path / "r").glob("*/checkpoint/state.pt")))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 3
    shutil.move(tmp_path / "r", tmp_path / "moved")
    code, text = tool("status", sweep_of(tmp_path / "moved"))
    assert code == 3 and "stopped" in text and "--missing" in text, text
    text = call(tmp_path / "moved", *args)
    assert "2 runs: 0 done, 0 running, 0 queued, 2 to run" in text and "(n=2)" in text
    for one, two in zip(runs(tmp_path / "whole"), runs(tmp_path / "moved"), strict=True):
        assert final(one) == final(two)
    assert tool("status", sweep_of(tmp_path / "moved"))[0] == 0


def test_when_the_sweep_is_killed_its_runs_stop_at_a_checkpoint(tmp_path):
    process = start(tmp_path / "r", *TINY, "train.total_steps=4000000", "hydra.launcher.n_jobs=1", **PAUSE)
    run = until(lambda: [path.parent for path in (tmp_path / "r").glob("*/metrics.jsonl")])[0]
    child = json.loads((run / "status.json").read_text())["pid"]
    process.kill()
    process.communicate()
    until(lambda: not psutil.pid_exists(child))
    assert (run / "checkpoint/state.pt").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


def test_the_process_that_forks_the_runs_may_be_killed(tmp_path):
    args = [*TINY, "train.total_steps=100000", "train.checkpoint.every_s=0.2", "train.checkpoint.max_share=1"]
    call(tmp_path / "whole", *args)
    process = start(tmp_path / "r", *args, **PAUSE)
    until(lambda: list((tmp_path / "r").glob("*/checkpoint/state.pt")))
    (nursery,) = psutil.Process(process.pid).children()
    assert len(nursery.children()) == 1
    nursery.kill()
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 0 and "FAILED" not in text, text
    (one,), (two,) = runs(tmp_path / "whole"), runs(tmp_path / "r")
    assert final(one) == final(two) and "going on from the checkpoint" in (two / "log.txt").read_text()


def test_without_the_process_that_forks_them_runs_that_are_asked_to_stop_are_waited_for(tmp_path):
    args = [*TINY, "train.total_steps=100000", "train.checkpoint.every_s=0.2", "train.checkpoint.max_share=1"]
    process = start(tmp_path / "r", *args, FLAKY_ENV_PAUSE="0.1")  # a cycle of two seconds and a half
    until(lambda: list((tmp_path / "r").glob("*/checkpoint/state.pt")))
    (nursery,) = psutil.Process(process.pid).children()
    nursery.kill()
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 3, text
    (folder,) = runs(tmp_path / "r")
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


def test_max_failures_starts_no_more_and_retry_runs_what_failed(tmp_path):
    args = [*TINY, "+env.fault=raise,kill,exit,w1,w2,w3", "sweep.max_failures=2", "hydra.launcher.n_jobs=1"]
    text = call(tmp_path / "r", *args, check=1)
    assert "2 of 6 runs failed" in text and "4 runs were not started, since 2 had failed" in text, text
    code, text = tool("retry", sweep_of(tmp_path / "r"))
    assert code == 1 and "2 of 6 runs failed" in text, text
    text = call(tmp_path / "r", *args, FLAKY_ENV_IS_WELL="1")
    assert "6 to run" in text and text.count("(n=1)") == 12


def test_after_a_stop_what_is_advised_finishes_the_sweep(tmp_path):
    args = [*TINY, "train.total_steps=60000", "seed=0-2", "hydra.launcher.n_jobs=1"]
    process = start(tmp_path / "r", *args, **PAUSE)
    until(lambda: list((tmp_path / "r").glob("*/metrics.jsonl")))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    code, text = tool("status", sweep_of(tmp_path / "r"))
    assert code == 3 and "1 stopped, 2 new" in text, text
    advised = re.search(r"run what is missing:\s+python (.*)", text)[1].split()
    assert "seed=0-2" in advised, "as it was typed"
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, *advised], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0 and "(n=3)" in done.stderr, done.stderr


def test_two_sweeps_of_one_name_started_together_keep_all_their_runs(tmp_path):
    both = [start(tmp_path / "r", *TINY, f"seed={seed}", "sweep.name=one") for seed in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert len(json.loads((tmp_path / "r/one/sweep.json").read_text())["runs"]) == 2


def test_a_named_sweep_grows(tmp_path):
    call(tmp_path / "r", *TINY, "seed=0", "sweep.name=figure3", "sweep.tags=[paper]")
    text = call(tmp_path / "r", *TINY, "seed=1-2", "sweep.name=figure3", "sweep.tags=[paper]")
    assert "2 runs: 0 done, 0 running, 0 queued, 2 to run" in text and text.count("(n=3)") == 2
    assert sweep_of(tmp_path / "r") == tmp_path / "r/figure3" and len(runs(tmp_path / "r")) == 3
    config = (runs(tmp_path / "r")[0] / "config.yaml").read_text()
    assert "name: figure3" in config and "- paper" in config
    code, text = tool("status", tmp_path / "r", "--all")
    assert code == 0 and "3 runs: 3 done" in text


def test_cancel_stops_a_running_sweep_run_by_run(tmp_path):
    process = start(tmp_path / "r", *TINY, "train.total_steps=4000000", "seed=0-2", "hydra.launcher.n_jobs=1", **PAUSE)
    until(lambda: list((tmp_path / "r").glob("*/metrics.jsonl")))
    code, text = tool("cancel", sweep_of(tmp_path / "r"))
    assert code == 0 and "1 running" in text and "2 waiting" in text, text
    text = process.communicate(timeout=60)[0]
    assert "stopped at a checkpoint" in text and text.count("not started, as was asked") == 2, text
    assert process.returncode == 3
    code, text = tool("watch", sweep_of(tmp_path / "r"))
    assert code == 3 and "3 stopped" in text, text


def test_other_sweepers_of_hydra_get_the_final_return(tmp_path):
    search = ["hydra/sweeper=basic", "seed=0,1"]
    text = call(tmp_path / "r", *TINY, *search)
    assert "FAILED" not in text and len(runs(tmp_path / "r")) == 2
    optuna = [
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "hydra.sweeper.direction=maximize",
        "train.learning_rate=interval(0.0001,0.01)",
    ]  # fmt: skip
    call(tmp_path / "optuna", *TINY, *optuna)
    assert len(list((tmp_path / "optuna").glob("*/sweep.json"))) == 1
    found = {run: json.loads((run / "result.json").read_text())["final_return"] for run in runs(tmp_path / "optuna")}
    assert len(found) == 4
    best = re.search(r"best_value: (\S+)", (tmp_path / "optuna/optimization_results.yaml").read_text())
    assert float(best[1]) == max(found.values())


def test_what_is_asked_wrongly_is_refused_before_anything_starts(tmp_path):
    for args, message in [
        (["sweep.name=a/b"], "sweep.name='a/b' is a folder's name"),
        (["hydra/launcher=slurmm"], "Did you mean 'slurm'?"),
        (["env=lbf,grf", "mixer=qmix,qmx"], "mixer=qmx is unknown. Did you mean 'qmix'?"),
    ]:
        text = call(tmp_path / "r", *args, check=2)
        assert message in text and "Traceback" not in text, text
    environment = os.environ | {"PATH": ""}
    done = subprocess.run(
        command(tmp_path / "r", "hydra/launcher=slurm"), capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 2 and "there is no sbatch here" in done.stderr
    code, text = tool("status", tmp_path / "nothing")
    assert code == 2 and "is no folder. Give the folder of a run, of a sweep" in text
    for args, message in [
        (["hydra.launcher.n_jobs=-1"], "hydra.launcher.n_jobs=-1: give a whole number"),
        (["hydra.launcher.n_jobs=two"], "hydra.launcher.n_jobs='two': give a whole number"),
        (["sweep.name=a,b"], "sweep.name takes one value in a sweep, and got a, b"),
        (["hydra/sweeper=basic", "--dry-run"], "--dry-run is for sweeps of hydra/sweeper=grid"),
        (["seed=0,"], "cannot be read: write KEY=VALUE"),
    ]:
        text = call(tmp_path / "r", *TINY, *args, check=2)
        assert message in text and "Traceback" not in text, text
    text = call(tmp_path / "r", *TINY, "hydra/launcher=slurm", several=False, check=2)
    assert "hydra/launcher=slurm is for sweeps: add -m" in text
    assert not runs(tmp_path / "r")


def test_odd_names_and_places(tmp_path):
    folder = tmp_path / "my runs"
    call(folder, *TINY, "seed=0,0", "seed=1", "sweep.name=2026-11")  # what is given last counts
    (run,) = runs(folder)
    assert "_s1_" in run.name and sweep_of(folder).name == "2026-11"
    text = call(folder, *TINY, "seed=1-2", f"sweep.name={run.name}", check=2)
    assert "is the name of a run's folder" in text
    done = subprocess.run(
        [sys.executable, "-m", "launch.status", "."], capture_output=True, text=True, cwd=folder / "2026-11", timeout=60
    )
    assert done.returncode == 0 and "1 done" in done.stdout, done.stdout + done.stderr
    (folder / "broken").mkdir()
    (folder / "broken/sweep.json").write_text("{")
    assert tool("status", folder, "--all", folder / "2026-11")[0] == 0
    code, text = tool("retry", folder / "2026-11", "launcher=slrm", run.name)
    assert code == 0 and "nothing to run again" in text
    (run / "result.json").write_text("")
    code, text = tool("retry", folder / "2026-11", "launcher=slrm", "--missing", run.name)
    assert code == 2 and "Did you mean 'slurm'?" in text, text
    assert tool("retry", folder / "2026-11", run.name, run.name, "--missing")[0] == 0
    assert tool("status", folder / "2026-11")[0] == 0
