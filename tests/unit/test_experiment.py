"""One run from its directory: resumed with other software, on a full disk, and without its directory."""

import errno
import json
import logging
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import run_config, run_outcome

from qllm_exp import experiment
from qllm_exp.config.compose import compose_run
from qllm_exp.errors import RunFailed
from qllm_exp.networks import gru_kernel
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.table import comparison
from qllm_exp.runs import versions
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.training.trainer import Interrupted

OPTIONS = (
    *("env=matrix", "mixer=qmix", "env.num_envs=4", "train.batch_episodes=4", "train.hidden=8"),
    *("train.total_steps=1200", "train.evaluation.every=400", "train.evaluation.episodes=4"),
    "train.evaluation.absolute_episodes=4",
)


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def new_run(folder: Path, *options: str) -> RunDirectory:
    directory = RunDirectory(folder / "run")
    directory.create(replace(compose_run([*OPTIONS, *options]), device="cpu"), None)
    return directory


def interrupt(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, cycles: int) -> None:
    """Train for some cycles of 100 environment steps, and stop at a checkpoint."""
    left = [cycles]

    def stop(request: Any) -> bool:
        left[0] -= 1
        return left[0] < 0

    with monkeypatch.context() as patch:
        patch.setattr(experiment._StopRequest, "__call__", stop)
        with pytest.raises(Interrupted):
            experiment.execute(RunDirectory(directory.path), show=False)


def record_of(directory: RunDirectory) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(directory.versions.read_text())
    return content


def lines_on_resuming(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "resumed with other" in record.getMessage()]


def test_a_run_that_is_resumed_without_the_kernel_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = new_run(tmp_path)
    interrupt(directory, monkeypatch, 5)
    kernel = gru_kernel.version()
    assert kernel.startswith("native ") and record_of(directory)["kernel"] == kernel
    assert "segments" not in record_of(directory)
    monkeypatch.setattr(gru_kernel.SOURCE, "_load", lambda: (None, "no C++ compiler"))
    with caplog.at_level(logging.WARNING):
        experiment.execute(directory, show=False)
    (line,) = lines_on_resuming(caplog)
    assert f"kernel {kernel} -> torch" in line and "after step 500 " in line and "\n" not in line
    assert line in directory.log.read_text()
    record = record_of(directory)
    assert [(part["env_step"], part["kernel"]) for part in record["segments"]] == [(0, kernel), (500, "torch")]
    sheet, _ = comparison(collect([tmp_path]))
    (note,) = [note for note in sheet.notes if "Resumed" in note]
    assert note.endswith(f"qmix on matrix/climbing: kernel {kernel} -> torch (s0 from step 500).")


def test_a_run_that_is_resumed_with_the_same_software_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    experiment.execute(whole, show=False)
    interrupt(parts, monkeypatch, 4)
    interrupt(parts, monkeypatch, 3)
    experiment.execute(parts, show=False)
    assert run_outcome(parts.path) == run_outcome(whole.path)
    assert "segments" not in record_of(parts) and lines_on_resuming(caplog) == []
    assert not [note for note in comparison(collect([parts.path]))[0].notes if "Resumed" in note]


def test_other_code_and_torch_are_named_and_never_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = new_run(tmp_path)
    interrupt(directory, monkeypatch, 5)
    now = versions.software()
    newer = {**now, "torch": "99.0", "source": "0" * 10, "commit": "f" * 40}
    monkeypatch.setattr(versions, "software", lambda: newer)
    interrupt(directory, monkeypatch, 0)  # without another checkpoint step: nothing of it is kept
    monkeypatch.setattr(versions, "software", lambda: now)
    interrupt(directory, monkeypatch, 2)
    assert "segments" not in record_of(directory), "the only part with newer software trained nothing"
    monkeypatch.setattr(versions, "software", lambda: newer)
    caplog.clear()
    experiment.execute(directory, show=False)
    (line,) = lines_on_resuming(caplog)
    assert f"torch {now['torch']} -> 99.0" in line and f"source {now['source']} -> 0000000000" in line
    assert "-> ffffffffff" in line and line.count("after step 700 ") == 1


