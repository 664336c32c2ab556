"""The memory that this process may still allocate: of the machine, of its control groups, and of its Slurm job."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SLURM_JOB = "this Slurm job"  # the place whose size is all of its memory, not what is left of it
_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


class Memory(NamedTuple):
    """Memory of a place where a run trains.

    Attributes:
        size: bytes.
        place: what has it, for messages, e.g. 'this machine'.
    """

    size: int
    place: str


def available_memory(root: Path = Path("/")) -> Memory | None:
    """Return the memory that this process may still allocate, the least of all limits; None if it is not known.

    Args:
        root: folder with proc/ and sys/fs/cgroup/ of Linux.
    """
    return min([*_machine(root), *_control_groups(root), *_slurm_job()], default=None)


def size_text(size: int) -> str:
    """Return a number of bytes as text, e.g. '33.2 GB'."""
    unit, factor = next((pair for pair in _UNITS if size >= pair[1]), _UNITS[-1])
    return f"{size / factor:,.1f} {unit}"


def _machine(root: Path) -> Iterator[Memory]:
    for line in _lines(root / "proc" / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield Memory(int(line.split()[1]) * 1024, "this machine")


def _control_groups(root: Path) -> Iterator[Memory]:
    """The rest of the limit of each control group (version 1 and 2) that this process is in, the groups above included."""
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            usage, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = mount / path.strip("/")
        # Inside a container the path may be that of the host; then the mount itself is the container's group.
        for group in (folder, *folder.parents[: len(folder.relative_to(mount).parts)]):
            sizes = _lines(group / limit)
            if not sizes or not sizes[0].isdecimal() or int(sizes[0]) >= 2**60:  # 'max', or the largest number
                continue
            used = int(_lines(group / usage)[0]) - _statistic(group / "memory.stat", cache)
            yield Memory(max(0, int(sizes[0]) - used), "the control group of this process")


def _statistic(path: Path, name: str) -> int:
    """A value of a file of names and numbers; 0 if it is not there."""
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(f"{name} ")), 0)


def _slurm_job() -> Iterator[Memory]:
    """The memory that Slurm gives this process's job on this node."""
    with contextlib.suppress(KeyError, ValueError):
        yield Memory(int(os.environ["SLURM_MEM_PER_NODE"]) * 2**20 or 2**60, SLURM_JOB)  # 0: all of the node
    with contextlib.suppress(KeyError, ValueError):
        megabytes = int(os.environ["SLURM_MEM_PER_CPU"]) * int(os.environ["SLURM_CPUS_ON_NODE"])
        yield Memory(megabytes * 2**20, SLURM_JOB)


def _lines(path: Path) -> list[str]:
    """Lines of a file; [] if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
