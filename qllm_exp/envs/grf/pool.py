"""The parent's side of the football workers: start them, send commands, detect their death, stop them.

Workers are started as fresh interpreters (fork and exec, like 'spawn') and not forked: the parent has threads and may
hold a CUDA context, and neither survives a fork. Unlike multiprocessing's spawn, they do not import the main module
again, which would load torch into each of them.

Actions and results are in one anonymous block of shared memory. It has no name that could be left behind, and the
kernel frees it with the last process that maps it. A command is one byte over a socket, and so is the reply. A worker
that dies closes its socket, so the parent stops waiting at once; the death of the parent stops the workers likewise.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from qllm_exp.envs.grf import worker as worker_script
from qllm_exp.envs.grf.worker import ScenarioInfo, SharedArrays

_EXIT_TIMEOUT_S = 2.0  # time that a worker has to exit by itself
_LOG_TAIL = 2000  # characters of a dead worker's output to show


class WorkerError(RuntimeError):
    """A worker process died.

    Args:
        message: names the worker, its matches and the cause.
        loading: the worker died before it had loaded the engine and the scenario.
    """

    def __init__(self, message: str, loading: bool) -> None:
        super().__init__(message)
        self.loading = loading


class Worker:
    """One worker process and its matches.

    Args:
        index: number of the worker, for error messages.
        matches: indices of the matches that it plays.
        job: what to play, see `worker.serve`.
        memory: file descriptor of the shared memory.
    """

    def __init__(self, index: int, matches: list[int], job: dict[str, Any], memory: int) -> None:
        self.index, self.matches = index, matches
        self._loading = True
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._socket, worker_socket = socket.socketpair()
        socket_fd = worker_socket.fileno()
        # One core per worker: numpy's thread pools would only take memory.
        single_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with worker_socket:
            self._process = subprocess.Popen(
                [sys.executable, "-P", worker_script.__file__, str(socket_fd), str(memory), json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(socket_fd, memory),
                env={**os.environ, **single_thread},
            )

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def read_scenario_info(self) -> ScenarioInfo:
        """Wait until the worker has loaded the scenario, and return what it reports. WorkerError if it died."""
        line = b""
        while not line.endswith(b"\n"):
            line += self._receive(4096)
        self._loading = False
        return ScenarioInfo(**json.loads(line))

    def send(self, command: bytes) -> None:
        """Send a command: b"r" resets, b"s" steps. WorkerError if the worker died."""
        try:
            self._socket.sendall(command)
        except OSError as error:
            raise self._death() from error

    def wait_for_reply(self) -> None:
        """Wait until the last command is done. WorkerError if the worker died."""
        self._receive(1)

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
        """Wait for the process to end, and describe its death."""
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        self._log.seek(0)
        output = self._log.read().decode(errors="replace").strip()[-_LOG_TAIL:]
        matches = ", ".join(map(str, self.matches))
        worker = f"football worker {self.index} (process {self.pid}, matches {matches})"
        output_note = f"Its last output:\n{output}" if output else "It wrote no output."
        return WorkerError(f"{worker} {cause}. {output_note}", self._loading)

    def disconnect(self) -> None:
        """Close the connection, which makes the worker exit."""
        self._socket.close()

    def stop(self) -> None:
        """Wait until the process has exited; kill it if it does not."""
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class WorkerPool:
    """All workers of one environment. Match i is played by worker i modulo the number of workers.

    Args:
        num_envs: number of matches, N.
        workers: number of processes, at least 1; no more than one per match are started.
        scenario: name of the scenario, e.g. 'academy_3_vs_1_with_keeper'.
        goalkeeper: also control our goalkeeper.
        attackers: control only the last `attackers` field players; None: all.
        checkpoints: give checkpoint rewards in addition to those for goals.
        limit: steps after which an episode is truncated.

    Attributes:
        workers: the worker processes.
        scenario_info: what the workers report about the scenario.
        arrays: the memory shared with the workers.
        close: stops all workers; safe to call twice.

    Raises:
        WorkerError: a worker died; the pool is closed then. Also raised by `reset` and `step`.
    """

    def __init__(
        self,
        num_envs: int,
        workers: int,
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
        }
        self.workers: list[Worker] = []
        self.close = weakref.finalize(self, _stop, self.workers)  # also called on garbage collection and at exit
        memory = os.memfd_create("qllm_exp football")
        try:
            count = min(workers, num_envs)
            for index in range(count):
                matches = list(range(index, num_envs, count))
                self.workers.append(Worker(index, matches, {**job, "matches": matches}, memory))
            scenario_infos = [worker.read_scenario_info() for worker in self.workers]
            self.scenario_info = scenario_infos[0]  # all workers report the same
            self.arrays = SharedArrays(num_envs, len(self.scenario_info.agents), memory)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)

    def reset(self, seeds: NDArray[np.int64]) -> None:
        """Start an episode in every match.

        Args:
            seeds: [N] int64, the engine's seed of each match.
        """
        self.arrays.seeds[:] = seeds
        self.arrays.rewards[:] = 0.0
        self._run(b"r", self.workers)

    def step(self, actions: NDArray[np.int64]) -> None:
        """Play one step in the matches whose episode has not ended; the others keep their observations.

        Args:
            actions: [N, n] int64, an action index per agent.
        """
        arrays = self.arrays
        arrays.actions[:] = actions
        arrays.rewards[:] = 0.0
        arrays.terminated[:] = arrays.truncated[:] = False
        self._run(b"s", [worker for worker in self.workers if arrays.playing[worker.matches].any()])

    def _run(self, command: bytes, workers: Sequence[Worker]) -> None:
        """Let some workers execute a command. Closes the pool on any exception."""
        if not self.close.alive:
            raise RuntimeError("the football environment is closed. Build a new one with make_env")
        try:
            for worker in workers:
                worker.send(command)
            for worker in workers:
                worker.wait_for_reply()
        except BaseException:
            # After a death or an interrupt, outstanding replies would be mistaken for those to the next command.
            self.close()
            raise


def _stop(workers: list[Worker]) -> None:
    """Stop all workers."""
    for worker in workers:
        worker.disconnect()
    for worker in workers:
        worker.stop()
