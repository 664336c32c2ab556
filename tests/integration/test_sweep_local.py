"""Sweeps on this machine, as a user types them: planning, killing, interrupting, moving, other sweepers."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import commands
import psutil
import pytest
from omegaconf import OmegaConf
from run_folders import run_outcome

from qllm_exp.runs.run_directory import RunDirectory

HERE = Path(__file__).parent
SMALL = [
    *("env=matrix", "env.name=flaky_env", "mixer=vdn", "train=quick", "train.hidden=8"),
    *("train.evaluation.episodes=10", "train.evaluation.absolute_episodes=20"),
]
TINY = [*SMALL, "train.total_steps=4000", "train.evaluation.every=2000"]
LONG = [
    *("env.num_envs=16", "train.batch_episodes=4", "train.total_steps=16000", "train.evaluation.every=8000"),
    *("train.checkpoint.every_s=0.2", "train.checkpoint.max_share=1"),
]
AUTO = ["mixer=vdn,qmix", "sweep.seeds=auto", "sweep.decide.first=3", "sweep.decide.step=3", "sweep.decide.most=6"]
SPACE = "train.learning_rate:[0.0001,0.001,0.01]"
TUNE = [
    *("mixer=vdn,qmix", "sweep.name=tuned", "sweep.tune.trials=3", "sweep.tune.seeds=1"),
    f"++hydra.sweeper.space={{vdn:{{{SPACE}}},qmix:{{{SPACE}}}}}",
]
RATES = ["train.learning_rate=1e-4,3e-4,1e-3,3e-3"]
PAUSE = {"FLAKY_ENV_PAUSE": "0.02"}  # half a second per rollout, twenty seconds per long run


def arguments(folder, *overrides, sweep=True):
    mode = ["-m"] if sweep else []
    return ["-m", "qllm_exp", *mode, *overrides, f"dir={folder}"]


def start(folder, *overrides, **variables):
    return commands.start(arguments(folder, *overrides), env=os.environ | {"PYTHONPATH": str(HERE)} | variables)


def end_of(process, seconds=100):
    """Wait for the end of a process, and return its exit code and all its output."""
    stdout, stderr = process.communicate(seconds)
    return process.wait(), stdout + stderr


def call(folder, *overrides, expected_code=0, sweep=True, **variables):
    environment = os.environ | {"PYTHONPATH": str(HERE)} | variables
    process = commands.run(arguments(folder, *overrides, sweep=sweep), timeout=280, env=environment)
    text = process.stdout + process.stderr
    assert process.returncode == expected_code, text
    return text


def tool(name, *arguments):
    process = commands.run(["-m", "qllm_exp", name, *arguments], env=os.environ | {"PYTHONPATH": str(HERE)})
    return process.returncode, process.stdout + process.stderr


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def rows_of(folder: Path):
    """Return the rows of `load_runs`: state and options of each run."""
    import qllm_exp

    return qllm_exp.load_runs(folder).to_dict("records")


def sweep_of(folder: Path) -> Path:
    (path,) = (path.parent for path in folder.glob("*/sweep.json"))
    return path


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def kill_all(process) -> None:
    """Kill a sweep and all its descendants, as a failure of the machine would."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    for member in family:
        if member.is_running():
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def checkpoint_steps(run: Path) -> int:
    """Return the environment steps of a run's last checkpoint; 0 if it has none."""
    import torch

    try:
        return torch.load(run / "checkpoint/state.pt", weights_only=True)["run"]["env_steps"]
    except FileNotFoundError:
        return 0


def checkpoint_times(folder: Path) -> list[float]:
    """Return when the checkpoints of a folder's runs were written."""
    return sorted(path.stat().st_mtime for path in folder.glob("*/checkpoint/state.pt"))


