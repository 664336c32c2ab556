"""Processes of runs that start at once: forked from one that has imported what every run needs.

Python, torch and this package take two to three seconds to import, which is much for a run of a minute. `python -m
qllm_exp.sweep.fork_server` imports them once and forks a process for each line of JSON on its standard input; what it forks is
a process like any other, so that a crash takes only itself. It computes nothing itself, keeps to one thread and never touches a
GPU: a fork of such a process is safe. When its parent ends, its input ends, and so does it, and with it (by `PARENT`) the runs.
Signals that ask for an end, which a cluster sends to every process of a job, are for the runs and the parent: it outlives them
all, since only it hears how they ended.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from qllm_exp.experiment import BUSY, PARENT
from qllm_exp.runs.run_directory import RunDirectory

NOT_FOR_IT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Worker:
    """A run's process, much like `subprocess.Popen`."""

    def __init__(self, fork_server: "ForkServer", number: int) -> None:
        self._fork_server, self._number = fork_server, number

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs. BUSY when the fork_server is gone, so that nobody knows."""
        self._fork_server.listen(0.0)
        return self._code()

    @property
    def lost(self) -> bool:
        """Whether nobody will ever hear how it ended, though it may not have."""
        return not self._fork_server.alive and self._number not in self._fork_server.codes

    def wait(self) -> None:
        while self._code() is None:
            self._fork_server.listen(1.0)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _code(self) -> int | None:
        return BUSY if self.lost else self._fork_server.codes.get(self._number)

    def _signal(self, number: int) -> None:
        while self._number not in self._fork_server.pids and self._code() is None:
            self._fork_server.listen(1.0)
        if self._code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._fork_server.pids[self._number], number)


class ForkServer:
    """The parent's side: starts runs and hears how they ended."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}  # by the number of the child
        self.pids: dict[int, int] = {}
        self.alive = True
        self._count, self._heard = 0, b""
        command = [sys.executable, "-m", "qllm_exp.sweep.fork_server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD, start_new_session=True
        )

    def start(self, directory: RunDirectory, cores: frozenset[int] | None, gpu: str) -> Worker:
        """Start a run. Its console goes into its folder."""
        self._count += 1
        asked = {
            "number": self._count,
            "path": str(directory.path.absolute()),
            "gpu": gpu,
            "cores": sorted(cores or ()),
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.alive = False
        return Worker(self, self._count)

    def listen(self, seconds: float) -> None:
        """Hear what the fork_server says, waiting for so long at most."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while self.alive and select.select([handle], [], [], seconds)[0]:
            text = os.read(handle, 65536)
            self.alive = bool(text)
            *lines, self._heard = (self._heard + text).split(b"\n")
            for line in lines:
                said = json.loads(line)
                (self.codes if "code" in said else self.pids)[said["number"]] = said.get("code", said.get("pid"))
            seconds = 0.0

    def close(self) -> None:
        """End it. Runs that go on are asked to stop at a checkpoint."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self.alive = False


def _serve() -> None:
    """The fork_server's side: fork for each line read, and say how each child ended."""
    for number in NOT_FOR_IT:
        signal.signal(number, signal.SIG_IGN)
    _import_what_runs_need()
    orders, reports = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    children: dict[int, int] = {}  # pid to number
    text = b""

    def report(**said: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(reports, json.dumps(said).encode() + b"\n")

    while True:
        ready = select.select([orders, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
        if orders in ready:
            more = os.read(orders, 65536)
            if not more:
                return
            *lines, text = (text + more).split(b"\n")
            for line in lines:
                order = json.loads(line)
                signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_IT)  # until a child listens: none is lost
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for number in (*NOT_FOR_IT, signal.SIGCHLD):
                        signal.signal(number, signal.SIG_DFL)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_IT)
                    for handle in (orders, reports, wake, woken):
                        os.close(handle)
                    _run(order)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_IT)
                children[pid] = order["number"]
                report(number=order["number"], pid=pid)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                report(number=children.pop(pid), code=os.waitstatus_to_exitcode(status))


def _import_what_runs_need() -> None:
    import torch

    from qllm_exp.algorithms import q_learning  # noqa: F401
    from qllm_exp.config import schema  # noqa: F401
    from qllm_exp.credit import stored_function  # noqa: F401
    from qllm_exp.envs import lbf, matrix, mpe  # noqa: F401
    from qllm_exp.networks import gru_kernel  # noqa: F401
    from qllm_exp.runs import heartbeat, versions  # noqa: F401
    from qllm_exp.training import checkpoint, trainer  # noqa: F401

    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimiser imports torch's compiler


def _run(order: dict[str, Any]) -> None:
    """What a child does, and nothing after it."""
    code = 1
    try:
        os.setsid()
        os.environ[PARENT] = str(os.getppid())
        if order["gpu"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = order["gpu"]
        if order["cores"]:
            os.sched_setaffinity(0, order["cores"])
        directory = RunDirectory(Path(order["path"]))
        console = os.open(directory.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(console, 1)
        os.dup2(console, 2)
        os.close(console)
        from qllm_exp.experiment import main

        code = main([order["path"]])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
