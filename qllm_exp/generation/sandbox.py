"""Sandbox: generated source to tensor program, with all work on the source done in a child process.

The child is an interpreter of its own in an empty folder, with a clean environment, one thread and limits (sandbox_child.py). Here
the source is only passed on: even to parse it takes time and memory that its author chooses. The answer of the child is
trusted no more than the source itself: its size is limited, and the program is checked again from its JSON.

A child stays for a while, since it takes a second or two to import torch: it answers further requests until none has come for
sandbox_child.IDLE_S. Each candidate has a process of its own all the same.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import FUNCTION_NAMES, Refused
from qllm_exp.generation.confinement import LAYERS
from qllm_exp.generation.sandbox_child import MAX_RECORD, wall_limit
from qllm_exp.generation.static_check import MAX_SOURCE
from qllm_exp.generation.traced import ROWS, Traced

MEMORY = 1 << 30  # bytes that a function may use beyond the memory of an idle child process
_START_S = 120.0  # enough to import torch from a slow file system
_MAX_ANSWER = 8 * MAX_RECORD  # bytes; a record as JSON may be longer than itself
_PROBES = 7  # minimum number of states that the child needs
# Modules are left as they are at the end: to take them apart takes a tenth of a second.
_START = "import os, sys; sys.path.insert(0, {root!r}); from qllm_exp.generation.sandbox_child import main; main(); os._exit(0)"
_STAGES = ("static", "run", "trace", "convert", "program", "limits")  # that the child may name
_MEMORY_REASON = "it requests more memory than is allowed: tensors may have the size of the batch times a few hundred"
_EXIT_REASONS = {
    1: _MEMORY_REASON,
    -signal.SIGKILL: _MEMORY_REASON,
    -signal.SIGABRT: "it aborted the process that ran it, most likely by requesting too much memory",
    -signal.SIGFPE: "it divides integers in a way that aborts the process: divide float tensors",
}

_log = logging.getLogger(__name__)


class Exported(NamedTuple):
    """A function that was traced.

    Attributes:
        program: its tensor program.
        function: its name in the source.
        lines: for each operation of the program its line in the source, 0 if it has none.
    """

    program: Program
    function: str
    lines: list[int]


def export_all(
    sources: Sequence[str], n_agents: int, state_dim: int, timeout_s: float = 60, states: Tensor | None = None
) -> list[Exported | Refused]:
    """Export generated functions as tensor programs, each independently of the others.

    Args:
        sources: Python sources with one function credit_assignment(agents_q, global_state) each.
        n_agents: columns of agents_q.
        state_dim: columns of global_state.
        timeout_s: limit in processor seconds per function for checking, running and tracing; the start of the child does not
            count.
        states: [M, state_dim] states to run the functions on, preferably states of the task; None for states that are
            uniform in [0, 1).

    Returns:
        A program or a refusal per source, in the same order.
    """
    states = _probes(states, state_dim)
    results: dict[int, Exported | Refused] = {}
    waiting = []
    for number, source in enumerate(sources):
        if len(source) > MAX_SOURCE:
            reason = f"the source has {len(source)} characters; {MAX_SOURCE} are allowed"
            results[number] = Refused("static", reason)
        else:
            waiting.append(number)
    while waiting:
        answers = _ask_child([sources[number] for number in waiting], n_agents, states, timeout_s)
        for number, answer in zip(waiting, answers, strict=False):
            results[number] = _parse_answer(answer, n_agents, states, timeout_s)
        if len(answers) < len(waiting):  # the child ended early, so the others get a new one
            reason = "it ended the process that runs generated functions: use ordinary sizes and indices"
            results[waiting[len(answers)]] = Refused("limits", reason)
        waiting = waiting[len(answers) + 1 :]
    return [results[number] for number in range(len(sources))]


def _probes(states: Tensor | None, state_dim: int) -> Tensor:
    """Return at least 7 states [M, state_dim] on the CPU: the given ones, repeated where they are fewer, or random ones."""
    if states is None:
        return torch.rand(_PROBES, state_dim, generator=torch.Generator().manual_seed(0))
    if states.dim() != 2 or states.shape[1] != state_dim or not len(states):
        raise ValueError(f"states must have shape [M, {state_dim}] with M >= 1, got {list(states.shape)}")
    return states[torch.arange(max(_PROBES, len(states))) % len(states)].float().cpu()


def _ask_child(sources: list[str], n_agents: int, states: Tensor, timeout_s: float) -> list[dict[str, Any]]:
    """Ask the child process; return its answers, of which the last ones are missing if it ended early.

    Raises:
        RuntimeError: the child could not start.
    """
    request = {
        "sources": sources,
        "states": states.tolist(),
        "n_agents": n_agents,
        "timeout_s": timeout_s,
        "memory": MEMORY,
    }
    data = json.dumps(request).encode() + b"\n"
    seconds = _START_S + len(sources) * (wall_limit(timeout_s) + 1)
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-I", "-c", _START.format(root=root)]
    with _lock:
        child = _children.get(os.getpid())
        objects = child.ask(data, len(sources), seconds) if child is not None and child.command == command else []
        if child is None or not objects:  # there is none, or it has ended for want of requests
            end_child()
            child = _children[os.getpid()] = _Child(command)
            objects = child.ask(data, len(sources), seconds)
        ready, *answers = objects or [{}]
        failure = next((answer["failure"] for answer in answers if "failure" in answer), None)
        message = failure or child.message()
        if len(answers) < len(sources) or failure:
            end_child()
    if "ready" not in ready or failure:
        raise RuntimeError(f"the child process that runs generated functions failed: {message}")
    return answers


class _Child:
    """A child process, which answers one request after another.

    Args:
        command: the command that starts it.

    Attributes:
        command: the same.
    """

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self._folder = tempfile.TemporaryDirectory(prefix="qllm_exp-", ignore_cleanup_errors=True)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self._folder.name,
            env=_environment(self._folder.name),
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)

    def ask(self, request: bytes, count: int, seconds: float) -> list[dict[str, Any]]:
        """Return what it answers to a request: an object that says that it is ready, and the answers.

        Fewer if it ends, gives something else than objects, or is late.

        Args:
            request: a line of JSON.
            count: number of answers.
            seconds: limit of the whole.
        """
        deadline = time.monotonic() + seconds
        output = b""
        try:
            while output.count(b"\n") <= count and len(output) <= (count + 1) * _MAX_ANSWER:
                files = [self._input] if request else []
                left = deadline - time.monotonic()
                readable, writable, _ = select.select([self._output], files, [], max(left, 0))
                if readable:
                    data = os.read(self._output, 1 << 16)
                    if not data:
                        break
                    output += data
                elif writable:
                    request = request[os.write(self._input, request) :]
                else:
                    break
        except BrokenPipeError:
            pass
        return list(_json_objects(output.decode(errors="replace")))[: count + 1]

    def message(self) -> str:
        """Return the end of what it has written as errors, or that it did not answer in time."""
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode(errors="replace").strip() or "no answer in time"

    def end(self) -> None:
        """End it, with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            file.close()
        self._folder.cleanup()