def test_seeds_in_groups_killed_and_started_again_give_the_same_decisions(tmp_path):
    def decisions(folder):
        return json.loads((sweep_of(folder) / "sweep.json").read_text())["decisions"]

    args = [*TINY, *AUTO, "sweep.name=auto"]
    text = call(tmp_path / "whole", *args)
    assert "6 runs: 0 finished" in text and "undecided, 12 runs at most" in text and "12 runs: 6 finished" in text
    table = (sweep_of(tmp_path / "whole") / "table.md").read_text()
    assert "Cost: 12 runs instead of 12 with 6 seeds each (0 % fewer)." in table
    for results in (2, 7):  # in the first group, and in the second
        process = start(tmp_path / "r", *args, **PAUSE)
        until(lambda: len(list((tmp_path / "r").glob("*/result.json"))) >= results)  # noqa: B023
        kill_all(process)
    call(tmp_path / "r", *args)
    assert decisions(tmp_path / "r") == decisions(tmp_path / "whole") != []
    for whole, killed in zip(runs(tmp_path / "whole"), runs(tmp_path / "r"), strict=True):
        assert whole.name == killed.name and run_outcome(whole) == run_outcome(killed)
    assert "12 finished, 0 running, 0 queued, 0 to run" in call(tmp_path / "r", *args)


def test_equal_tuning_killed_and_started_again_chooses_the_same_and_compares_it_with_the_fixed_settings(tmp_path):
    args = [*TINY, *TUNE, "seed=0-1"]
    text = call(tmp_path / "whole", *args)
    assert (
        "tuning: 3 trials of each method on each task with 1 seed each; then fixed and chosen settings with 2 seeds"
        in text
    )
    for results in (2, 7):  # of the trials, and of the comparison
        process = start(tmp_path / "r", *args, **PAUSE)
        until(lambda: len(list((tmp_path / "r").glob("*/result.json"))) >= results or process.poll() is not None)  # noqa: B023
        kill_all(process)
    call(tmp_path / "r", *args)
    records = [json.loads((tmp_path / folder / "tuned/sweep.json").read_text()) for folder in ("whole", "r")]
    assert records[0]["decisions"][:-1] == records[1]["decisions"][:-1] and records[0]["labels"] == records[1]["labels"]
    assert "Cost of tuning: vdn 3 runs, 19,200 steps" in records[0]["decisions"][-1]
    table = (tmp_path / "r/tuned/table.md").read_text()
    assert all(f"{mixer} {label}" in table for mixer in ("vdn", "qmix") for label in ("fixed", "tuned")), table
    assert table.count("(n=2)") == 8 and "1000000" not in table.split("From the runs:")[1]
    text = call(tmp_path / "r", *args)
    assert text.count(" 0 to run") == 2, text


def test_pruned_settings_stay_pruned_after_a_kill_and_are_resumed_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAKY_ENV_HANDICAP", "100")

    def decisions():
        files = {path.parent.name: path.read_text() for path in (tmp_path / "r").glob("*/stop")}
        return {name: json.loads(text)["pruned"] for name, text in files.items() if text}

    def pruned():
        return [run for run in runs(tmp_path / "r") if run.name in decisions()]

    args = [
        *SMALL,
        *LONG[1:],
        "train.evaluation.every=1600",
        "env.num_envs=16,17,18,25",
        "seed=0-1",
        "sweep.name=search",
    ]
    args += ["sweep.prune=median", "hydra.launcher.n_jobs=4"]
    process = start(tmp_path / "r", *args, **PAUSE)
    until(lambda: any("num_envs: 25" in (run / "config.yaml").read_text() for run in pruned()), 160)
    kill_all(process)
    known = decisions()
    started = {name: RunDirectory(tmp_path / "r" / name).status().get("started") for name in known}
    text = call(tmp_path / "r", *args)
    assert "sweep.prune=median: vdn on flaky_env/climbing, 4 settings" in text and "environment steps" in text, text
    assert known.items() <= decisions().items(), "decided once"
    assert started == {name: RunDirectory(tmp_path / "r" / name).status().get("started") for name in known}
    states = {(run["env.num_envs"], run["seed"]): run["state"] for run in rows_of(tmp_path / "r/search")}
    assert states[25, 0] == states[25, 1] == "pruned" and states[16, 0] == states[16, 1] == "finished"
    code, text = tool("status", tmp_path / "r/search")
    assert code == 0 and re.search(r"pruned +flaky-env\S+  at step [\d,]+ below the median of", text), text
    table = (tmp_path / "r/search/table.md").read_text()
    assert "Pruned: " in table and "no comparison of methods" in table
    text = call(tmp_path / "r", *args)
    assert f"{len(decisions())} pruned, 0 to run" in text, text
    worst = next(run for run in pruned() if (run / "checkpoint/state.pt").exists())
    code, text = tool("retry", tmp_path / "r/search", worst.name)
    assert code == 0 and (worst / "result.json").exists(), text
    config = OmegaConf.load(worst / "config.yaml")
    own = [f"env.num_envs={config.env.num_envs}", f"seed={config.seed}", "train.evaluation.every=1600"]
    call(tmp_path / "whole", *SMALL, *LONG[1:], *own, sweep=False)
    assert run_outcome(worst) == run_outcome(tmp_path / "whole" / worst.name), "as if it had never stopped"


