"""The child process that runs generated functions: `main` reads a request on stdin and prints one line of JSON.

Imports and a first export are done without limits; then each candidate gets a process of its own, forked from this one,
with limits on processor time, wall time, memory, file size and new processes, and without network where the system
allows it. Only `main` belongs to the interface; export.py starts it.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # flags of unshare(2)
_MAX_ANSWER = 4 << 20  # bytes


def main() -> None:
    """Request: {"sources", "states", "n_agents", "timeout_s", "memory"}; answer: {"results": [...]}.

    A result is {"program": ...} or {"stage": ..., "reason": ...}.
    """
    request = json.load(sys.stdin)
    _leave_network()  # before torch is imported: a process with threads may not enter a user namespace

    import torch

    from qllm_exp.tfcaf.tracing import warm_up

    torch.set_num_threads(1)
    warm_up()
    results = [_in_fork(number, source, request) for number, source in enumerate(request["sources"])]
    json.dump({"results": results}, sys.stdout)


def _leave_network() -> None:
    """Enter a network namespace without interfaces, where an ordinary user may (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)


def _in_fork(number: int, source: str, request: dict[str, Any]) -> dict[str, Any]:
    answer = Path(f"{number}.json")  # in the empty folder this process was started in
    pid = os.fork()
    if pid == 0:
        _candidate(source, request, answer)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGPROF, -signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        seconds = f"{request['timeout_s']:g}"
        return _refusal("limits", f"it did not finish within {seconds} s: use tensor operations instead of long loops")
    try:
        result = json.loads(answer.read_text()[:_MAX_ANSWER])
    except (OSError, ValueError):
        return _refusal("limits", "it ended the process that ran it, most likely by asking for too much memory")
    return dict(result)


def _candidate(source: str, request: dict[str, Any], answer: Path) -> NoReturn:
    """Trace one source under limits, write the answer and end this process."""
    import torch

    from qllm_exp.tfcaf.static_check import Refused
    from qllm_exp.tfcaf.tracing import trace

    code = 1
    try:
        _limit(request["timeout_s"], request["memory"])
        try:
            states = torch.tensor(request["states"], dtype=torch.float32)
            result: dict[str, Any] = {"program": trace(source, states, request["n_agents"]).to_json()}
        except Refused as refused:
            result = _refusal(refused.stage, refused.reason)
        except MemoryError:
            result = _refusal("limits", "it asks for more memory than is allowed")
        answer.write_text(json.dumps(result))
        code = 0
    finally:
        os._exit(code)  # without the clean-up that belongs to the parent


def wall_limit(seconds: float) -> float:
    """Wall-clock seconds after which a candidate with that much processor time is ended."""
    return 4 * seconds + 10


def _refusal(stage: str, reason: str) -> dict[str, str]:
    return {"stage": stage, "reason": reason}


def _limit(seconds: float, memory: int) -> None:
    """Processor time in seconds; `memory` in bytes beyond what the process has now."""
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
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere address space is not limited in a way that can be relied on
        limits[resource.RLIMIT_AS] = int(statm.read_text().split()[0]) * resource.getpagesize() + memory
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a stricter limit is set already
            resource.setrlimit(kind, (value, value))
