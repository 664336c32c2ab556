"""The filter of system calls, run by an interpreter of its instructions, for processors that this machine does not have too."""

import errno
import os
import struct

import pytest

from qllm_exp.generation.seccomp import CALLS, PROCESSORS, build

PID = 4321
ALLOWED = 0
FORBIDDEN = {  # numbers on x86_64 and aarch64
    "socket": (41, 198), "connect": (42, 203), "socketpair": (53, 199), "sendmsg": (46, 211), "clone": (56, 220),
    "execve": (59, 221), "ptrace": (101, 117), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "utimensat": (280, 88), "unlinkat": (263, 35), "renameat2": (316, 276), "truncate": (76, 45), "ftruncate": (77, 46),
    "setxattr": (188, 5), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "prctl": (157, 167), "seccomp": (317, 277), "bpf": (321, 280),
    "memfd_create": (319, 279), "execveat": (322, 281), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "mount": (165, 40), "unshare": (272, 97), "setns": (308, 268),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "inotify_init1": (294, 26), "setrlimit": (160, 164),
    "setitimer": (38, 103), "sched_setaffinity": (203, 122), "setpriority": (141, 140), "setresuid": (117, 147),
    "kexec_load": (246, 104), "reboot": (169, 142), "ioprio_set": (251, 30), "name_to_handle_at": (303, 264),
}  # fmt: skip
NEWER = {"pidfd_send_signal": 424, "io_uring_setup": 425, "clone3": 435, "openat2": 437, "process_madvise": 440}


def decide(code: bytes, number: int, *arguments: int, audit: int) -> int:
    """Return what the filter does with a call: 0 if it is allowed, else the number of the error."""
    data = struct.pack("=iIQ6Q", number, audit, 0, *(*arguments, *[0] * 6)[:6])
    instructions = list(struct.iter_unpack("HBBI", code))
    word = position = 0
    while True:
        kind, if_true, if_false, value = instructions[position]
        position += 1
        if kind == 0x20:  # load a word
            (word,) = struct.unpack_from("=I", data, value)
        elif kind == 0x06:  # return
            assert value == 0x7FFF0000 or value >> 16 == 5
            return ALLOWED if value == 0x7FFF0000 else value & 0xFFFF
        else:
            true = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[kind]
            position += if_true if true else if_false


@pytest.mark.parametrize("name", PROCESSORS)
def test_calls_without_conditions(name: str) -> None:
    processor = PROCESSORS[name]
    code = build(processor, PID, may_open=True)
    conditional = {"open", "openat", "fcntl", "ioctl", "kill", "tgkill", "prlimit64"}
    for call in CALLS.keys() - conditional:
        number = CALLS[call][processor.column]
        assert number is None or decide(code, number, audit=processor.audit) == ALLOWED, call
    for call, numbers in FORBIDDEN.items():
        number = numbers[processor.column]
        assert number is None or decide(code, number, audit=processor.audit) == errno.EPERM, call
    for call, number in NEWER.items():
        assert decide(code, number, audit=processor.audit) == errno.ENOSYS, call
    assert decide(code, 5000, audit=processor.audit) == errno.ENOSYS


@pytest.mark.parametrize("name", PROCESSORS)
def test_conditions_on_arguments(name: str) -> None:
    processor = PROCESSORS[name]
    code = build(processor, PID, may_open=True)

    def allowed(call: str, *arguments: int) -> bool:
        number = CALLS[call][processor.column]
        assert number is not None
        return decide(code, number, *arguments, audit=processor.audit) == ALLOWED

    assert allowed("openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC)
    for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_ACCMODE, os.O_TMPFILE | os.O_RDWR):
        assert not allowed("openat", 0, 0, flag)
    assert allowed("kill", PID, 9) and allowed("tgkill", PID, 7, 6)
    for process in (0, 1, PID + 1, 2**32 - 1):
        assert not allowed("kill", process, 9) and not allowed("tgkill", process, process, 9)
    assert allowed("prlimit64", 0, 7, 0) and not allowed("prlimit64", PID + 1, 7, 0)
    for new_limit in (1, 1 << 32):  # either half of the address
        assert not allowed("prlimit64", 0, 7, new_limit)
    assert allowed("fcntl", 3, 1) and not allowed("fcntl", 3, 8)  # F_GETFD and F_SETOWN, which sends signals
    assert allowed("ioctl", 3, 0x5401) and not allowed(
        "ioctl", 3, 0x5412
    )  # TCGETS and TIOCSTI, which types into a terminal


@pytest.mark.parametrize("name", PROCESSORS)
def test_no_file_is_opened_where_nothing_restricts_which(name: str) -> None:
    processor = PROCESSORS[name]
    code = build(processor, PID, may_open=False)
    for call in ("open", "openat"):
        number = CALLS[call][processor.column]
        assert number is None or decide(code, number, audit=processor.audit) == errno.EPERM


def test_calls_of_another_instruction_set_fail() -> None:
    code = build(PROCESSORS["x86_64"], PID, may_open=True)
    assert decide(code, 4, audit=0x40000003) == errno.ENOSYS  # write of the 32-bit calls, which is stat of the others
    assert decide(code, 0x40000000 + 1, audit=PROCESSORS["x86_64"].audit) == errno.ENOSYS  # x32