def test_further_runs_start_beside_those_that_wait_for_their_simulator(tmp_path):
    hurry = "import sys; from qllm_exp.sweep import measured_load as load; load.SETTLE_S = load.WINDOW_S = 1.0"
    main = f"{hurry}; from qllm_exp.__main__ import main; sys.exit(main())"
    args = [
        "-m",
        *SMALL,
        *LONG,
        "seed=0-3",
        "hydra.launcher.n_jobs=1",
        "hydra.launcher.max_load=0.9",
        f"dir={tmp_path}",
    ]
    process = commands.start(["-c", main, *args], env=os.environ | {"PYTHONPATH": str(HERE)} | PAUSE)

    def training():
        return [run for run in runs(tmp_path) if RunDirectory(run).status().get("state") == "running"]

    until(lambda: len(training()) == 4)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, text = end_of(process)
    assert code == 3 and "stopping 4 runs at the next checkpoint" in text, text


@pytest.mark.timeout(900)
def test_killed_with_its_children_at_six_random_moments_a_sweep_ends_with_the_same_numbers(tmp_path):
    args = [*SMALL, *LONG, "mixer=qmix", "seed=0-1", "train.total_steps=28000", "train.evaluation.every=4000"]
    call(tmp_path / "whole", *args)
    rng, trained_steps = random.Random(0), {}
    for number in range(6):
        before = checkpoint_times(tmp_path / "r")
        process = start(tmp_path / "r", *args, **PAUSE)  # too slow to finish before the last kill
        if number % 3 == 1:  # kill once runs are running; else possibly while the sweep plans, prepares and starts
            until(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 1)  # noqa: B023
        if number % 3 == 2:  # ... or once a run has come further than before
            until(lambda: checkpoint_times(tmp_path / "r") != before)  # noqa: B023
        time.sleep(rng.uniform(0, 1))
        assert process.poll() is None
        kill_all(process)
        for run in runs(tmp_path / "r"):
            steps = checkpoint_steps(run)
            assert steps >= trained_steps.get(run.name, 0), "what a checkpoint held is not trained again"
            trained_steps[run.name] = steps
    assert sum(trained_steps.values()) > 0, "some kills came in mid-training"
    assert not list((tmp_path / "r").glob("*/result.json")), "and all of them before a run had ended"
    text = call(tmp_path / "r", *args)
    assert "FAILED" not in text
    for whole, killed in zip(runs(tmp_path / "whole"), runs(tmp_path / "r"), strict=True):
        assert whole.name == killed.name and run_outcome(whole) == run_outcome(killed)
        resumed_at = re.findall(r"checkpoint at ([\d,]+)", (killed / "log.txt").read_text())
        steps = [int(number.replace(",", "")) for number in resumed_at]
        assert steps == sorted(steps), "each start resumed from the latest checkpoint"


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    args = [*TINY, "mixer=qmix,vdn", "llm=bundled,openai", "seed=0-1"]
    text = call(tmp_path / "r", *args, "--dry-run")
    assert "4 runs: 0 finished, 0 running, 0 queued, 4 to run" in text and not (tmp_path / "r").exists()
    assert len(re.findall(r"^  new +flaky-env_climbing_q-learning_(?:qmix|vdn)_s[01]_\w{8}$", text, re.MULTILINE)) == 4
    assert "4 combinations left out: llm makes no difference there (llm=openai is the same run as llm=bundled" in text
    call(tmp_path / "r", *args)
    text = call(tmp_path / "r", *TINY, "mixer=qmix,vdn", "seed=0-4", "--dry-run")
    assert "10 runs: 4 finished, 0 running, 0 queued, 6 to run" in text
    assert re.search(r"time: about \d+ s, \d at a time; \d+ s of computing", text), text
    n_step = "algorithm.n_step has no effect with the other options of the run"
    assert n_step in call(tmp_path / "one", *TINY, "algorithm.n_step=5", "--dry-run", sweep=False)
    text = call(tmp_path / "one", *TINY, "--dry-run", sweep=False)
    assert "1 run: 0 finished, 0 running, 0 queued, 1 to run" in text and not (tmp_path / "one").exists()


