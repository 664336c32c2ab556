"""What the layers of the sandbox forbid, alone and together, as root and as an ordinary user."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import escape_attempts
import pytest

from qllm_exp.generation.confinement import LANDLOCK, LAYERS, NAMESPACES, SECCOMP, landlock_version
from qllm_exp.generation.seccomp import PROCESSORS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in PROCESSORS, reason="the layers exist on Linux only"
)

# The table of the guide to credit-assignment functions, section 'Sandbox'. With seccomp nothing may succeed at all.
PREVENTED = {
    NAMESPACES: {"TCP", "abstract socket", "shared memory", "semaphore", "queue"},
    LANDLOCK: {
        "read a file", "write a file", "create a file", "link", "symlink", "mkdir", "mkfifo", "rename", "unlink",
        "environment of a process", "memory of a process", "ptrace", "mount", "execute", "execute from memory",
    },
}  # fmt: skip
PREVENTED_BY_LATER_LANDLOCK = {3: {"truncate a file"}, 4: {"TCP"}, 6: {"abstract socket", "kill", "pidfd"}}
EFFECTIVE = {  # without any layer, on every Linux: the attempts are real ones
    "read a file", "write a file", "create a file", "chmod", "utime", "rename", "unlink", "TCP", "socket with a path", "kill",
    "prlimit", "fork", "execute",
}  # fmt: skip


def attempt(folder: Path, user: str, layers: tuple[str, ...]) -> dict[str, list[str]]:
    """Run all attempts under some layers."""
    folder.chmod(0o777)
    command = [sys.executable, escape_attempts.__file__, user, *layers]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    answer: dict[str, list[str]] = json.loads(process.stdout)
    return answer


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that all users can reach; pytest's own is closed to others."""
    closed = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001 and os.access(folder, os.W_OK)]
    modes = {folder: folder.stat().st_mode for folder in closed}
    for folder in closed:
        folder.chmod(modes[folder] | 0o001)
    yield tmp_path
    for folder, mode in modes.items():
        folder.chmod(mode)


@pytest.mark.parametrize("user", ["same", "ordinary"])
@pytest.mark.parametrize(
    "layers",
    [
        LAYERS,
        (LANDLOCK, SECCOMP),
        (NAMESPACES, SECCOMP),
        (NAMESPACES, LANDLOCK),
        (SECCOMP,),
        (LANDLOCK,),
        (NAMESPACES,),
        (),
    ],
    ids=" ".join,
)
def test_each_layer_prevents_what_the_table_says(open_folder: Path, user: str, layers: tuple[str, ...]) -> None:
    if user == "ordinary" and os.getuid() != 0:
        pytest.skip("the tests run as an ordinary user already")
    answer = attempt(open_folder, user, layers)
    achieved, effective = set(answer["achieved"]), set(layers) - set(answer["missing"])
    prevented = set().union(*(PREVENTED.get(layer, set()) for layer in effective))
    if LANDLOCK in effective:
        prevented |= {
            name
            for version, names in PREVENTED_BY_LATER_LANDLOCK.items()
            for name in names
            if landlock_version() >= version
        }
    assert not achieved & prevented
    if SECCOMP in effective:
        assert not achieved and len(answer["tried"]) > 40
    if not effective:
        assert achieved >= EFFECTIVE
