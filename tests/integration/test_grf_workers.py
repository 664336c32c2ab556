"""The engine's worker processes: death of a worker, death of the parent, Ctrl-C, and a clean exit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qllm_exp.envs.grf.env import Config as GrfConfig
from qllm_exp.envs.grf.env import FootballEnv, make
from qllm_exp.envs.grf.pool import WorkerError

START = """
import sys, torch
from qllm_exp.envs import make_env
from qllm_exp.envs.grf import Config
env = make_env(Config(workers=2), 2, 0)
env.reset()
print(*[worker.pid for worker in env.pool.workers], flush=True)
"""
# If these tests run as a background job of a shell, the processes that they start inherit that SIGINT is ignored.
LISTEN = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
STEP = "env.step(torch.zeros(2, 4, dtype=torch.long))\n"


def two_workers() -> FootballEnv:
    env = make(GrfConfig(workers=2), 3, 0, torch.device("cpu"))
    env.reset()
    return env


def actions(action: int = 0) -> torch.Tensor:
    return torch.full((3, 4), action)


def alive(pid: int) -> bool:
    """Whether the process is running, not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids: list[int], seconds: float = 5.0) -> bool:
    """Wait for the processes to end; whether all of them have."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_a_killed_worker_is_named_with_its_matches_and_the_signal() -> None:
    env = two_workers()
    pids = [worker.pid for worker in env.pool.workers]
    os.kill(pids[0], signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker 0 \(process \d+, matches 0, 2\) was killed by SIGKILL"):
        for _ in range(2):
            env.step(actions())
    assert time.monotonic() - start < 2.0
    assert all_gone(pids)
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


def test_an_exception_in_a_worker_is_reported_with_its_traceback() -> None:
    env = two_workers()
    with pytest.raises(WorkerError, match=r"(?s)worker 0 .*matches 0, 2.*Traceback.*IndexError"):
        env.step(actions(99))


def test_workers_load_no_torch_and_use_one_thread() -> None:
    env = two_workers()
    for worker in env.pool.workers:
        assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()
        assert len(os.listdir(f"/proc/{worker.pid}/task")) == 1
    env.close()


def test_workers_exit_when_the_parent_is_killed() -> None:
    parent = subprocess.run(
        [sys.executable, "-c", START + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert parent.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in parent.stdout.split()]
    assert len(pids) == 2 and all_gone(pids)


def test_ctrl_c_interrupts_only_the_parent_and_the_workers_exit_silently() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", LISTEN + START + f"while True:\n    {STEP}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    try:
        _, errors = parent.communicate(timeout=30)
    finally:
        parent.kill()
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    assert len(pids) == 2 and all_gone(pids)


def test_exit_is_clean() -> None:
    code = """
import gc, os, pathlib
children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
env.close()
env.close()
assert children.read_text() == ""  # no process, and no zombie
env = make_env(Config(workers=2), 2, 0)
del env
gc.collect()
assert children.read_text() == ""
env = make_env(Config(workers=2), 2, 0)
env.reset()
print(children.read_text())
"""
    process = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", START + STEP + code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0 and process.stderr == ""
    at_exit = [int(pid) for pid in process.stdout.splitlines()[1].split()]
    assert len(at_exit) == 2 and all_gone(at_exit)