def test_two_sweeps_at_once_train_shared_runs_once(tmp_path):
    args = [*SMALL, *LONG, "train.total_steps=2000", "seed=0-2"]
    both = [start(tmp_path / "r", *args, **PAUSE) for _ in range(2)]
    ends = [end_of(process, 200) for process in both]
    assert all(code == 0 and "FAILED" not in text and "(n=3)" in text for code, text in ends), ends
    for run in runs(tmp_path / "r"):
        assert (run / "log.txt").read_text().count("ready after") == 1


@pytest.mark.parametrize("removed", ["one run", "all"])
def test_a_run_whose_directory_is_removed_fails_alone(tmp_path, removed):
    folder = tmp_path / "r"
    args = [
        *SMALL,
        *LONG,
        "train.total_steps=8000",
        "train.evaluation.every=4000",
        "seed=0-1",
        "hydra.launcher.n_jobs=1",
    ]
    process = start(folder, *args, **PAUSE)
    until(lambda: checkpoint_times(folder))
    (first,) = runs(folder)
    shutil.rmtree(first if removed == "one run" else folder)
    code, text = end_of(process)
    assert code == 1 and "Traceback" not in text, text
    assert text.count("FAILED: The run directory was removed while the run was in progress") == 1 and "(n=1)" in text, (
        text
    )
    assert [run.name for run in runs(folder)] != [first.name] and len(runs(folder)) == 1
    assert "1 finished, 1 new" in tool("status", sweep_of(folder))[1]


def test_a_full_disk_is_one_line_for_all_runs(tmp_path):
    args = arguments(
        tmp_path / "r", *SMALL, *LONG, "mixer=qmix", "train.hidden=32", "seed=0-3", "hydra.launcher.n_jobs=2"
    )
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"  # a disk that takes no larger file
        f"sys.argv = {['qllm_exp', *args[2:]]}\n"
        "runpy.run_module('qllm_exp', run_name='__main__')\n"
    )
    process = commands.run(["-c", code], env=os.environ | {"PYTHONPATH": str(HERE)})
    text = process.stdout + process.stderr
    assert process.returncode == 1 and "Traceback" not in text and "inline_container" not in text, text
    assert text.count("the disk is full") == 1 and "No further run starts" in text and len(text.splitlines()) == 2, text
    _, status = tool("status", sweep_of(tmp_path / "r"))
    assert (
        "2 failed, 2 new" in status and "inline_container" not in status and "File too large. Free some space" in status
    )
    text = call(tmp_path / "r", *args[3:-1])
    assert "4 to run" in text and "FAILED" not in text