def test_another_commit_with_the_same_files_is_logged_and_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = new_run(tmp_path)
    interrupt(directory, monkeypatch, 5)
    other = {**versions.software(), "commit": "f" * 40}
    monkeypatch.setattr(versions, "software", lambda: other)
    experiment.execute(directory, show=False)
    assert lines_on_resuming(caplog) == [] and "-> ffffffffff" in directory.log.read_text()
    assert not [note for note in comparison(collect([tmp_path]))[0].notes if "Resumed" in note]


def test_the_gpu_of_a_run_takes_the_place_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"name of {device}")
    run = new_run(tmp_path).read_config()
    on_gpu = experiment._versions(replace(run, device="cuda:1"))
    assert on_gpu["gpu"] == "name of cuda:1" and "kernel" not in on_gpu


def test_a_run_without_a_checkpoint_starts_a_record_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = new_run(tmp_path)
    directory.versions.write_text(json.dumps({"torch": "1.0", "kernel": "torch"}))  # killed before its first checkpoint
    experiment.execute(directory, show=False)
    assert record_of(directory)["torch"] == versions.software()["torch"] and lines_on_resuming(caplog) == []


def test_a_module_of_the_users_own_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = tmp_path / "own_matrix_of_a_test.py"
    module.write_text(
        "from dataclasses import dataclass\n"
        "from qllm_exp.envs.matrix import Config as MatrixConfig, check, make, tasks\n"
        "@dataclass\nclass Config(MatrixConfig):\n    name: str = 'own_matrix_of_a_test'\n"
        "def versions(config):\n    return {'simulator': open(__file__ + '.version').read(), 'missing': ''}\n"
    )
    Path(f"{module}.version").write_text("1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = new_run(tmp_path, f"env.name={module.stem}")
    interrupt(directory, monkeypatch, 5)
    assert record_of(directory)["simulator"] == "1.0" and "missing" not in record_of(directory)
    with open(module, "a") as file:
        file.write("# changed\n")
    Path(f"{module}.version").write_text("1.1")
    experiment.execute(directory, show=False)
    (line,) = lines_on_resuming(caplog)
    assert f"module {module.stem} " in line and "simulator 1.0 -> 1.1" in line


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(run_config("vdn"), None)
    return directory


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_full_disk_has_an_exit_code_and_a_line_of_its_own(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def train(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(experiment, "_train", train)
    assert experiment.main([str(directory.path)]) == experiment.DISK_FULL
    error = capsys.readouterr().err
    assert error.startswith(f"error: Cannot write to {directory.path}: {os.strerror(number)}. Free some space")
    assert len(error.splitlines()) == 1 and directory.status()["state"] == "failed"


def test_a_log_that_cannot_be_written_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """logging would print a traceback for each line; the run itself fails on the full disk, and reports it once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with experiment._log_to(tmp_path / "log.txt"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            logging.getLogger("qllm_exp").error("a line that is longer than the disk")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == ""


def test_a_run_whose_directory_was_removed_fails_instead_of_writing_a_checkpoint(directory: RunDirectory) -> None:
    directory.lock()
    stop = experiment._StopRequest(directory)
    try:
        stop.request()  # by the heartbeat, which notices it
        assert stop()
        shutil.rmtree(directory.path)
        with pytest.raises(RunFailed, match="The run directory was removed"):
            stop()
    finally:
        stop.restore()
        directory.close()


def test_any_error_of_a_run_whose_directory_was_removed_is_explained_by_that(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*arguments: object) -> None:
        shutil.rmtree(directory.path)
        other = RunDirectory(directory.path)  # of a run that has the same name
        other.create(run_config("vdn"), None)
        other.lock()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(experiment, "_train", train)
    assert experiment.main([str(directory.path)]) == experiment.FAILED
    assert capsys.readouterr().err.startswith("error: The run directory was removed while the run was in progress.")
    assert RunDirectory(directory.path).status() == {}, "the other run's status is its own"
