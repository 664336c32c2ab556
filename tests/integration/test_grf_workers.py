"""The engine's worker process: its death and crash, a hung engine, death of the parent, Ctrl-C, and a clean exit."""

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
from qllm_exp.envs.grf.process import WorkerError

START = """
import sys, torch
from qllm_exp.envs import make_env
from qllm_exp.envs.grf import Config
env = make_env(Config(workers=2), 2, 0)
env.reset()
print(env.worker.pid, flush=True)
"""
# If these tests run as a background job of a shell, the processes that they start inherit that SIGINT is ignored.
LISTEN = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
STEP = "env.step(torch.zeros(2, 4, dtype=torch.long))\n"
LIMIT_S = 30.0  # a fraction of a second or two seconds on a quiet machine


def football(workers: int = 2) -> FootballEnv:
    env = make(GrfConfig(workers=workers), 3, 0, torch.device("cpu"))
    env.reset()
    return env


def actions(action: int = 0) -> torch.Tensor:
    return torch.full((3, 4), action)


def gone(pid: int, seconds: float = LIMIT_S) -> bool:
    """Wait for the process to end, not only to be reaped; whether it has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("signal_number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}")],
    ids=["killed", "crashed", "real-time"],
)
def test_a_worker_that_dies_is_named_with_the_signal(signal_number: int, name: str) -> None:
    env = football()
    pid = env.worker.pid
    os.kill(pid, signal_number)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=rf"football worker \(process {pid}\) was killed by {name}"):
        for _ in range(2):
            env.step(actions())
    assert time.monotonic() - start < LIMIT_S
    assert gone(pid)
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


@pytest.mark.parametrize("match", [0, 2])
def test_an_exception_in_a_match_is_reported_with_its_traceback(match: int) -> None:
    env = football()
    joint_actions = actions()
    joint_actions[match] = 99
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"(?s)football worker .* exit status 1.*Traceback.*IndexError"):
        env.step(joint_actions)
    assert time.monotonic() - start < LIMIT_S
    assert gone(env.worker.pid)


def test_a_hung_engine_is_stopped_with_its_environment() -> None:
    env = football()
    pid = env.worker.pid
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < LIMIT_S
    assert gone(pid)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_worker_loads_no_torch_and_has_the_threads_that_it_was_told(workers: int) -> None:
    env = football(workers)
    assert "libtorch" not in Path(f"/proc/{env.worker.pid}/maps").read_text()
    assert len(os.listdir(f"/proc/{env.worker.pid}/task")) == workers
    env.close()


def test_the_worker_exits_when_the_parent_is_killed() -> None:
    parent = subprocess.run(
        [sys.executable, "-c", START + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert parent.returncode == -signal.SIGKILL
    assert gone(int(parent.stdout))


def test_ctrl_c_interrupts_only_the_parent_and_the_worker_exits_silently() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", LISTEN + START + f"while True:\n    {STEP}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    try:
        _, errors = parent.communicate(timeout=30)
    finally:
        parent.kill()
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    assert gone(pid)


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
    assert gone(int(process.stdout.splitlines()[1]))