def test_a_moved_folder_resumes(tmp_path):
    args = [*SMALL, *LONG, "seed=0-1"]
    call(tmp_path / "whole", *args)
    process = start(tmp_path / "r", *args, **PAUSE)
    until(lambda: list((tmp_path / "r").glob("*/checkpoint/state.pt")))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 3
    shutil.move(tmp_path / "r", tmp_path / "moved")
    code, text = tool("status", sweep_of(tmp_path / "moved"))
    assert code == 3 and "interrupted" in text and "--missing" in text, text
    text = call(tmp_path / "moved", *args)
    assert "2 runs: 0 finished, 0 running, 0 queued, 2 to run" in text and "(n=2)" in text
    for whole, moved in zip(runs(tmp_path / "whole"), runs(tmp_path / "moved"), strict=True):
        assert run_outcome(whole) == run_outcome(moved)
    assert tool("status", sweep_of(tmp_path / "moved"))[0] == 0


def test_when_the_sweep_is_killed_its_runs_stop_at_a_checkpoint(tmp_path):
    process = start(tmp_path / "r", *SMALL, *LONG, "train.total_steps=4000000", "hydra.launcher.n_jobs=1", **PAUSE)
    run = until(lambda: [path.parent for path in (tmp_path / "r").glob("*/metrics.jsonl")])[0]
    worker = json.loads((run / "status.json").read_text())["pid"]
    process.kill()
    process.wait()
    until(lambda: not psutil.pid_exists(worker))
    assert (run / "checkpoint/state.pt").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


def test_a_killed_fork_server_is_replaced(tmp_path):
    args = [*SMALL, *LONG]
    call(tmp_path / "whole", *args)
    process = start(tmp_path / "r", *args, **PAUSE, FLAKY_ENV_FAST=str(tmp_path / "fast"))
    until(lambda: list((tmp_path / "r").glob("*/checkpoint/state.pt")))
    (fork_server,) = psutil.Process(process.pid).children()
    assert len(fork_server.children()) == 1
    fork_server.kill()
    (run,) = runs(tmp_path / "r")
    until(lambda: json.loads((run / "status.json").read_text())["state"] == "interrupted")
    (tmp_path / "fast").touch()
    code, text = end_of(process)
    assert code == 0 and "FAILED" not in text, text
    (whole,), (killed,) = runs(tmp_path / "whole"), runs(tmp_path / "r")
    assert (
        run_outcome(whole) == run_outcome(killed) and "resuming from the checkpoint" in (killed / "log.txt").read_text()
    )


def test_ctrl_c_waits_for_runs_whose_fork_server_was_killed(tmp_path):
    args = [*SMALL, *LONG]
    process = start(tmp_path / "r", *args, FLAKY_ENV_PAUSE="0.1")  # one rollout takes two and a half seconds
    until(lambda: list((tmp_path / "r").glob("*/checkpoint/state.pt")))
    (fork_server,) = psutil.Process(process.pid).children()
    fork_server.kill()
    process.send_signal(signal.SIGINT)
    code, text = end_of(process)
    assert code == 3, text
    (folder,) = runs(tmp_path / "r")
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


def test_max_failures_starts_no_further_run_and_retry_starts_failed_runs(tmp_path):
    args = [*TINY, "+env.fault=raise,kill,exit,w1,w2,w3", "sweep.max_failures=2", "hydra.launcher.n_jobs=1"]
    text = call(tmp_path / "r", *args, expected_code=1)
    assert "2 of 6 runs failed" in text and "4 runs not started: sweep.max_failures=2 was reached" in text, text
    code, text = tool("retry", sweep_of(tmp_path / "r"))
    assert code == 1 and "2 of 2 runs failed" in text, text
    text = call(tmp_path / "r", *args, FLAKY_ENV_IS_WELL="1")
    assert "6 to run" in text and text.count("(n=1)") == 12


