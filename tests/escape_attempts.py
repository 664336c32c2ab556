"""What a process confined like a candidate can still do: `python tests/escape_attempts.py USER LAYER...` prints it as JSON.

USER is 'same', or 'ordinary' to give up root first; the layers are those that the process applies. It works in the current
folder, which must be empty and open to all users.
"""

import ctypes
import json
import os
import platform
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from qllm_exp.generation import confinement  # found by the line above, whatever the installation

NOBODY = 65534
SUCCESS = 42  # exit code
LIBC = ctypes.CDLL(None, use_errno=True)
KEY = 0x51C0FFEE  # of the objects of System V
SEIZE, DETACH = 0x4206, 17  # requests of ptrace(2)
DUMPABLE = 4  # option of prctl(2)
NUMBERS = {  # system calls without a function in the C library: on x86_64, on aarch64
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "execveat": (322, 281),
    "pidfd_send_signal": (424, 424),
}
COLUMN = ("x86_64", "aarch64").index(platform.machine())


class Outside:
    """What lies outside of the sandbox: files, servers, a process and objects of System V, of the same user.

    Attributes:
        file: a file in the current folder.
        process: id of a process of the same user.
        port: port of a TCP server.
    """

    def __init__(self) -> None:
        self.file = Path("file").absolute()
        self.file.write_text("content")
        self._servers = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._servers[0].getsockname()[1]
        for address in ("socket", f"\0{self.file}"):  # in the file system, as docker's and an ssh agent's, and abstract
            server = socket.socket(socket.AF_UNIX)
            server.bind(address)
            server.listen()
            self._servers.append(server)
        self.memory = LIBC.shmget(KEY, 4096, 0o1600)  # 0o1000: create
        self.semaphore = LIBC.semget(KEY, 1, 0o1600)
        self.queue = LIBC.msgget(KEY, 0o1600)
        self.process = os.fork()
        if self.process == 0:
            LIBC.prctl(DUMPABLE, 1, 0, 0, 0)  # as an ordinary process is; giving up root has ended that
            time.sleep(60)
            os._exit(0)

    def close(self) -> None:
        """End the process and remove the objects of System V."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        LIBC.shmctl(self.memory, 0, None)
        LIBC.semctl(self.semaphore, 0, 0)
        LIBC.msgctl(self.queue, 0, None)


def _call(name: str, *arguments: object) -> bool:
    """Whether a system call succeeds."""
    return int(LIBC.syscall(NUMBERS[name][COLUMN], *arguments)) >= 0


def _connect(family: int, address: Any) -> bool:
    """Connect to a server."""
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(address)
    return True


def _read_memory(process: int) -> bool:
    """Read the memory of another process, at an address that is equal in both."""
    target = ctypes.create_string_buffer(8)
    address = ctypes.addressof(ctypes.c_char.in_dll(LIBC, "environ"))
    local, remote = (ctypes.c_size_t * 2)(ctypes.addressof(target), 8), (ctypes.c_size_t * 2)(address, 8)
    return bool(LIBC.process_vm_readv(process, local, 1, remote, 1, 0) == 8)


def _fork() -> bool:
    """Start a process."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def _execute() -> bool:
    """Replace this process by a program that exits with SUCCESS; the parent looks at that."""
    os.execv(shutil.which("sh") or "/bin/sh", ["sh", "-c", f"exit {SUCCESS}"])
    return True


def _execute_from_memory() -> bool:
    """Replace this process by a program in a file that no folder holds."""
    program = os.memfd_create("program", 0)
    os.write(program, f"#!/bin/sh\nexit {SUCCESS}\n".encode())
    return _call("execveat", program, b"", (ctypes.c_char_p * 2)(b"x", None), (ctypes.c_char_p * 1)(None), 0x1000)


