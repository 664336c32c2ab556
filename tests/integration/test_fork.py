"""Processes fork with a single thread and before autograd starts its threads: torch does not work in a later fork."""

import json
import os
import subprocess
import sys
from pathlib import Path

from qllm_exp.sweep.fork_server import ONE_THREAD

# Exits with 99 if the process forks with more than one thread, or after a backward pass. A build of torch without CUDA starts
# no threads for backward passes, so a later fork works there; with CUDA it does not.
FORK_GUARD = """
import os, sys
import torch
from torch.autograd import Variable

class Engine:
    used = False
    def __init__(self, engine):
        self.engine = engine
    def __getattr__(self, name):
        Engine.used |= name == "run_backward"
        return getattr(self.engine, name)

def before_fork():
    threads = len(os.listdir("/proc/self/task"))
    if Engine.used or threads > 1:
        os.write(2, f"fork with {threads} threads, backward pass before it: {Engine.used}".encode())
        os._exit(99)

Variable._execution_engine = Engine(Variable._execution_engine)
os.register_at_fork(before=before_fork)
"""
SOURCE = "def credit_assignment(agents_q, global_state):\n    return agents_q.mean(dim=1, keepdim=True)\n"


def run_guarded(code: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code with `text` as its input in a guarded process."""
    command = [sys.executable, "-c", FORK_GUARD + code]
    environment = os.environ | ONE_THREAD
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder, env=environment, timeout=240)


def test_the_guard_detects_a_fork_after_a_backward_pass(tmp_path: Path) -> None:
    code = "torch.ones(1, requires_grad=True).sum().backward()\nif os.fork() == 0: os._exit(0)"
    process = run_guarded(code, "", tmp_path)
    assert process.returncode == 99 and "backward pass before it: True" in process.stderr, process.stderr


def test_candidates_are_forked_from_a_process_that_has_started_no_thread(tmp_path: Path) -> None:
    request = {"sources": [SOURCE] * 2, "states": [[0.5]] * 7, "n_agents": 2, "timeout_s": 60, "memory": 1 << 30}
    process = run_guarded("from qllm_exp.generation.sandbox_child import main; main()", json.dumps(request), tmp_path)
    assert process.returncode == 0, process.stderr
    ready, *answers = [json.loads(line) for line in process.stdout.splitlines()]
    assert ready == {"ready": True} and len(answers) == 2
    assert all('"data"' in answer["record"] for answer in answers), process.stdout


def test_runs_are_forked_from_a_process_that_has_started_no_thread(tmp_path: Path) -> None:
    order = {"number": 0, "path": str(tmp_path), "gpu": "", "cores": None}
    process = run_guarded("from qllm_exp.sweep.fork_server import _serve; _serve()", json.dumps(order) + "\n", tmp_path)
    assert process.returncode == 0, process.stderr