def test_a_named_sweep_counts_the_failures_of_each_command_by_itself(tmp_path):
    both = [*TINY, "sweep.name=both", "sweep.max_failures=2", "hydra.launcher.n_jobs=1"]
    text = call(tmp_path / "r", *both, "+env.fault=w1,raise,kill,w2", expected_code=1)
    assert "2 of 4 runs failed" in text and "1 run not started" in text, text
    text = call(tmp_path / "r", *both, "+env.fault=exit,w3", expected_code=1)
    assert "1 of 2 runs failed" in text and "not started" not in text, text
    table = (tmp_path / "r" / "both" / "table.md").read_text()
    assert "1 failed (s0)" in table and "3 runs of earlier commands" in table, table
    assert len([path for path in runs(tmp_path / "r") if (path / "result.json").exists()]) == 2


def test_the_advised_command_finishes_an_interrupted_sweep(tmp_path):
    args = [*SMALL, *LONG, "seed=0-2", "hydra.launcher.n_jobs=1"]
    process = start(tmp_path / "r", *args, **PAUSE)
    until(lambda: list((tmp_path / "r").glob("*/metrics.jsonl")))
    process.send_signal(signal.SIGINT)
    process.wait(60)
    code, text = tool("status", sweep_of(tmp_path / "r"))
    assert code == 3 and "1 interrupted, 2 new" in text, text
    advised = re.search(r"start missing runs:\s+python (.*)", text)[1].split()
    assert "seed=0-2" in advised, "the command as typed"
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    advised_process = commands.run(advised, env=environment, timeout=200)
    assert advised_process.returncode == 0 and "(n=3)" in advised_process.stderr, advised_process.stderr


