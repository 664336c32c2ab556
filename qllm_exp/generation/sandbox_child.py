"""The child process of the sandbox: `main` reads requests from stdin and prints a line of JSON per candidate.

Imports and a first trace run without limits. Then each candidate gets a process of its own, forked from this one while it has
a single thread. That process does all work on the source, parsing included. It has limits on processor time, wall time, memory,
file size and new processes (the last is not enforced for root), and the kernel confines it (confinement.py). The only file
that it can write to is its own record, which this process reads but does not interpret. Only `main` belongs to the interface;
sandbox.py starts it.
"""

import contextlib
import json
import os
import resource
import select
import signal
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn, TextIO

from qllm_exp.generation import confinement
from qllm_exp.utils.start_time import rest_collector, wake_collector

IDLE_S = 20.0  # without a request, after which the child ends: a sweep that has its functions trains for hours
MAX_RECORD = 4 << 20  # bytes that a candidate may return
_MAX_DESCRIPTOR = 1 << 16  # far beyond those of this process, which get the lowest free numbers


def main() -> None:
    """Answer requests until the input ends, or none has come for IDLE_S.

    A request is a line on stdin, {"sources", "states", "n_agents", "timeout_s", "memory"}. On stdout follows {"ready": true}, and
    then for each source in turn an object with these keys:

    - missing: layers of confinement that the system does not have.
    - record: text that the candidate's process wrote, lines of JSON. Not to be trusted.
    - exit_code: of that process, as of os.waitstatus_to_exitcode.
    - cpu_s: processor seconds that it took.
    - expired: whether it was ended at the limit of wall-clock time.

    If the process of a candidate cannot be set up, the object has the key `failure` only, a message.
    """
    output = os.fdopen(os.dup(1), "w")  # only the answers may go to stdout, but libraries print warnings there
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    missing = [] if confinement.enter_namespaces() else [confinement.NAMESPACES]

    rest_collector()
    import torch

    from qllm_exp.generation.tracing import warm_up

    torch.set_num_threads(1)
    warm_up()
    wake_collector()
    for request in _requests():
        print(json.dumps({"ready": True}), file=output, flush=True)
        for source in request["sources"]:
            print(json.dumps(_run_in_fork(source, request, missing)), file=output, flush=True)
    with contextlib.suppress(OSError):
        os.rmdir(os.getcwd())  # its empty folder, which a parent that was killed cannot remove


def _requests() -> Iterator[dict[str, Any]]:
    """Yield the requests on stdin; end with it, or once none has come for IDLE_S."""
    data = b""
    while select.select([0], [], [], IDLE_S)[0]:
        chunk = os.read(0, 1 << 16)
        data += chunk
        if data and (data.endswith(b"\n") or not chunk):
            yield json.loads(data)
            data = b""
        if not chunk:
            return


def _run_in_fork(source: str, request: dict[str, Any], missing: list[str]) -> dict[str, Any]:
    """Trace a candidate in a forked process and return what `main` prints for it.

    Args:
        source: the source.
        request: the request.
        missing: layers of confinement that this process does not have.
    """
    expired = False
    read_end, write_end = os.pipe()
    with _record_file() as record:
        pid = os.fork()
        if pid == 0:
            _trace_candidate(source, request, write_end, record)

        def end(*_: object) -> None:
            nonlocal expired
            expired = True
            os.kill(pid, signal.SIGKILL)

        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, wall_limit(request["timeout_s"]))
        os.close(write_end)
        with open(
            read_end
        ) as setup:  # ends when the candidate's process closes the pipe, before it looks at the source
            missing_in_fork = setup.read()
        _, status, usage = os.wait4(pid, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        exit_code = os.waitstatus_to_exitcode(status)
        if not missing_in_fork:
            return {"failure": f"the process of a function could not be set up (exit code {exit_code})"}
        record.seek(0)
        return {
            "missing": missing + json.loads(missing_in_fork),
            "record": record.read(MAX_RECORD).decode(errors="replace"),
            "exit_code": exit_code,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "expired": expired,
        }


def _record_file() -> BinaryIO:
    """Return a file for the record of one candidate; in memory where the system can do that, so that no disk can be full."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("record"), "w+b")
    return tempfile.TemporaryFile()


def _trace_candidate(source: str, request: dict[str, Any], setup: int, file: BinaryIO) -> NoReturn:
    """Trace one source under limits and exit this process.

    Args:
        source: the source.
        request: the request.
        setup: descriptor of a pipe for the layers of confinement that the system does not have. It is closed before any work
            on the source.
        file: the record of the candidate. Each line is an object whose keys add to those of the lines before: `checked` when
            the source has passed the static check, then the attributes of Traced, or `stage` and `reason`.
    """
    import torch

    from qllm_exp.credit.refused import Refused
    from qllm_exp.generation.static_check import parse
    from qllm_exp.generation.tracing import start_autograd, trace

    code = 1
    try:
        _close_files(setup, file.fileno())
        statm = _statm()  # opened now and read later: no file can be opened after the next line
        missing = confinement.confine_files()
        start_autograd()  # before the limits, which forbid new threads and count memory beyond the current use
        _limit(request["timeout_s"], request["memory"], statm)
        missing += confinement.confine_calls(may_open=confinement.LANDLOCK not in missing)
        os.write(setup, json.dumps(missing).encode())
        os.close(setup)
        try:
            parse(source)
            _write(file, checked=True)
            states = torch.tensor(request["states"], dtype=torch.float32)
            traced = trace(source, states, request["n_agents"])
            _write(file, **traced._asdict() | {"value": traced.value.tolist(), "gradient": traced.gradient.tolist()})
        except Refused as refused:
            _write(file, stage=refused.stage, reason=refused.reason)
        except MemoryError:
            _write(file, stage="limits", reason="it requests more memory than is allowed")
        except Exception as error:  # torch can fail in many ways on a graph that it traced itself
            reason = f"it cannot be converted to a tensor program ({error}): use basic torch arithmetic"
            _write(file, stage="trace", reason=reason)
        code = 0
    finally:
        os._exit(code)  # skips the clean-up handlers, which belong to the parent


def wall_limit(seconds: float) -> float:
    """Return the limit in wall-clock seconds for a candidate with a limit of `seconds` of processor time."""
    return 4 * seconds + 10


def _close_files(*kept: int) -> None:
    """Close all files of this process but the kept descriptors: no answer to the parent may be within reach."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    ends = [*sorted(kept), _MAX_DESCRIPTOR]
    for start, end in zip([2, *ends], ends, strict=False):
        os.closerange(start + 1, end)


def _write(file: BinaryIO, **values: Any) -> None:
    """Add a line to the record."""
    file.write(json.dumps(values).encode() + b"\n")
    file.flush()


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
    # Processor time is the actual limit, so that a busy machine refuses no function. The alarm ends the process by default,
    # whatever it is doing; the limit of the kernel, a second later, cannot be ignored. The parent limits wall-clock time.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: MAX_RECORD,
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