_children: dict[int, _Child] = {}  # by process, so that a fork of this one does not use the same
_lock = threading.Lock()


@atexit.register
def end_child() -> None:
    """End the child of this process, if there is one."""
    child = _children.pop(os.getpid(), None)
    if child is not None:
        child.end()


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of the child: no secrets, no GPU, one thread. torch may need the library path."""
    library_path = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return library_path | threads | {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "CUDA_VISIBLE_DEVICES": ""}


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects in lines of JSON, up to the first line that is not one."""
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(value, dict):
            return
        yield value


def _parse_answer(answer: dict[str, Any], n_agents: int, states: Tensor, timeout_s: float) -> Exported | Refused:
    """Check an answer of the child and return the program or the refusal in it."""
    missing = tuple(layer for layer in LAYERS if layer in answer["missing"])
    if missing:
        _warn_once(missing)
    record: dict[str, Any] = {}
    for values in _json_objects(answer["record"]):
        record |= values
    if record.get("stage") in _STAGES and isinstance(record.get("reason"), str):
        return Refused(record["stage"], _printable(record["reason"]))
    if "data" not in record:
        return Refused("limits", _limit_reason(answer, "checked" in record, timeout_s))
    rows, state_dim = min(ROWS, len(states)), states.shape[1]
    try:
        value, gradient = _tensor(record.get("value"), rows, 1), _tensor(record.get("gradient"), rows, n_agents)
        traced = Traced(record["data"], record.get("function", ""), record.get("lines", []), value, gradient)
        if not isinstance(traced.data, dict) or (traced.data.get("n_agents"), traced.data.get("state_dim")) != (
            n_agents,
            state_dim,
        ):
            return Refused("program", "the child process returned a program for inputs of other sizes")
        program = traced.program(states)
    except Refused as refused:
        return refused
    if traced.function not in FUNCTION_NAMES or not _are_lines(traced.lines, len(program.operations)):
        return Refused("program", "the child process returned an invalid program")
    return Exported(program, traced.function, traced.lines)


def _tensor(values: object, rows: int, columns: int) -> Tensor:
    """Return a tensor [rows, columns] of a list of lists of numbers; refuse anything else."""
    try:
        tensor = torch.tensor(values, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        tensor = torch.empty(0)
    if tensor.shape != (rows, columns):
        raise Refused("program", "the child process returned invalid values")
    return tensor


def _are_lines(lines: object, count: int) -> TypeGuard[list[int]]:
    """Whether this is a list of `count` line numbers."""
    return (
        isinstance(lines, list)
        and len(lines) == count
        and all(type(line) is int and 0 <= line <= MAX_SOURCE for line in lines)
    )


@functools.cache
def _warn_once(missing: tuple[str, ...]) -> None:
    """Log the layers of confinement that the system does not have."""
    _log.warning(
        "The sandbox for generated functions works without %s, which this system does not have. What that leaves open is "
        "listed in the guide to credit-assignment functions, section 'Sandbox'.",
        " and ".join(missing),
    )


def _printable(text: str) -> str:
    """Replace control characters: the text comes from generated code, and is sent to a terminal and to a language model."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def _limit_reason(answer: dict[str, Any], checked: bool, timeout_s: float) -> str:
    """Explain why a candidate's process ended without a result.

    Args:
        answer: the answer of the child.
        checked: whether the source had passed the static check.
        timeout_s: limit in processor seconds.
    """
    code = answer["exit_code"]
    out_of_time = code == -signal.SIGKILL and answer["cpu_s"] > timeout_s
    if answer["expired"] or out_of_time or code in (-signal.SIGPROF, -signal.SIGXCPU):
        if checked:
            return f"it did not finish within {timeout_s:g} s: use tensor operations instead of long loops"
        return f"Python could not read it within {timeout_s:g} s: nest fewer blocks, and write shorter expressions"
    if not checked:
        return "Python could not read it within the allowed memory: nest fewer blocks, and write shorter expressions"
    return _EXIT_REASONS.get(code, "it aborted the process that ran it: use ordinary sizes and indices")