def test_two_sweeps_of_one_name_started_together_keep_all_their_runs(tmp_path):
    both = [start(tmp_path / "r", *TINY, f"seed={seed}", "sweep.name=one") for seed in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert len(json.loads((tmp_path / "r/one/sweep.json").read_text())["runs"]) == 2


def test_a_named_sweep_grows(tmp_path):
    call(tmp_path / "r", *TINY, "seed=0", "sweep.name=figure3", "sweep.tags=[paper]")
    text = call(tmp_path / "r", *TINY, "seed=1-2", "sweep.name=figure3", "sweep.tags=[paper]")
    assert "2 runs: 0 finished, 0 running, 0 queued, 2 to run" in text and text.count("(n=3)") == 2
    assert sweep_of(tmp_path / "r") == tmp_path / "r/figure3" and len(runs(tmp_path / "r")) == 3
    config = (runs(tmp_path / "r")[0] / "config.yaml").read_text()
    assert "name: figure3" in config and "- paper" in config
    code, text = tool("status", tmp_path / "r", "--all")
    assert code == 0 and "3 runs: 3 finished" in text


def test_cancel_stops_a_running_sweep_run_by_run(tmp_path):
    args = [*SMALL, *LONG, "train.total_steps=4000000", "seed=0-2", "hydra.launcher.n_jobs=1"]
    process = start(tmp_path / "r", *args, **PAUSE)
    until(lambda: list((tmp_path / "r").glob("*/metrics.jsonl")))
    code, text = tool("cancel", sweep_of(tmp_path / "r"))
    assert code == 0 and "1 running" in text and "2 waiting" in text, text
    code, text = end_of(process, 60)
    assert "interrupted at a checkpoint" in text and text.count("cancelled before it started") == 2, text
    assert code == 3
    code, text = tool("watch", sweep_of(tmp_path / "r"))
    assert code == 3 and "3 interrupted" in text, text


def test_other_sweepers_of_hydra_get_the_final_return(tmp_path):
    search = ["hydra/sweeper=basic", "seed=0,1"]
    text = call(tmp_path / "r", *TINY, *search)
    assert "FAILED" not in text and len(runs(tmp_path / "r")) == 2
    optuna = [
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "hydra.sweeper.direction=maximize",
        "train.learning_rate=interval(0.0001,0.01)", "seed=0-1",
    ]  # fmt: skip
    call(tmp_path / "optuna", *TINY, *optuna)
    assert len(list((tmp_path / "optuna").glob("*/sweep.json"))) == 1
    trials: dict[float, list[float]] = {}  # learning rate to returns
    for run in runs(tmp_path / "optuna"):
        rate = OmegaConf.load(run / "config.yaml").train.learning_rate
        trials.setdefault(rate, []).append(json.loads((run / "result.json").read_text())["final_return"])
    assert [len(returns) for returns in trials.values()] == [2] * 4
    best = OmegaConf.load(tmp_path / "optuna/optimization_results.yaml")
    assert list(best.best_params) == ["train.learning_rate"], "a seed is not optimised"
    assert best.best_value == pytest.approx(max(sum(returns) / 2 for returns in trials.values()))


def test_references_are_resolved_in_each_run_on_the_command_line_and_in_a_preset(tmp_path):
    preset = """# @package _global_
defaults: [{override /mixer: vdn}]
sweep: {tags: ["${mixer.name}", "${hydra:runtime.choices.mixer}", "${env.task}"]}
hydra: {sweeper: {params: {mixer: [qmix, vdn], train.evaluation.every: "${train.total_steps}"}}}
"""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(preset)
    own = ["--config-dir", str(tmp_path / "conf"), "experiment=mine"]
    tiny = [override for override in TINY if not override.startswith(("mixer=", "train.evaluation.every"))]
    call(tmp_path / "preset", *tiny, *own, "train.total_steps=1000,2000")
    call(
        tmp_path / "typed",
        *tiny,
        "mixer=qmix,vdn",
        "sweep.tags=[${mixer.name},${train.name}]",
        "sweep.name=${env.task}",
    )
    configs = [OmegaConf.load(run / "config.yaml") for run in runs(tmp_path / "preset")]
    assert len(configs) == 4
    for config in configs:
        assert config.sweep.tags == [config.mixer.name, config.mixer.name, config.env.task]
        assert config.train.evaluation.every == config.train.total_steps
    for run in runs(tmp_path / "typed"):
        config = OmegaConf.load(run / "config.yaml")
        assert config.sweep == {
            "name": "climbing",
            "tags": [config.mixer.name, "quick"],
            "max_failures": 0,
            "dry_run": False,
            "search": "",
            "seeds": "listed",
            "decide": {"level": 0.05, "first": 5, "step": 5, "most": 20},
            "prune": "none",
            "pruning": {"share": 0.1, "least": 3, "factor": 3},
            "tune": {"trials": 0, "seeds": 3},
        }
    assert sweep_of(tmp_path / "typed").name == "climbing"


def test_invalid_commands_are_rejected_before_anything_starts(tmp_path):
    for args, message in [
        (["sweep.name=a/b"], "sweep.name='a/b' is not a valid directory name"),
        (["hydra/launcher=slurmm"], "Did you mean 'slurm'?"),
        (["env=lbf,grf", "mixer=qmix,qmx"], "mixer=qmx is unknown. Did you mean 'qmix'?"),
    ]:
        text = call(tmp_path / "r", *args, expected_code=2)
        assert message in text and "Traceback" not in text, text
    process = commands.run(arguments(tmp_path / "r", "hydra/launcher=slurm"), env=os.environ | {"PATH": ""})
    assert process.returncode == 2 and "there is no sbatch on this machine" in process.stderr
    code, text = tool("status", tmp_path / "nothing")
    assert code == 2 and "is not a folder. Give a run directory, a sweep directory" in text
    for args, message in [
        (["hydra.launcher.n_jobs=-1"], "hydra.launcher.n_jobs=-1 is not allowed"),
        (["hydra.launcher.n_jobs=two"], "hydra.launcher.n_jobs='two' is not allowed"),
        (["sweep.name=a,b"], "sweep.name must have a single value in a sweep, not a, b"),
        (
            ["sweep.name=${mixer.name}", "mixer=vdn,qmix"],
            "sweep.name must have a single value in a sweep, not vdn, qmix",
        ),
        (["hydra.launcher.n_jobs=${seed}", "seed=1,2"], "hydra.launcher refers to ${seed}, but its options hold for"),
        (["sweep.max_failures=1,2"], "sweep.max_failures must have a single value in a sweep, not 1, 2"),
        (["hydra/sweeper=basic", "--dry-run"], "--dry-run needs hydra/sweeper=grid"),
        (["seed=0,"], "cannot be parsed. Write KEY=VALUE"),
        ([*AUTO, "seed=0-4"], "sweep.seeds=auto chooses the seeds. Remove seed=0,1,2,3,4"),
        ([*AUTO, "sweep.decide.most=2"], "sweep.decide.most=2 is smaller than sweep.decide.first=3"),
        ([*AUTO, "mixer=vdn"], "sweep.seeds=auto compares methods, and flaky_env/climbing has only vdn"),
        ([*AUTO, "sweep.decide.first=1"], "sweep.decide.first=1 is out of bounds. Allowed: at least 2"),
        ([*AUTO, "hydra/sweeper=basic"], "sweep.seeds=auto needs hydra/sweeper=grid"),
        ([*AUTO, "sweep.prune=median"], "and sweep.seeds=auto is a comparison, whose runs must all reach their end"),
        (["sweep.prune=halving", "hydra/sweeper=basic"], "sweep.prune=halving needs hydra/sweeper=grid"),
        ([*TUNE[:-1], "hydra/sweeper=basic"], "sweep.tune needs hydra/sweeper=grid"),
        ([*TUNE, "mixer=vdn,qmix,qplex"], "has no values for qplex"),
        ([*TUNE, "seed=1000000"], "seed=1000000 is reserved"),
        (["sweep.prune=medain"], "sweep.prune='medain' is not allowed. Did you mean 'median'?"),
        (
            ["sweep.prune=median", "mixer=vdn,qmix", "seed=0-4"],
            "vdn on flaky_env/climbing has 1 setting: nothing can be",
        ),
        ([*RATES, "sweep.prune=median", "sweep.pruning.share=0.9"], "evaluated every 2,000 of 4,000 steps"),
    ]:
        text = call(tmp_path / "r", *TINY, *args, expected_code=2)
        assert message in text and "Traceback" not in text, text
    text = call(tmp_path / "r", *TINY, "hydra/launcher=slurm", sweep=False, expected_code=2)
    assert "hydra/launcher=slurm is for sweeps: add -m" in text
    text = call(tmp_path / "r", *TINY, "sweep.seeds=auto", sweep=False, expected_code=2)
    assert "sweep.seeds=auto is for sweeps: add -m" in text
    text = call(tmp_path / "r", *TINY, "sweep.tune.trials=2", sweep=False, expected_code=2)
    assert "sweep.tune is for sweeps: add -m" in text
    text = call(tmp_path / "r", *TINY, "sweep.prune=median", sweep=False, expected_code=2)
    assert "sweep.prune=median compares the settings of a sweep: add -m" in text
    assert not runs(tmp_path / "r")


def test_unusual_names_and_folders(tmp_path):
    folder = tmp_path / "my runs"
    call(folder, *TINY, "seed=0,0", "seed=1", "sweep.name=2026-11")  # the last value of a key counts
    (run,) = runs(folder)
    assert "_s1_" in run.name and sweep_of(folder).name == "2026-11"
    text = call(folder, *TINY, "seed=1-2", f"sweep.name={run.name}", expected_code=2)
    assert "is the name of a run directory" in text
    process = commands.run(["-m", "launch.status", "."], cwd=folder / "2026-11")
    assert process.returncode == 0 and "1 finished" in process.stdout, process.stdout + process.stderr
    (folder / "broken").mkdir()
    (folder / "broken/sweep.json").write_text("{")
    assert tool("status", folder, "--all", folder / "2026-11")[0] == 0
    code, text = tool("retry", folder / "2026-11", "launcher=slrm", run.name)
    assert code == 0 and "nothing to retry" in text
    (run / "result.json").write_text("")
    code, text = tool("retry", folder / "2026-11", "launcher=slrm", "--missing", run.name)
    assert code == 2 and "Did you mean 'slurm'?" in text, text
    assert tool("retry", folder / "2026-11", run.name, run.name, "--missing")[0] == 0
    assert tool("status", folder / "2026-11")[0] == 0
