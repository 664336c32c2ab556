"""The command `python -m qllm_exp`, as a user types it, in its own processes."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import commands
import pytest

from qllm_exp.credit.stored_function import bundled_path

HERE = Path(__file__).parent
LBF_FUNCTION = bundled_path("lbf", "8x8-2p-2f-coop-2s")
TINY = [
    "train=quick",
    "train.total_steps=4000",
    "train.evaluation.every=2000",
    "train.evaluation.episodes=10",
    "train.evaluation.absolute_episodes=20",
    "train.hidden=8",
]


def start(folder, *overrides, tiny=True, **variables):
    arguments = ["-m", "qllm_exp", *(TINY if tiny else []), *overrides, f"dir={folder}"]
    return commands.start(arguments, env=os.environ | {"PYTHONPATH": str(HERE)} | variables)


def call(folder, *overrides, tiny=True, **variables):
    process = start(folder, *overrides, tiny=tiny, **variables)
    stdout, stderr = process.communicate(240)
    return process.wait(), stdout + stderr


def rows(run: Path):
    """Return the metrics rows of a run, without the times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


def runs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("sweep_"))


def last_checkpoint(folder: Path) -> float:
    """Return the time of the latest checkpoint of a folder's runs; 0 if there is none."""
    return max((path.stat().st_mtime for path in folder.glob("*/checkpoint/state.pt")), default=0.0)


def test_a_run_ends_with_table_and_plot_and_is_not_run_twice(tmp_path):
    code, text = call(tmp_path / "r")
    assert code == 0, text
    (run,) = runs(tmp_path / "r")
    assert re.search(r"\| lbf/8x8-2p-2f-coop-2s \| -?\d+\.\d{3} \(n=1\) \|", text), text
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in run.iterdir()} >= {
        *("config.yaml", "versions.json", "metrics.jsonl", "status.json"),
        *("result.json", "policy.pt", "tfcaf.json", "log.txt", "table.md"),
    }
    assert not (run / "checkpoint").exists() and json.loads((run / "status.json").read_text())["state"] == "finished"
    before = (run / "metrics.jsonl").read_bytes()
    code, text = call(tmp_path / "r")
    assert code == 0 and "already finished" in text and (run / "metrics.jsonl").read_bytes() == before


def test_a_sweep_runs_every_combination_and_compares(tmp_path):
    small = ["env.num_envs=16", "train.batch_episodes=4"]
    args = ["-m", "env=mpe,lbf", "mixer=tfcaf,qmix", "seed=0-1", *small]
    code, text = call(tmp_path / "r", *args)
    assert code == 0, text
    assert "8 runs: 0 finished, 0 running, 0 queued, 8 to run" in text
    assert len(runs(tmp_path / "r")) == 8
    assert text.count("(n=2)") == 8 and "Fewer than 5 seeds" in text
    starts = {run.name[: run.name.rindex("_")]: rows(run)[0] for run in runs(tmp_path / "r")}
    for env, seed in (("lbf_8x8-2p-2f-coop-2s", 0), ("mpe_simple-spread", 1)):
        tfcaf, qmix = (starts[f"{env}_q-learning_{mixer}_s{seed}"] for mixer in ("tfcaf", "qmix"))
        assert tfcaf == qmix, "before the first step, equal seeds have equal agents"
    (sweep,) = (tmp_path / "r").glob("sweep_*")
    assert (sweep / "curves.png").stat().st_size > 10_000 and "| mpe/simple_spread" in (sweep / "table.md").read_text()
    code, text = call(tmp_path / "r", *args)
    assert code == 0 and "8 runs: 8 finished, 0 running, 0 queued, 0 to run" in text and text.count("(n=2)") == 8
    code, text = call(tmp_path / "r", "-m", "env=mpe,lbf", "mixer=tfcaf,qmix", "seed=0-2", *small)
    assert code == 0 and "12 runs: 8 finished, 0 running, 0 queued, 4 to run" in text and text.count("(n=3)") == 8


