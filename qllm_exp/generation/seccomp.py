"""A filter of system calls for a process that runs generated code (Linux, seccomp; x86_64 and aarch64).

The filter is a list of allowed calls: whatever is not on it fails with an error and has no effect. Allowed is what tensor
arithmetic and lazy imports need: to read files, to use memory, to write to descriptors that are open already, and to end. A
deny-list would have to grow with every new version of the kernel.

A forbidden call returns an error instead of killing the process. So the libraries take their other way, e.g. `clone` where
`clone3` is unknown, and a version of the C library that tries a new call refuses no honest function. Calls of the oldest table
return EPERM, newer calls ENOSYS ("this kernel does not have it"), which is what the C library expects of them.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import NamedTuple

_NO_NEW_PRIVS = 38  # option of prctl(2)
_SET_MODE_FILTER, _SYNCHRONISE_THREADS = 1, 1  # operation and flag of seccomp(2)
_FIRST_UNIFIED = (
    424  # from this number on a call has the same number on all processors, and may be unknown to the C library
)

# Instructions of the Berkeley packet filter: load a word of the call's data, jump if equal, at least, or if bits are set, return.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000  # values to return; the number of the error is added to the second
_NUMBER, _PROCESSOR, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC  # flags of open(2) that change a file


class Processor(NamedTuple):
    """How a processor identifies itself and numbers its system calls.

    Attributes:
        audit: its number in struct seccomp_data.
        seccomp: number of the call seccomp(2).
        column: column of the table of calls.
    """

    audit: int
    seccomp: int
    column: int


PROCESSORS = {"x86_64": Processor(0xC000003E, 317, 0), "aarch64": Processor(0xC00000B7, 277, 1)}

# Numbers on x86_64 and aarch64; None where the processor does not have the call.
CALLS: dict[str, tuple[int | None, int | None]] = {
    # descriptors that are open
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "close_range": (436, 436),
    # reading of folders and of properties of files
    "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43),
    "fstatfs": (138, 44), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getcwd": (79, 17),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233), "mincore": (27, 232),
    # signals to itself, time, and what a process asks about itself
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getcpu": (309, 168),
    "getrusage": (98, 165), "getrlimit": (97, 163), "sysinfo": (99, 179), "uname": (63, 160), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getrandom": (318, 278),
    # threads that exist, and the end
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283), "exit": (60, 93),
    "exit_group": (231, 94),
    # allowed with some arguments only, see _CONDITIONS
    "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261),
}  # fmt: skip


def _conditions(pid: int, may_open: bool) -> dict[str, list[bytes]]:
    """Return the instructions that decide by a call's arguments, for each call that is allowed with some arguments only."""
    return {
        "open": _if_without_bits(1, _WRITING) if may_open else [_return_error(errno.EPERM)],
        "openat": _if_without_bits(2, _WRITING) if may_open else [_return_error(errno.EPERM)],
        # Duplicates and flags of descriptors. Other commands lock files and send signals.
        "fcntl": _if_equal(1, 0, 1, 2, 3, 1030),
        # Whether a descriptor is a terminal, its width, and its close-on-exec flag.
        "ioctl": _if_equal(1, 0x5401, 0x802C542A, 0x5413, 0x5450, 0x5451),
        "kill": _if_equal(0, pid),
        "tgkill": _if_equal(0, pid),
        # The limits of this process itself, without new values.
        "prlimit64": _if_zero(0, 2),
    }


def install(may_open: bool) -> bool:
    """Restrict all threads of this process to the allowed calls, for ever.

    Args:
        may_open: whether files may be opened for reading. Lazy imports need it; few functions cause any.

    Returns:
        Whether the filter is in place: False on other systems and processors, and on kernels without seccomp.
    """
    processor = PROCESSORS.get(platform.machine())
    if sys.platform != "linux" or processor is None or sys.maxsize < 2**32:
        return False
    filter_code = build(processor, os.getpid(), may_open)
    instructions = ctypes.create_string_buffer(filter_code, len(filter_code))
    program = _FilterProgram(len(filter_code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    result = libc.syscall(processor.seccomp, _SET_MODE_FILTER, _SYNCHRONISE_THREADS, ctypes.byref(program))
    return bool(result == 0)


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog: the number of instructions and their address."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def build(processor: Processor, pid: int, may_open: bool) -> bytes:
    """Build the filter.

    Args:
        processor: the processor that it is for.
        pid: the process that may send signals to itself.
        may_open: whether files may be opened for reading.

    Returns:
        The instructions, 8 bytes each.
    """
    code = [_load(_PROCESSOR), _jump(_JUMP_EQUAL, processor.audit, 1, 0), _return_error(errno.ENOSYS), _load(_NUMBER)]
    conditions = _conditions(pid, may_open)
    for name, numbers in CALLS.items():
        number = numbers[processor.column]
        if number is None:
            continue
        block = conditions.get(name, [_return(_ALLOW)])
        code += [_jump(_JUMP_EQUAL, number, 0, len(block)), *block]
    code += [_jump(_JUMP_AT_LEAST, _FIRST_UNIFIED, 0, 1), _return_error(errno.ENOSYS), _return_error(errno.EPERM)]
    return b"".join(code)


def _if_without_bits(argument: int, bits: int) -> list[bytes]:
    """Allow the call if none of these bits is set in an argument of 32 bits."""
    load = _load(_ARGUMENTS + 8 * argument)
    return [load, _jump(_JUMP_BITS, bits, 1, 0), _return(_ALLOW), _return_error(errno.EPERM)]


def _if_equal(argument: int, *values: int) -> list[bytes]:
    """Allow the call if an argument of 32 bits has one of these values."""
    code = [_load(_ARGUMENTS + 8 * argument)]
    for value in values:
        code += [_jump(_JUMP_EQUAL, value, 0, 1), _return(_ALLOW)]
    return [*code, _return_error(errno.EPERM)]


def _if_zero(*arguments: int) -> list[bytes]:
    """Allow the call if these arguments of 64 bits are all 0."""
    code = []
    for offset in (_ARGUMENTS + 8 * argument + half for argument in arguments for half in (0, 4)):
        code += [_load(offset), _jump(_JUMP_EQUAL, 0, 1, 0), _return_error(errno.EPERM)]
    return [*code, _return(_ALLOW)]


def _load(offset: int) -> bytes:
    """Load a word of the call's data."""
    return struct.pack("HBBI", _LOAD, 0, 0, offset)


def _jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    """Skip `if_true` or `if_false` instructions, depending on the comparison with the loaded word."""
    return struct.pack("HBBI", kind, if_true, if_false, value)


def _return(value: int) -> bytes:
    """Decide the call."""
    return struct.pack("HBBI", _RETURN, 0, 0, value)


def _return_error(number: int) -> bytes:
    """Let the call fail with this error."""
    return _return(_FAIL | number)
