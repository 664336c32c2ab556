"""Fork server: runs start instantly by forking from a process that has imported what every run needs.

Python, torch and this package take two to three seconds to import, which is long for a run of a minute. `python -m
qllm_exp.sweep.fork_server` imports them once, then forks a worker for each line of JSON on its standard input. A worker is an
ordinary process: a crash ends only its own run. The fork server computes nothing, has a single thread and never uses a GPU, so
forking it is safe.

When the parent of the fork server ends, the input of the fork server ends, then the fork server, and then (see `PARENT`) the
workers. A cluster sends signals to every process of a job. The fork server ignores them: they are meant for the workers and the
parent, and only the fork server learns how the workers ended.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qllm_exp.experiment import BUSY, DISK_FULL, PARENT
from qllm_exp.experiment import FAILED as EXIT_FAILED
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.utils.files import is_disk_full
from qllm_exp.utils.start_time import rest_collector, wake_collector

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Worker:
    """The process of a run, similar to `subprocess.Popen`.

    Args:
        fork_server: the fork server that started it.
        number: its number there.
    """

    def __init__(self, fork_server: "ForkServer", number: int) -> None:
        self._fork_server = fork_server
        self._number = number

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the worker runs; BUSY if it is lost."""
        self._fork_server.read_reports(0.0)
        return self._exit_code()

    @property
    def pid(self) -> int | None:
        """Its process id; None until the fork server has reported it."""
        return self._fork_server.pids.get(self._number)

    @property
    def lost(self) -> bool:
        """Whether the fork server ended first. The worker may still run, but its exit code will never be known."""
        return not self._fork_server.alive and self._number not in self._fork_server.exit_codes

    def wait(self) -> None:
        """Return once the worker has ended, or is lost."""
        while self._exit_code() is None:
            self._fork_server.read_reports(1.0)

    def terminate(self) -> None:
        """Send SIGTERM: the run stops at a checkpoint."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL: the run ends at once."""
        self._signal(signal.SIGKILL)

    def _exit_code(self) -> int | None:
        return BUSY if self.lost else self._fork_server.exit_codes.get(self._number)

    def _signal(self, signal_number: int) -> None:
        while self._number not in self._fork_server.pids and self._exit_code() is None:
            self._fork_server.read_reports(1.0)
        if self._exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._fork_server.pids[self._number], signal_number)


class ForkServer:
    """The parent's side: starts workers and receives their exit codes.

    Attributes:
        exit_codes: exit code of each worker that has ended, by number.
        pids: process id of each worker, by number.
        alive: False once the fork server has ended.
    """

    def __init__(self) -> None:
        self.exit_codes: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.alive = True
        self._worker_count = 0
        self._partial_line = b""
        command = [sys.executable, "-m", "qllm_exp.sweep.fork_server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD, start_new_session=True
        )

    def start(self, directory: RunDirectory, cores: frozenset[int] | None, environment: Mapping[str, str]) -> Worker:
        """Start a run. Its output goes to console.txt in its directory.

        Args:
            directory: the run's directory.
            cores: CPU cores that the run may use; None: all.
            environment: environment variables that the run gets besides those of this process.
        """
        self._worker_count += 1
        request = {
            "number": self._worker_count,
            "path": str(directory.path.absolute()),
            "environment": dict(environment),
            "cores": sorted(cores or ()),
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.alive = False
        return Worker(self, self._worker_count)

    def read_reports(self, seconds: float) -> None:
        """Read what the fork server reports, waiting `seconds` at most for a first report."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while self.alive and select.select([handle], [], [], seconds)[0]:
            data = os.read(handle, 65536)
            self.alive = bool(data)
            *lines, self._partial_line = (self._partial_line + data).split(b"\n")
            for line in lines:
                report = json.loads(line)
                if "code" in report:
                    self.exit_codes[report["number"]] = report["code"]
                else:
                    self.pids[report["number"]] = report["pid"]
            seconds = 0.0

    def close(self) -> None:
        """End the fork server. Runs in progress are asked to stop at a checkpoint."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self.alive = False


def _serve() -> None:
    """The fork server's side: fork a worker for each request, and report its process id and its exit code."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _import_what_runs_need()
    requests, reports = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    # A signal that arrives during select must not be missed: its handler writes into a pipe that select reads.
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    workers: dict[int, int] = {}  # process id to number
    partial_line = b""
    while True:
        ready = select.select([requests, wakeup_read], [], [])[0]
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
        if requests in ready:
            data = os.read(requests, 65536)
            if not data:
                return
            *lines, partial_line = (partial_line + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = _fork_worker(request, (requests, reports, wakeup_read, wakeup_write))
                workers[pid] = request["number"]
                _report(reports, number=request["number"], pid=pid)
        for pid in list(workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _report(reports, number=workers.pop(pid), code=os.waitstatus_to_exitcode(status))


def _fork_worker(request: dict[str, Any], handles: tuple[int, ...]) -> int:
    """Fork a worker, and return its process id.

    Args:
        request: a line that `ForkServer.start` wrote.
        handles: open files of the fork server, which the worker closes.
    """
    # Signals stay blocked until the worker handles them, so that none is lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for number in (*IGNORED_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
        for handle in handles:
            os.close(handle)
        _run_worker(request)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    return pid


def _report(handle: int, **fields: int) -> None:
    """Write a line of JSON to the parent, if it still reads."""
    with contextlib.suppress(BrokenPipeError):
        os.write(handle, json.dumps(fields).encode() + b"\n")


def _import_what_runs_need() -> None:
    rest_collector()
    import torch

    from qllm_exp.algorithms import q_learning  # noqa: F401
    from qllm_exp.config import schema  # noqa: F401
    from qllm_exp.credit import stored_function  # noqa: F401
    from qllm_exp.envs import lbf, matrix, mpe, smax  # noqa: F401
    from qllm_exp.networks import gru_kernel  # noqa: F401
    from qllm_exp.runs import heartbeat  # noqa: F401
    from qllm_exp.runs.versions import software
    from qllm_exp.training import checkpoint, trainer  # noqa: F401

    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimiser imports torch's compiler
    software()  # a worker uses the files as they were imported here, whatever is edited later
    wake_collector()


def _run_worker(request: dict[str, Any]) -> None:
    """Run the requested run in this process, then exit."""
    code = EXIT_FAILED
    try:
        os.setsid()
        os.environ[PARENT] = str(os.getppid())
        os.environ.update(request["environment"])
        if request["cores"]:
            os.sched_setaffinity(0, request["cores"])
        directory = RunDirectory(Path(request["path"]))
        console = os.open(directory.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(console, 1)
        os.dup2(console, 2)
        os.close(console)
        from qllm_exp.experiment import main

        code = main([request["path"]])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_FAILED
    except OSError as error:  # the console output cannot be written: the pool says why the run failed
        code = DISK_FULL if is_disk_full(error) else EXIT_FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
