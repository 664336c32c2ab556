"""The child process of the sandbox: `main` reads a request from stdin and prints one line of JSON.

Imports and a first export run without limits. Then each candidate gets a process of its own, forked from this one while
it has a single thread. That process has limits on processor time, wall time, memory, file size and new processes (the last
is not enforced for root). Where the system allows it (Linux with Landlock), it has no network and may only read the files
of Python itself. Only `main` belongs to the interface; sandbox.py starts it.
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
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls of Landlock, equal on all processors
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3  # access rights of Landlock
_NO_NEW_PRIVILEGES = 38  # option of prctl(2)
_MAX_ANSWER = 4 << 20  # bytes
_EXIT_REASONS = {
    1: "it requests more memory than is allowed: tensors may have the size of the batch times a few hundred",
    -signal.SIGABRT: "it aborted the process that ran it, most likely by requesting too much memory",
    -signal.SIGFPE: "it divides integers in a way that aborts the process: divide float tensors",
}


def main() -> None:
    """Answer one request.

    The request on stdin is {"sources", "states", "n_agents", "timeout_s", "memory"}. The answer on stdout is
    {"results": [...]}, where a result is {"program": ...} or {"stage": ..., "reason": ...}.
    """
    request = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "w")  # only the answer may go to stdout, but libraries print warnings there
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    _leave_network()  # before importing torch, because a process with threads cannot enter a user namespace

    import torch

    from qllm_exp.generation.tracing import warm_up

    torch.set_num_threads(1)
    warm_up()
    results = [_run_in_fork(number, source, request) for number, source in enumerate(request["sources"])]
    with output:
        json.dump({"results": results}, output)


def _leave_network() -> None:
    """Enter a network namespace without interfaces, if the system allows that for ordinary users (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 or less if it has none."""
    if sys.platform != "linux":
        return 0
    return int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1))


def _leave_files() -> None:
    """Restrict this process to reading files below Python's own folders.

    It can no longer write files or start programs. With later versions of Landlock it cannot connect to other machines or
    send signals to other processes either.
    """
    version = landlock_version()
    if version < 1:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    # Versions 2, 3 and 5 each added an access right for files, version 4 added TCP, and version 6 added signals.
    file_rights = 13 + sum(version >= newer for newer in (2, 3, 5))
    ruleset_bytes = 8
    if version >= 4:
        ruleset_bytes = 16
    if version >= 6:
        ruleset_bytes = 24
    ruleset = (ctypes.c_uint64 * 3)((1 << file_rights) - 1, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    rules = libc.syscall(_CREATE_RULESET, ruleset, ctypes.c_size_t(ruleset_bytes), 0)
    for folder in {
        sys.prefix,
        sys.base_prefix,
        *sys.path[1:],
    }:  # sys.path[0] is this package, which is imported already
        with contextlib.suppress(OSError):
            rule = _FolderRule(_READ_FILE | _READ_FOLDER, os.open(folder, os.O_PATH | os.O_CLOEXEC))
            libc.syscall(_ADD_RULE, rules, 1, ctypes.byref(rule), 0)
            os.close(rule.folder)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


class _FolderRule(ctypes.Structure):
    """struct landlock_path_beneath_attr: the allowed access below a folder, which is an open descriptor."""

    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _run_in_fork(number: int, source: str, request: dict[str, Any]) -> dict[str, Any]:
    """Trace a candidate in a forked process and return its result."""
    answer = Path(f"{number}.json")  # in the empty folder that this process was started in
    with answer.open("w") as file:
        pid = os.fork()
        if pid == 0:
            _trace_candidate(source, request, file)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGPROF, -signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        seconds = f"{request['timeout_s']:g}"
        return _refusal("limits", f"it did not finish within {seconds} s: use tensor operations instead of long loops")
    try:
        result = json.loads(answer.read_text()[:_MAX_ANSWER])
    except (OSError, ValueError, RecursionError):
        reason = _EXIT_REASONS.get(code, "it aborted the process that ran it: use ordinary sizes and indices")
        return _refusal("limits", reason)
    return dict(result)


def _trace_candidate(source: str, request: dict[str, Any], answer: TextIO) -> NoReturn:
    """Trace one source under limits, write the result to `answer` and exit this process."""
    import torch

    from qllm_exp.credit.refused import Refused
    from qllm_exp.generation.tracing import start_autograd, trace

    code = 1
    try:
        statm = _statm()  # opened now and read later: no file can be opened after the next line
        _leave_files()
        start_autograd()  # before the limits, which forbid new threads and count memory beyond the current use
        _limit(request["timeout_s"], request["memory"], statm)
        try:
            states = torch.tensor(request["states"], dtype=torch.float32)
            result: dict[str, Any] = {"program": trace(source, states, request["n_agents"]).to_json()}
        except Refused as refused:
            result = _refusal(refused.stage, refused.reason)
        except MemoryError:
            result = _refusal("limits", "it requests more memory than is allowed")
        except Exception as error:  # torch can fail in many ways on a graph that it exported itself
            result = _refusal(
                "trace", f"it cannot be converted to a tensor program ({error}): use basic torch arithmetic"
            )
        answer.write(json.dumps(result))
        answer.flush()
        code = 0
    finally:
        os._exit(code)  # skips the clean-up handlers, which belong to the parent


def wall_limit(seconds: float) -> float:
    """Return the limit in wall-clock seconds for a candidate with a limit of `seconds` of processor time."""
    return 4 * seconds + 10


def _refusal(stage: str, reason: str) -> dict[str, str]:
    """Return a refusal as a result."""
    return {"stage": stage, "reason": reason}


def _statm() -> TextIO | None:
    """Open the file with this process's memory in pages; return None if the system has no such file."""
    try:
        return open("/proc/self/statm")
    except OSError:
        return None


def _limit(seconds: float, memory: int, statm: TextIO | None) -> None:
    """Limit this process.

    Args:
        seconds: processor time.
        memory: bytes beyond the memory that the process has now.
        statm: the open file of `_statm`.
    """
    # These alarms end the process by default, whatever it is doing. Processor time is the actual limit, so that a busy
    # machine refuses no function; the wall-clock limit is for a process that waits.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_limit(seconds))
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: _MAX_ANSWER,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    if statm is not None:  # other systems do not limit address space reliably
        limits[resource.RLIMIT_AS] = int(statm.read().split()[0]) * resource.getpagesize() + memory
        statm.close()
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a stricter limit is already set
            resource.setrlimit(kind, (value, value))
