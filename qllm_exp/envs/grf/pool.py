"""The worker processes of the football environment, seen from the parent: start, command, notice their death, stop.

Workers are started as fresh interpreters (fork and exec, what 'spawn' does), never forked: the parent has threads and
may hold a CUDA context, neither of which survives a fork. Unlike multiprocessing's spawn they do not import the main
module again, which would load torch into each of them.

Actions and results lie in one anonymous block of shared memory: it has no name that could be left behind, and the
kernel frees it with the last process that maps it. A command is one byte over a socket, and so is its answer. A worker
that dies closes its socket, so waiting for an answer ends at once; a parent that dies does likewise.
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
from qllm_exp.envs.grf.worker import Facts, SharedArrays

_PATIENCE = 2.0  # seconds that a worker gets to leave by itself
_LOG_TAIL = 2000  # characters of a dead worker's output to show


class WorkerError(RuntimeError):
    """A worker process died. `loading` says whether it had not yet loaded the engine and the scenario."""

    def __init__(self, message: str, loading: bool) -> None:
        super().__init__(message)
        self.loading = loading


class Worker:
    """One process and its matches."""

    def __init__(self, index: int, matches: list[int], job: dict[str, Any], memory: int) -> None:
        self.index, self.matches = index, matches
        self._loading = True
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._socket, theirs = socket.socketpair()
        # One core per worker: numpy's thread pools would only take memory.
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", worker_script.__file__, str(theirs.fileno()), str(memory), json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), memory),
                env={**os.environ, **threads},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def facts(self) -> Facts:
        """What the scenario is, as the worker has found by loading it."""
        line = b""
        while not line.endswith(b"\n"):
            line += self._receive(4096)
        self._loading = False
        return Facts(**json.loads(line))

    def command(self, command: bytes) -> None:
        try:
            self._socket.sendall(command)
        except OSError as error:
            raise self._died() from error

    def answer(self) -> None:
        """Wait until the last command is done."""
        self._receive(1)

    def _receive(self, size: int) -> bytes:
        try:
            data = self._socket.recv(size)
        except OSError as error:
            raise self._died() from error
        if not data:
            raise self._died()
        return data

    def _died(self) -> WorkerError:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        self._log.seek(0)
        output = self._log.read().decode(errors="replace").strip()[-_LOG_TAIL:]
        matches = ", ".join(map(str, self.matches))
        return WorkerError(
            f"football worker {self.index} (process {self.pid}, matches {matches}) {cause}."
            + (f" Its last output:\n{output}" if output else " It wrote nothing."),
            self._loading,
        )

    def hang_up(self) -> None:
        """Close the connection, on which the worker leaves."""
        self._socket.close()

    def stop(self) -> None:
        """Wait until it has left, or end it."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class WorkerPool:
    """All workers of one environment. Match i is played by worker i modulo the number of workers.

    Args:
        num_envs: number of matches. workers: number of processes, at least 1.
        scenario, goalkeeper, attackers: what is played and who is controlled, see worker.py.
        checkpoints: give checkpoint rewards. limit: steps after which an episode is truncated.

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
        self.close = weakref.finalize(self, _stop, self.workers)  # also when it is forgotten, and at exit
        memory = os.memfd_create("qllm_exp football")
        try:
            count = min(workers, num_envs)
            for index in range(count):
                matches = list(range(index, num_envs, count))
                self.workers.append(Worker(index, matches, {**job, "matches": matches}, memory))
            facts = [worker.facts() for worker in self.workers]
            self.facts = facts[0]
            self.arrays = SharedArrays(num_envs, len(self.facts.agents), memory)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)

    def reset(self, seeds: NDArray[np.int64]) -> None:
        """Start an episode in every match, with these seeds [N] of the engine."""
        self.arrays.seeds[:] = seeds
        self.arrays.rewards[:] = 0.0
        self._run(b"r", self.workers)

    def step(self, actions: NDArray[np.int64]) -> None:
        """Play the joint actions [N, n] in the matches that are in play; the others keep their observation."""
        arrays = self.arrays
        arrays.actions[:] = actions
        arrays.rewards[:] = 0.0
        arrays.terminated[:] = arrays.truncated[:] = False
        self._run(b"s", [worker for worker in self.workers if arrays.playing[worker.matches].any()])

    def _run(self, command: bytes, workers: Sequence[Worker]) -> None:
        if not self.close.alive:
            raise RuntimeError("this football environment is closed")
        try:
            for worker in workers:
                worker.command(command)
            for worker in workers:
                worker.answer()
        except BaseException:
            # After a death or an interrupt, answers that are still due would be taken for those of the next command.
            self.close()
            raise


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.stop()