COUNTING = """
import sys
from collections import Counter
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf
import qllm_exp.__main__

files, compositions = Counter(), []
load, compose = OmegaConf.load, ConfigLoaderImpl.load_configuration
OmegaConf.load = lambda file: (files.update([str(getattr(file, "name", file))]), load(file))[1]
ConfigLoaderImpl.load_configuration = lambda *args, **options: (compositions.append(args), compose(*args, **options))[1]
code = qllm_exp.__main__.main()
print("code", code, "compositions", len(compositions), "files", len(files), "again", sum(n > 1 for n in files.values()))
"""


@pytest.mark.parametrize(
    ("overrides", "compositions"),
    [(["mixer=vdn"], 1), (["-m", "mixer=vdn", "seed=0-4"], 2), (["-m", "mixer=vdn,qmix", "seed=0-4"], 3)],
    ids=["run", "seeds", "choices"],
)
def test_hydra_composes_each_choice_once_and_parses_no_file_again(overrides, compositions, tmp_path):
    arguments = ["env=matrix", "train=quick", *overrides, "--dry-run", f"dir={tmp_path}"]
    text = commands.run(["-c", COUNTING, *arguments], check=True).stdout
    counts = re.search(r"code 0 compositions (\d+) files (\d+) again (\d+)", text)
    assert counts and int(counts[1]) == compositions and int(counts[2]) > 10 and int(counts[3]) == 0, text


def test_one_failed_run_leaves_the_others_alone_and_is_named(tmp_path):
    args = ["-m", "env=matrix", "env.name=flaky_env", "+env.fault='',raise,exit,kill", "mixer=vdn", "seed=0"]
    code, text = call(tmp_path / "r", *args)
    assert code == 1, text
    assert "3 of 4 runs failed" in text and text.count("    retry: ") == 3 and text.count("log: ") == 3
    for error in ("the simulator says no", "exit code 9", "killed by SIGKILL"):
        assert error in text
    assert "| flaky_env/climbing |" in text and "(n=1)" in text
    states = sorted(json.loads((run / "status.json").read_text())["state"] for run in runs(tmp_path / "r"))
    assert states == ["failed", "failed", "failed", "finished"]
    log = next(re.finditer(r"log: (.*)", text))[1]
    assert Path(log).exists()


def test_an_error_in_a_users_own_module_shows_its_own_lines_once(tmp_path):
    args = ["env=matrix", "env.name=flaky_env", "+env.fault=raise", "mixer=vdn"]
    code, text = call(tmp_path / "r", *args)
    assert code == 1 and text.count("error:") == 1 and "Traceback" not in text, text
    shown = text[text.index("error:") :]
    assert shown.startswith("error: RuntimeError: the simulator says no\n  File ") and "flaky_env.py" in shown, text
    assert 'raise RuntimeError("the simulator says no")' in shown and "/qllm_exp/" not in shown, text
    (run,) = runs(tmp_path / "r")
    log = (run / "log.txt").read_text()
    assert (
        log.count("Traceback") == 1 and "/training/rollout.py" in log and f"The whole traceback: {run}/log.txt" in shown
    )
    status = json.loads((run / "status.json").read_text())
    assert re.fullmatch(r"RuntimeError: the simulator says no \(.*flaky_env\.py, line \d+\)", status["error"])


@pytest.mark.parametrize("command", [["-m", "seed=0-1"], []], ids=["sweep", "run"])
def test_an_error_of_a_users_own_module_before_anything_starts_is_shown_in_the_same_way(tmp_path, command):
    (tmp_path / "own_check.py").write_text(
        "from qllm_exp.envs.matrix import *\nfrom qllm_exp.envs.matrix import Config\n\n\n"
        "def check(config):\n    return config.no_such_option\n"
    )
    code, text = call(
        tmp_path / "r", *command, "env=matrix", "env.name=own_check", "mixer=vdn", PYTHONPATH=str(tmp_path)
    )
    assert code == 2 and not (tmp_path / "r").exists() and "Traceback" not in text, text
    assert text.startswith("error: AttributeError: ") and 'own_check.py", line 6, in check' in text, text


