"""The parent's side of the football worker: start it, send commands, detect its death, stop it.

The worker is started as a fresh interpreter (fork and exec, like 'spawn') and not forked: the parent has threads and may
hold a CUDA context, and neither survives a fork. Unlike multiprocessing's spawn, it does not import the main module
again, which would load torch into it. It is a process of its own because an engine that fails ends its process.

Actions and results are in one anonymous block of shared memory. It has no name that could be left behind, and the
kernel frees it with the last process that maps it. A command is one byte over a socket, and so is the reply. A worker
that dies closes its socket, so the parent stops waiting at once; the death of the parent stops the worker likewise.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import weakref
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qllm_exp.envs.grf import worker as worker_script
from qllm_exp.envs.grf.worker import ScenarioInfo, SharedArrays
from qllm_exp.utils.text import signal_name

_EXIT_TIMEOUT_S = 2.0  # time that a worker has to exit by itself
_LOG_TAIL = 2000  # characters of a dead worker's output to show


class WorkerError(RuntimeError):
    """The worker process died.

    Args:
        message: names the process and the cause.
        loading: the worker died before it had loaded the engine and the scenario.
    """

    def __init__(self, message: str, loading: bool) -> None:
        super().__init__(message)
        self.loading = loading


class WorkerProcess:
    """The worker process of one environment, and the memory shared with it.

    Args:
        num_envs: number of matches, N.
        threads: number of threads that play them, at least 1.
        scenario: name of the scenario, e.g. 'academy_3_vs_1_with_keeper'.
        goalkeeper: also control our goalkeeper.
        attackers: control only the last `attackers` field players; None: all.
        checkpoints: give checkpoint rewards in addition to those for goals.
        limit: steps after which an episode is truncated.

    Attributes:
        pid: process id.
        scenario_info: what the worker reports about the scenario.
        arrays: the memory shared with the worker.
        close: stops the worker; safe to call twice.

    Raises:
        WorkerError: the worker died; it is closed then. Also raised by `reset` and `step`.
    """

    def __init__(
        self,
        num_envs: int,
        threads: int,
        *,
        scenario: str,
        goalkeeper: bool,
        attackers: int | None,
        checkpoints: bool,
        limit: int,
    ) -> None:
        job = {
            "scenario": scenario,
            "goalkeeper": goalkeeper,
            "attackers": attackers,
            "checkpoints": checkpoints,
            "limit": limit,
            "num_envs": num_envs,
            "threads": threads,
        }
        self._loading = True
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _stop
        self._socket, worker_socket = socket.socketpair()
        memory, socket_fd = os.memfd_create("qllm_exp football"), worker_socket.fileno()
        # A thread per core plays matches: numpy's thread pools would only take memory.
        single_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            with worker_socket:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", worker_script.__file__, str(socket_fd), str(memory), json.dumps(job)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(socket_fd, memory),
                    env={**os.environ, **single_thread},
                )
            # Also called on garbage collection and at exit.
            self.close = weakref.finalize(self, _stop, self._process, self._socket, self._log)
            self.pid = self._process.pid
            self.scenario_info = self._read_scenario_info()
            self.arrays = SharedArrays(num_envs, len(self.scenario_info.agents), memory)
        finally:
            os.close(memory)

    def reset(self, seeds: NDArray[np.int64]) -> None:
        """Start an episode in every match.

        Args:
            seeds: [N] int64, the engine's seed of each match.
        """
        self.arrays.seeds[:] = seeds
        self.arrays.rewards[:] = 0.0
        self._run(b"r")

    def step(self, actions: NDArray[np.int64]) -> None:
        """Play one step in the matches whose episode has not ended; the others keep their observations.

        Args:
            actions: [N, n] int64, an action index per agent.
        """
        arrays = self.arrays
        arrays.actions[:] = actions
        arrays.rewards[:] = 0.0
        arrays.terminated[:] = arrays.truncated[:] = False
        self._run(b"s")

    def _run(self, command: bytes) -> None:
        """Let the worker execute a command: b"r" resets, b"s" steps. Closes it on any exception."""
        if not self.close.alive:
            raise RuntimeError("the football environment is closed. Build a new one with make_env")
        try:
            self._socket.sendall(command)
        except OSError as error:
            raise self._death() from error
        try:
            self._receive(1)
        except BaseException:
            # After an interrupt, the outstanding reply would be mistaken for that to the next command.
            self.close()
            raise

    def _read_scenario_info(self) -> ScenarioInfo:
        """Wait until the worker has loaded the scenario, and return what it reports."""
        line = b""
        try:
            while not line.endswith(b"\n"):
                line += self._receive(4096)
        except BaseException:
            self.close()
            raise
        self._loading = False
        return ScenarioInfo(**json.loads(line))

    def _receive(self, size: int) -> bytes:
        """Receive up to `size` bytes, at least one."""
        try:
            data = self._socket.recv(size)
        except OSError as error:
            raise self._death() from error
        if not data:
            raise self._death()
        return data

    def _death(self) -> WorkerError:
        """Wait for the process to end, close it, and describe its death."""
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        cause = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit status {code}"
        self._log.seek(0)
        output = self._log.read().decode(errors="replace").strip()[-_LOG_TAIL:]
        output_note = f"Its last output:\n{output}" if output else "It wrote no output."
        self.close()
        return WorkerError(f"the football worker (process {self.pid}) {cause}. {output_note}", self._loading)


def _stop(process: subprocess.Popen[bytes], connection: socket.socket, log: IO[bytes]) -> None:
    """Close the connection, which makes the worker exit, and wait until it has; kill it if it does not."""
    connection.close()
    try:
        process.wait(_EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
