"""The memory that is available: the least of what machine, control groups and Slurm job leave."""

from pathlib import Path

import pytest

from qllm_exp.utils.memory import Memory, available_memory, size_text

GB = 2**30


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 32 GB available, and a control group without a limit."""
    write(tmp_path / "proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/jobs/step\n")
    write(tmp_path / "sys/fs/cgroup/jobs/step/memory.max", "max\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_machines_memory_counts_where_there_is_no_limit(root: Path) -> None:
    assert available_memory(root) == Memory(32 * GB, "this machine")


def test_a_limit_of_a_group_above_counts_less_its_use_without_the_cache(root: Path) -> None:
    group = root / "sys/fs/cgroup/jobs"
    write(group / "memory.max", f"{8 * GB}\n")
    write(group / "memory.current", f"{3 * GB}\n")
    write(group / "memory.stat", f"anon 5\ninactive_file {GB}\n")
    assert available_memory(root) == Memory(6 * GB, "the control group of this process")


def test_the_first_version_of_control_groups_is_read_in_a_container_too(root: Path) -> None:
    """The path is that of the host, and does not exist here; the mount is the group of the container."""
    write(root / "proc/self/cgroup", "5:cpu:/\n4:hugetlb,memory:/host/path\n")
    group = root / "sys/fs/cgroup/memory"
    write(group / "memory.limit_in_bytes", str(4 * GB))
    write(group / "memory.usage_in_bytes", str(GB))
    assert available_memory(root) == Memory(3 * GB, "the control group of this process")
    write(group / "memory.limit_in_bytes", "9223372036854771712")
    assert available_memory(root) == Memory(32 * GB, "this machine")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, Memory(2 * GB, "this Slurm job")),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "4"}, Memory(4 * GB, "this Slurm job")),
        ({"SLURM_MEM_PER_NODE": "0"}, Memory(32 * GB, "this machine")),
    ],
)
def test_the_request_of_a_slurm_job_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Memory
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert available_memory(root) == expected


def test_what_is_not_known_is_none(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def test_sizes_are_readable() -> None:
    assert [size_text(size) for size in (33_240_000_000, 8_710_000, 512)] == ["33.2 GB", "8.7 MB", "0.5 kB"]
