"""MPS daemons of a pool, with a stand-in for NVIDIA's control program."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from programs import MPS_CONTROL, write_program

from qllm_exp.errors import UserError
from qllm_exp.sweep.mps import QUIT_S, mps_daemons
from qllm_exp.sweep.pool import Slot

SLOTS = [Slot(gpu=gpu) for gpu in ("3", "MIG-5a", "3", "MIG-5a")]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in on the path, and return the file of its calls; what it writes besides goes into `tmp_path`/tmp."""
    path = tmp_path / "calls"
    write_program(tmp_path / "bin", "nvidia-cuda-mps-control", MPS_CONTROL.format(calls=path), monkeypatch)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return path


def pids(slots: object) -> list[int]:
    """Process ids of the daemons of some slots."""
    assert isinstance(slots, list)
    return [int((Path(pipe) / "pid").read_text()) for pipe in dict.fromkeys(slot.mps_pipe for slot in slots)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def are_gone(daemons: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in daemons)


def test_each_gpu_has_a_daemon_while_the_pool_runs(calls: Path, tmp_path: Path) -> None:
    with mps_daemons(SLOTS, True) as slots:
        first, second = dict.fromkeys(slot.mps_pipe for slot in slots)
        assert calls.read_text().splitlines() == [f"start 3 {first}", f"start MIG-5a {second}"]
        assert [slot.mps_pipe for slot in slots] == [first, second] * 2
        # A daemon counts the GPUs that it sees from 0.
        assert [slot.gpu for slot in slots] == ["0", "MIG-5a"] * 2
        assert slots[0].environment == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_MPS_PIPE_DIRECTORY": first}
        assert len(f"{first}/control_lock".encode()) < 108 + len(str(tmp_path)), "a socket has a short path"
        daemons = pids(slots)
    quit = f"quit -t {QUIT_S}"
    assert calls.read_text().splitlines()[2:] == [f"{quit} 3 {first}", f"{quit} MIG-5a {second}"]
    assert are_gone(daemons) and not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(("slots", "is_wanted"), [([Slot()], True), (SLOTS, False)])
def test_without_need_no_daemon_starts(calls: Path, slots: list[Slot], is_wanted: bool) -> None:
    with mps_daemons(slots, is_wanted) as unchanged:
        assert unchanged is slots
    assert not calls.exists()


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = "mps=true: there is no nvidia-cuda-mps-control on .*Use hydra.launcher.mps=false, or put it on the PATH"
    with pytest.raises(UserError, match=message), mps_daemons(SLOTS, True):
        pass


def test_a_daemon_that_does_not_start_is_an_error_with_its_message(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPS_FAULT", "An instance of this daemon is already running")
    message = "for GPU 3 on .* failed: An instance of this daemon is already running"
    with pytest.raises(UserError, match=message), mps_daemons(SLOTS, True):
        pass
    assert not list((tmp_path / "tmp").iterdir())


POOL = """
import os, signal, sys, time
from qllm_exp.sweep.mps import mps_daemons
from qllm_exp.sweep.pool import Slot
with mps_daemons([Slot(gpu="3")], True) as slots:
    print(slots[0].mps_pipe, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_daemon_is_stopped_when_the_process_of_the_pool_is_killed(
    calls: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", POOL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        daemons = pids([Slot(mps_pipe=process.stdout.readline().strip())])
        assert not are_gone(daemons)
        process.send_signal(number)
        until(lambda: are_gone(daemons) and not list((tmp_path / "tmp").iterdir()))
    assert process.returncode != 0


def test_signals_to_every_process_of_a_job_leave_the_daemon(calls: Path) -> None:
    """Slurm sends them before the time limit, and runs then still go on to their checkpoints."""
    others = psutil.Process(os.getpid()).children()  # of earlier tests
    with mps_daemons([Slot(gpu="3")], True) as slots:
        daemons = pids(slots)
        (keeper,) = (child for child in psutil.Process(os.getpid()).children() if child not in others)
        for pid in (keeper.pid, *daemons):
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                os.kill(pid, number)
        time.sleep(0.3)
        assert keeper.is_running() and not are_gone(daemons)
    assert are_gone(daemons)
