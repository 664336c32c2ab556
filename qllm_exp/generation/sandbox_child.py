"""The child process that runs generated functions: `main` reads a request on stdin and prints one line of JSON.

Imports and a first export are done without limits; then each candidate gets a process of its own, forked from this one
while it has a single thread, with limits on processor time, wall time, memory, file size and new processes (which the
system does not impose on root). Where the system allows it (Linux, Landlock) it has no network and no files but Python's
own, to read. Only `main` belongs to the interface; export.py starts it.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # flags of unshare(2)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls of Landlock, the same on all processors
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3  # of its kinds of access
_NO_NEW_PRIVILEGES = 38  # of prctl(2)
_MAX_ANSWER = 4 << 20  # bytes
_ENDINGS = {
    1: "it asks for more memory than is allowed: tensors may have the size of the batch times a few hundred",
    -signal.SIGABRT: "it ended the process that ran it, most likely by asking for too much memory",
    -signal.SIGFPE: "it divides whole numbers in a way that ends the process: divide float tensors",
}


def main() -> None:
    """Request: {"sources", "states", "n_agents", "timeout_s", "memory"}; answer: {"results": [...]}.

    A result is {"program": ...} or {"stage": ..., "reason": ...}.
    """
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")  # the answers alone may go there: libraries print complaints of their own
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    _leave_network()  # before torch is imported: a process with threads may not enter a user namespace

    import torch

    from qllm_exp.generation.tracing import warm_up

    torch.set_num_threads(1)
    warm_up()
    results = [_in_fork(number, source, request) for number, source in enumerate(request["sources"])]
    with answers:
        json.dump({"results": results}, answers)


def _leave_network() -> None:
    """Enter a network namespace without interfaces, where an ordinary user may (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 or less where there is none."""
    return int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1)) if sys.platform == "linux" else 0


def _leave_files() -> None:
    """From here on this process may read below Python's own folders, and do nothing else with files: not write, not
    start programs; nor, in later versions of Landlock, connect to other machines or send signals to other processes."""
    version = landlock_version()
    if version < 1:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    every = (1 << 13 + (version >= 2) + (version >= 3) + (version >= 5)) - 1  # kinds of access that it knows
    handled = (ctypes.c_uint64 * 3)(every, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(size), 0)
    for folder in {sys.prefix, sys.base_prefix, *sys.path[1:]}:  # the first is this package's own, imported already
        with contextlib.suppress(OSError):
            beneath = _Beneath(_READ_FILE | _READ_FOLDER, os.open(folder, os.O_PATH | os.O_CLOEXEC))
            libc.syscall(_ADD_RULE, rules, 1, ctypes.byref(beneath), 0)
            os.close(beneath.folder)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _in_fork(number: int, source: str, request: dict[str, Any]) -> dict[str, Any]:
    answer = Path(f"{number}.json")  # in the empty folder this process was started in
    with answer.open("w") as file:
        pid = os.fork()
        if pid == 0:
            _candidate(source, request, file)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGPROF, -signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        seconds = f"{request['timeout_s']:g}"
        return _refusal("limits", f"it did not finish within {seconds} s: use tensor operations instead of long loops")
    try:
        result = json.loads(answer.read_text()[:_MAX_ANSWER])
    except (OSError, ValueError, RecursionError):
        ending = _ENDINGS.get(code, "it ended the process that ran it: use ordinary sizes and indices")
        return _refusal("limits", ending)
    return dict(result)


def _candidate(source: str, request: dict[str, Any], answer: TextIO) -> NoReturn:
    """Trace one source under limits, write the answer and end this process."""
    import torch

    from qllm_exp.credit.refused import Refused
    from qllm_exp.generation.tracing import start_autograd, trace

    code = 1
    try:
        statm = _statm()  # to be read later on: from the next line on no file can be opened
        _leave_files()
        start_autograd()  # in the sandbox, but before the limits on threads and on memory beyond what is used now
        _limit(request["timeout_s"], request["memory"], statm)
        try:
            states = torch.tensor(request["states"], dtype=torch.float32)
            result: dict[str, Any] = {"program": trace(source, states, request["n_agents"]).to_json()}
        except Refused as refused:
            result = _refusal(refused.stage, refused.reason)
        except MemoryError:
            result = _refusal("limits", "it asks for more memory than is allowed")
        except Exception as error:  # what torch could not do with a graph that it made itself
            result = _refusal("trace", f"it cannot be made a tensor program ({error}): use basic torch arithmetic")
        answer.write(json.dumps(result))
        answer.flush()
        code = 0
    finally:
        os._exit(code)  # without the clean-up that belongs to the parent


def wall_limit(seconds: float) -> float:
    """Wall-clock seconds after which a candidate with that much processor time is ended."""
    return 4 * seconds + 10


def _refusal(stage: str, reason: str) -> dict[str, str]:
    return {"stage": stage, "reason": reason}


def _statm() -> TextIO | None:
    """This process's memory, in pages; None where the system has no such file."""
    try:
        return open("/proc/self/statm")
    except OSError:
        return None


def _limit(seconds: float, memory: int, statm: TextIO | None) -> None:
    """Processor time in seconds; `memory` in bytes beyond what the process has now, by `statm`."""
    # The default action of these alarms ends the process, whatever it is doing. Processor time is what counts, so that
    # a busy machine refuses nothing; the wall clock is there for a process that waits.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_limit(seconds))
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: _MAX_ANSWER,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    if statm is not None:  # elsewhere address space is not limited in a way that can be relied on
        limits[resource.RLIMIT_AS] = int(statm.read().split()[0]) * resource.getpagesize() + memory
        statm.close()
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a stricter limit is set already
            resource.setrlimit(kind, (value, value))
