"""The command `status`: exit codes, and the JSON for programs."""

import json
from pathlib import Path

import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.cluster import cancel, logs, retry
from qllm_exp.cluster.status import main


def test_the_exit_code_is_1_for_failed_and_dead_runs_and_3_for_unfinished_ones(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("vdn"), 0.5)
    assert main([str(tmp_path)]) == 0
    make_unfinished_run(tmp_path, run_config("vdn", 1), "interrupted")
    assert main([str(tmp_path)]) == 3
    for seed, state in ((2, "running"), (3, "failed")):  # no process has the running one, so it is dead
        run = make_unfinished_run(tmp_path / state, run_config("vdn", seed), state)
        assert main([str(run)]) == 1
        assert main([str(tmp_path), str(run)]) == 1, "of several folders the worst counts"


def test_json_has_the_reason_of_each_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_unfinished_run(tmp_path, run_config("vdn"), "failed", "no food is left")
    assert main(["--json", str(tmp_path), "--all"]) == 1
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["folder"], status["counts"]) == (str(tmp_path), {"failed": 1})
    assert status["runs"] == [
        {
            "name": run.name,
            "state": "failed",
            "reason": "no food is left",
            "job": None,
            "env_step": None,
            "total_steps": None,
            "return": None,
        }
    ]


def test_folders_stand_on_both_sides_of_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (make_run(tmp_path, run_config("vdn", seed), 0.5) for seed in range(2))
    assert main([str(first), "--json", str(second)]) == 0
    assert [status["folder"] for status in json.loads(capsys.readouterr().out)] == [str(first), str(second)]


def test_a_misspelt_name_is_followed_by_the_nearest_of_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_unfinished_run(tmp_path / "runs", run_config("vdn"), "interrupted")
    folder = tmp_path / "runs"
    commands = [
        (main([str(tmp_path / "run")]), folder),
        (logs.main([str(run)[:-4]]), run),
        (cancel.main([str(folder), run.name[:-4]]), run.name),
        (retry.main([str(folder), run.name[:-4]]), run.name),
    ]
    lines = capsys.readouterr().err.splitlines()
    for (code, nearest), line in zip(commands, lines, strict=True):
        assert code == 2 and f"Did you mean '{nearest}'?" in line, line