def test_a_run_that_is_killed_while_it_resumes_is_where_its_checkpoint_is(tmp_path):
    args = ["mixer=vdn", "env=matrix", "env.num_envs=16", "train.total_steps=4000000", "train.checkpoint.every_s=0"]
    process = start(tmp_path / "r", *args)
    deadline = time.monotonic() + 60
    while not last_checkpoint(tmp_path / "r"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(6)  # until a heartbeat has written its step
    process.kill()
    process.wait()
    (run,) = runs(tmp_path / "r")
    process = start(tmp_path / "r", *args)
    while (status := json.loads((run / "status.json").read_text()))["pid"] != process.pid:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert status["state"] == "running" and 0 < status["env_step"] == status["checkpoint_step"], status


def test_killed_at_random_moments_and_started_again_gives_the_same_numbers(tmp_path):
    args = [
        *("mixer=qmix", "env=matrix", "env.name=flaky_env", "env.num_envs=16", "train.batch_episodes=4"),
        *("train.total_steps=25600", "train.checkpoint.every_s=0", "train.checkpoint.max_share=1"),
    ]
    code, text = call(tmp_path / "whole", *args)
    assert code == 0, text
    rng = random.Random(0)
    for _ in range(5):
        process = start(tmp_path / "killed", *args, FLAKY_ENV_PAUSE="0.02")  # half a second per rollout, of 64
        before = last_checkpoint(tmp_path / "killed")
        deadline = time.monotonic() + 60
        while last_checkpoint(tmp_path / "killed") == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "the run must be long enough to be killed in the middle"
        process.kill()
        process.wait()
    code, text = call(tmp_path / "killed", *args)
    assert code == 0 and "resuming from the checkpoint" in text, text
    (whole,), (killed,) = runs(tmp_path / "whole"), runs(tmp_path / "killed")
    assert rows(whole) == rows(killed)
    expected, result = (json.loads((run / "result.json").read_text()) for run in (whole, killed))
    assert all(
        result[key] == expected[key] for key in ("final_return", "absolute_return", "env_steps", "episodes", "updates")
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_at_a_checkpoint(tmp_path, number):
    args = ["mixer=vdn", "env=matrix", "train.total_steps=400000"]
    process = start(tmp_path / "r", *args)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("r/*/metrics.jsonl")) or not next(tmp_path.glob("r/*/metrics.jsonl")).stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, text = process.communicate(60)
    assert process.wait() == 3 and "checkpoint" in text, text
    (run,) = runs(tmp_path / "r")
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert (run / "checkpoint/state.pt").exists()


def test_a_running_run_is_not_started_twice(tmp_path):
    args = ["mixer=vdn", "env=matrix", "train.total_steps=4000000"]
    first = start(tmp_path / "r", *args)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("r/*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        code, text = call(tmp_path / "r", *args)
        assert code == 1 and f"is already being run by process {first.pid}" in text
    finally:
        first.kill()
        first.wait()


def test_a_run_that_diverges_is_a_failed_run(tmp_path):
    for _ in range(2):  # the second time it resumes from its checkpoint, and fails again
        code, text = call(
            tmp_path / "r", "env=matrix", "mixer=vdn", "train.learning_rate=1e30", "train.batch_episodes=2"
        )
        assert code == 1 and "Training diverged: at step" in text and "Traceback" not in text, text
        (run,) = (tmp_path / "r").iterdir()
        assert json.loads((run / "status.json").read_text())["state"] == "failed" and not (run / "result.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "seed=0-1", "--dryrun"], "--dryrun is not an option of this command. Did you mean '--dry-run'?"),
        (["--seed", "3"], "An option of a run is written without dashes: seed=VALUE"),
        (["--config-name", "mine"], "--config-name mine: there is no mine.yaml in a folder of --config-dir"),
        (
            ["statsu"],
            "'statsu' is not a command. Did you mean 'status'? Commands: results, tfcaf, check, status, watch,",
        ),
        (["env=lbff"], "env=lbff is unknown. Did you mean 'lbf'?"),
        (["sweep.tags=[${env.nam}]"], "error: sweep.tags[0]: Interpolation key 'env.nam' not found. A reference names"),
        (["-m", "sweep.tags=[${env.nam}]"], "error: sweep.tags[0]: Interpolation key 'env.nam' not found. A reference"),
        (["mixer=qmx"], "mixer=qmx is unknown. Did you mean 'qmix'?"),
        (["env.task=9x9"], "env.task"),
        (["env=matrix", "env.task=climbin"], "Did you mean 'climbing'?"),
        (["env=mpe", "env.task=simple_spred"], "Did you mean 'simple_spread'?"),
        (["env=pettingzoo", "env.task=mpe2.simple_sprad_v3"], "mpe2.simple_sprad_v3"),
        (["train.learningrate=1"], "Unknown key 'train.learningrate'. Did you mean 'train.learning_rate'?"),
        (
            ["llm=openai", "llm.api_key=sk-1"],
            "'llm.api_key' is not an option: API keys are read from environment variables only",
        ),
        (["train.gamma=1.2"], "train.gamma=1.2 is out of bounds"),
        (["seed=5-2"], "the range 5-2 runs backwards. Write seed=2-5"),
        (["-m", "seed=5-2"], "the range 5-2 runs backwards"),
        (["seed=0-2"], "Add -m"),
        (["device=cuda:99"], "device=cuda:99"),
        (["mixer.file=nowhere.json"], "nowhere.json"),
        (
            ["env=matrix", f"mixer.file={LBF_FUNCTION}"],
            "is for 2 agents and a state of 14 columns, but env matrix/climbing has 2 agents",
        ),
        (["env=mpe", "env.options.n_agents=5"], "is for 3 agents"),
        (["algorithm.name=picky_algorithm", "mixer=vdn"], "algorithm=picky_algorithm does not accept mixer=vdn"),
        (
            ["-m", "env=mpe", "mixer=vdn", "env.options.n_agentz=2", "seed=0-1"],
            "2 of the 2 runs of this sweep cannot start",
        ),
        (["-m", "env=lbf,matrix", "env.task=climbing", "mixer=vdn"], "1 of the 2 runs of this sweep cannot start"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, args, message):
    code, text = call(tmp_path / "r", *args, tiny=False)
    assert code == 2 and message in text and "Traceback" not in text, text
    assert text.count("error:") == 1 and not (tmp_path / "r").exists()


def test_an_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, text = call(tmp_path / "file", "mixer=vdn")
    assert code == 2 and "Cannot write the run directory" in text and "dir=" in text and "Traceback" not in text


def test_a_full_disk_is_one_clear_error_and_the_run_resumes_once_there_is_space(tmp_path):
    args = ["mixer=vdn", "env=matrix"]
    code, text = call(tmp_path / "r", *args)
    assert code == 0, text
    (run,) = runs(tmp_path / "r")
    whole = rows(run)
    (run / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    code, text = call(tmp_path / "r", *args)
    assert code == 1 and "No space left on device" in text and "Traceback" not in text, text
    (run / "metrics.jsonl").unlink()
    code, text = call(tmp_path / "r", *args)
    assert code == 0 and rows(run) == whole


def test_a_run_leaves_the_files_that_the_readme_and_the_reference_list(tmp_path):
    root = HERE.parents[1]
    sentence = re.search(r"A run leaves (.+?)\. The plan of a sweep", (root / "README.md").read_text(), re.DOTALL)
    listed = set(re.findall(r"`([a-z]+\.[a-z]+)`", sentence[1]))
    page = (root / "docs" / "pages" / "reference" / "run-directory.md").read_text()
    table = page.partition("## A run\n")[2].partition("\n###")[0]
    described = set(
        re.findall(r"`([\w./]+)`", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    for mode, without in (([], {"console.txt"}), (["-m"], {"table.md", "curves.png"})):
        folder = tmp_path / f"runs{len(mode)}"
        code, text = call(
            folder, *mode, "env=matrix", "mixer=tfcaf,vdn" if mode else "mixer=tfcaf", "train.total_steps=500"
        )
        assert code == 0, text
        for run in folder.glob("matrix_*"):
            function = set() if "_tfcaf_" in run.name else {"tfcaf.json"}
            left = {path.name for path in run.iterdir()}
            assert left - {".lock"} == listed - without - function
            assert left <= described
