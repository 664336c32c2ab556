"""What the kernel forbids a process that runs generated code (Linux), beside the limits on time and memory.

The layers are independent, so that a gap in one is closed by another. A system may lack any of them: containers often forbid
user namespaces, and old kernels have no Landlock. `enter_namespaces` is for the process that starts candidates, the other
functions are for the process of one candidate. They have no effect on other systems than Linux.
"""

import contextlib
import ctypes
import os
import signal
import sys
import sysconfig
from pathlib import Path

from qllm_exp.generation import seccomp

NAMESPACES, LANDLOCK, SECCOMP = "namespaces", "Landlock", "seccomp"
LAYERS = (NAMESPACES, LANDLOCK, SECCOMP)

_NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x08000000, 0x10000000, 0x40000000  # flags of unshare(2)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls of Landlock, equal on all processors
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3  # access rights of Landlock
_PARENT_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38  # options of prctl(2)
_CAPABILITIES_VERSION = 0x20080522  # of capset(2)


def enter_namespaces() -> bool:
    """Enter namespaces of its own: a network without interfaces, and no System V memory or queues of other processes.

    Call it before importing torch, because a process with threads cannot enter a user namespace. Other processes of the user
    can no longer be inspected from here, nor this process by them, and this process is the first to end if memory runs out.

    Returns:
        Whether the system allows the namespaces: to ordinary users with a user namespace, to root also without.
    """
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    libc = ctypes.CDLL(None)
    isolated = any(libc.unshare(user | _NEW_NETWORK | _NEW_IPC) == 0 for user in (_NEW_USER, 0))
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)
    return isolated


def confine_files() -> list[str]:
    """Restrict this thread to reading the files of Python and of the imported packages, and drop all privileges.

    It can no longer write files or start programs. With later versions of Landlock it cannot connect to other machines or
    send signals to other processes either. Threads that it starts later are restricted as well.

    Returns:
        The layers that the system does not have.
    """
    if sys.platform != "linux":
        return [LANDLOCK]
    libc = ctypes.CDLL(None)
    libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc.capset(ctypes.byref(header), ctypes.byref(sets))
    return [] if _restrict_files(libc) else [LANDLOCK]


def confine_calls(may_open: bool) -> list[str]:
    """Restrict all threads of this process to the system calls of the filter; call it last.

    Args:
        may_open: whether files may be opened for reading. Say no where Landlock does not restrict which.

    Returns:
        The layers that the system does not have.
    """
    return [] if seccomp.install(may_open) else [SECCOMP]


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 or less if it has none."""
    if sys.platform != "linux":
        return 0
    return int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1))


def _restrict_files(libc: ctypes.CDLL) -> bool:
    """Apply Landlock to this thread; return whether the kernel has it."""
    version = landlock_version()
    if version < 1:
        return False
    # Versions 2, 3 and 5 each added an access right for files, version 4 added TCP, and version 6 added signals.
    file_rights = 13 + sum(version >= newer for newer in (2, 3, 5))
    ruleset_bytes = 8
    if version >= 4:
        ruleset_bytes = 16
    if version >= 6:
        ruleset_bytes = 24
    ruleset = (ctypes.c_uint64 * 3)((1 << file_rights) - 1, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    rules = libc.syscall(_CREATE_RULESET, ruleset, ctypes.c_size_t(ruleset_bytes), 0)
    for folder in _readable_folders():
        with contextlib.suppress(OSError):
            rule = _FolderRule(_READ_FILE | _READ_FOLDER, os.open(folder, os.O_PATH | os.O_CLOEXEC))
            libc.syscall(_ADD_RULE, rules, 1, ctypes.byref(rule), 0)
            os.close(rule.folder)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    restricted = libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return bool(restricted)


def _readable_folders() -> set[str]:
    """Return the folders of Python, of its libraries and of the imported packages.

    Entries of sys.path are not enough of a bound: that of an editable installation is a whole checkout, with runs and keys.
    """
    libraries = {str(Path(prefix, name)) for prefix in (sys.prefix, sys.base_prefix) for name in ("lib", "lib64")}
    python = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    packages = {
        str(folder)
        for name, module in list(sys.modules.items())
        if "." not in name
        for folder in getattr(module, "__path__", ())
    }
    return libraries | python | packages


class _FolderRule(ctypes.Structure):
    """struct landlock_path_beneath_attr: the allowed access below a folder, which is an open descriptor."""

    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))