def attempts(outside: Outside) -> dict[str, Callable[[], object]]:
    """Return all attempts. An attempt fails by OSError or by returning something false."""
    file, process = outside.file, outside.process
    own_limit = resource.getrlimit(resource.RLIMIT_CORE)
    return {
        "read a file": file.read_text,
        "write a file": lambda: file.write_text("changed"),
        "truncate a file": lambda: os.truncate(file, 0) is None,
        "create a file": lambda: file.with_name("new").write_text("x"),
        "chmod": lambda: file.chmod(0o640) is None,
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()) is None,
        "utime": lambda: os.utime(file, (0, 0)) is None,
        "setxattr": lambda: os.setxattr(file, "user.x", b"1") is None,
        "link": lambda: os.link(file, file.with_name("link")) is None,
        "symlink": lambda: os.symlink(file, file.with_name("symlink")) is None,
        "mkdir": lambda: file.with_name("folder").mkdir() is None,
        "mkfifo": lambda: os.mkfifo(file.with_name("fifo")) is None,
        "rename": lambda: file.rename(file),
        "unlink": lambda: file.with_name("spare").unlink() is None,
        "inotify": lambda: LIBC.inotify_init1(0) >= 0,
        "lock a file": lambda: os.lockf(1, os.F_TLOCK, 0) is None,
        "TCP": lambda: _connect(socket.AF_INET, ("127.0.0.1", outside.port)),
        "socket with a path": lambda: _connect(socket.AF_UNIX, str(file.with_name("socket"))),
        "abstract socket": lambda: _connect(socket.AF_UNIX, f"\0{file}"),
        "pair of sockets": socket.socketpair,
        "kill": lambda: os.kill(process, 0) is None,
        "pidfd": lambda: _call("pidfd_send_signal", os.pidfd_open(process), 0, None, 0),
        "prlimit": lambda: resource.prlimit(process, resource.RLIMIT_CORE, own_limit),
        "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, process, 5) is None,
        "sched_setaffinity": lambda: os.sched_setaffinity(process, os.sched_getaffinity(0)) is None,
        "environment of a process": lambda: Path(f"/proc/{process}/environ").read_bytes(),
        "memory of a process": lambda: _read_memory(process),
        "ptrace": lambda: (
            LIBC.ptrace(SEIZE, process, None, None) == 0 and LIBC.ptrace(DETACH, process, None, None) == 0
        ),
        "fork": _fork,
        "shared memory": lambda: LIBC.shmget(KEY, 0, 0) >= 0,
        "semaphore": lambda: LIBC.semget(KEY, 0, 0) >= 0,
        "queue": lambda: LIBC.msgget(KEY, 0) >= 0,
        "add_key": lambda: _call("add_key", b"user", b"x", b"1", 1, -3),  # -3: the keyring of the session
        "request_key": lambda: _call("request_key", b"user", b"x", None, 0),
        "keyctl": lambda: _call("keyctl", 0, -3, 0),
        "io_uring": lambda: _call("io_uring_setup", 1, ctypes.create_string_buffer(120)),
        "bpf": lambda: _call("bpf", 0, (ctypes.c_uint32 * 32)(2, 4, 4, 1), 72),
        "perf": lambda: _call("perf_event_open", (ctypes.c_uint32 * 32)(1, 128), 0, -1, -1, 0),
        "userfaultfd": lambda: _call("userfaultfd", 1),
        "unshare": lambda: LIBC.unshare(0x10000000) == 0,  # a user namespace
        "mount": lambda: LIBC.mount(b"none", str(file.parent).encode(), b"tmpfs", 0, None) == 0,
        "setuid": lambda: os.setresuid(NOBODY, NOBODY, NOBODY) is None and os.setgroups([]) is None,
        "file in memory": lambda: os.memfd_create("x"),
        "execute": _execute,
        "execute from memory": _execute_from_memory,
    }


def _try_all(outside: Outside) -> dict[str, list[str]]:
    """Try each attempt in a process of its own that is confined like a candidate.

    Returns:
        The names of the attempts that were tried and that succeeded, and the layers that the processes did not have.
    """
    tried, achieved, missing = [], [], []
    for name, attempt in attempts(outside).items():
        if outside.file.exists():
            outside.file.write_text("content")
            outside.file.with_name("spare").write_text("x")
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                lacking = confinement.confine_files()
                lacking += confinement.confine_calls(may_open=confinement.LANDLOCK not in lacking)
                os.write(write_end, json.dumps(lacking).encode())
                code = SUCCESS if attempt() else 1
            except (OSError, AttributeError):  # the system forbids it, or this build of Python does not have it
                code = 1
            os._exit(code)
        os.close(write_end)
        with open(read_end) as setup:
            missing = json.loads(setup.read())
        tried.append(name)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == SUCCESS:
            achieved.append(name)
    return {"tried": tried, "achieved": achieved, "missing": missing}


def main(user: str, layers: list[str]) -> None:
    """Print the result of `_try_all` under some layers."""
    if user == "ordinary":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if confinement.LANDLOCK not in layers:
        confinement.landlock_version = lambda: 0
    if confinement.SECCOMP not in layers:
        confinement.seccomp.install = lambda may_open: False
    outside = Outside()
    try:
        read_end, write_end = os.pipe()
        candidates = os.fork()
        if candidates == 0:
            isolated = confinement.NAMESPACES in layers and confinement.enter_namespaces()
            result = _try_all(outside)
            result["missing"] += [] if isolated else [confinement.NAMESPACES]
            os.write(write_end, json.dumps(result).encode())
            os._exit(0)
        os.close(write_end)
        with open(read_end) as answer:
            print(answer.read())
        os.waitpid(candidates, 0)
    finally:
        outside.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
