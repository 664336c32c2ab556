"""Launchers that a record or a command describes, and the end of a command: it counts its own runs."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep import slurm
from qllm_exp.sweep.launch import conclude, make_launcher, restart
from qllm_exp.sweep.launcher import Work
from qllm_exp.sweep.local import Local
from qllm_exp.sweep.pool import RunOutcome
from qllm_exp.sweep.slurm import Slurm
from qllm_exp.sweep.slurm_task import Pack


@pytest.fixture
def commands(tmp_path: Path) -> tuple[Sweep, list[RunDirectory]]:
    """A sweep to which a command with two failures has added runs, and the runs of a second command, one of which failed."""
    earlier = [
        make_run(tmp_path, run_config("vdn", 0), 0.5),
        make_unfinished_run(tmp_path, run_config("vdn", 1), "failed", "no"),
        make_unfinished_run(tmp_path, run_config("vdn", 2), "interrupted"),
    ]
    later = [
        make_run(tmp_path, run_config("vdn", 3), 0.6),
        make_unfinished_run(tmp_path, run_config("vdn", 4), "failed", "no"),
    ]
    Sweep.create(tmp_path / "sweep", [path.name for path in earlier], {"name": "local"}, 2, "first")
    sweep = Sweep.create(tmp_path / "sweep", [path.name for path in later], {"name": "local"}, 1, "second")
    return sweep, [RunDirectory(path) for path in later]


def text_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_failures_and_footnotes_count_the_runs_of_this_command(
    commands: tuple[Sweep, list[RunDirectory]], caplog: pytest.LogCaptureFixture
) -> None:
    sweep, directories = commands
    failures = sweep.failure_limit()
    failures.mark(directories[1].path.name)
    with caplog.at_level(logging.INFO, "qllm_exp"):
        conclude(sweep, directories, [RunOutcome(directories[1], "no", failed=True)], failures, waited=True)
    text, table = text_of(caplog), (sweep.path / "table.md").read_text()
    assert "1 of 2 runs failed:" in text and "not started" not in text
    assert "Missing: vdn on lbf/8x8-2p-2f-coop-2s: 1 failed (s4)." in table
    assert "2 runs of earlier commands of this sweep without a result" in table and "s1" not in table.split("From")[0]
    assert "(n=2)" in table, "the comparison has the finished runs of all commands"


def test_the_comparison_is_printed_once_the_runs_of_this_command_are_finished(
    commands: tuple[Sweep, list[RunDirectory]], caplog: pytest.LogCaptureFixture
) -> None:
    sweep, directories = commands
    with caplog.at_level(logging.INFO, "qllm_exp"):
        conclude(sweep, directories, [], sweep.failure_limit(), waited=False)
        assert text_of(caplog) == "", "submitted, not finished"
        conclude(sweep, directories[:1], [], sweep.failure_limit(), waited=False)
    assert "(n=2)" in text_of(caplog)


def test_a_command_counts_its_failures_from_zero(commands: tuple[Sweep, list[RunDirectory]]) -> None:
    sweep, _ = commands
    first, second = sweep.failure_limit(), sweep.failure_limit()
    first.mark("a")
    assert not first.may_start() and second.may_start(), "of one that runs at the same time"
    assert sweep.failure_limit().may_start()
    unlimited = Sweep.create(sweep.path, [], {"name": "local"}, 0, "third").failure_limit()
    unlimited.mark("a")
    assert unlimited.may_start() and not unlimited.folder.exists()


def test_a_job_keeps_the_limit_of_its_own_command(
    commands: tuple[Sweep, list[RunDirectory]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, directories = commands
    monkeypatch.setattr(slurm, "_run_sbatch", lambda folder, environment: ("7", []))
    failures = sweep.failure_limit()
    statuses = {directory.path: directory.status() for directory in directories}
    Slurm(runs_per_job=2).start(sweep, Work(directories[1:], failures, statuses=statuses))
    (submission,) = sweep.path.glob("jobs/*/submission.json")
    Sweep.create(sweep.path, ["other"], {"name": "slurm"}, 0, "a later command, without a limit")
    pack = Pack(str(sweep.path), [directories[1].path.name], **json.loads(submission.read_text())["pack"])
    assert (sweep.path / pack.failures, pack.max_failures) == (failures.folder, 1)


def test_retry_counts_the_runs_that_it_starts(
    commands: tuple[Sweep, list[RunDirectory]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, directories = commands

    def start(launcher: Local, sweep: Sweep, work: Work) -> Sequence[RunOutcome]:
        return [RunOutcome(directory, "again", failed=True) for directory in work.directories]

    monkeypatch.setattr(Local, "start", start)
    with caplog.at_level(logging.INFO, "qllm_exp"):
        assert restart(sweep, directories[1:], Local()) == 1
    assert "1 of 1 runs failed:" in text_of(caplog)
    assert "1 failed (s4)" in (sweep.path / "table.md").read_text()


def test_a_launcher_is_made_from_its_record() -> None:
    launcher = make_launcher({"name": "slurm", "runs_per_job": 3, "time": "1:00:00"})
    assert isinstance(launcher, Slurm) and launcher.runs_per_job == 3
    assert make_launcher({"n_jobs": 2}).options() == {
        "name": "local",
        "n_jobs": 2,
        "runs_per_gpu": 0,
        "mps": False,
        "max_load": 0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "slurn"}, "launcher='slurn' is unknown. Did you mean 'slurm'?"),
        ({"name": "slurm", "run_per_job": 3}, "option='run_per_job' is unknown. Did you mean 'runs_per_job'?"),
        (
            {"name": "local", "mem_gb_per_run": 8},
            "launcher=local: option='mem_gb_per_run' is unknown. Allowed: n_jobs, runs_per_gpu, mps, max_load.",
        ),
    ],
)
def test_a_misspelt_option_is_followed_by_the_nearest(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_launcher(options)
    assert message in str(error.value)
