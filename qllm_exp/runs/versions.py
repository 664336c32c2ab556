"""The software and the machine that a run uses, for versions.json."""

import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

MACHINE_KEYS = ("host", "system", "network_kernel")  # keys of versions.json that name a machine, or a path on it

_LIBRARIES = ("torch", "numpy", "hydra-core", "omegaconf", "vmas", "gfootball", "pettingzoo", "mpe2")


def versions() -> dict[str, str]:
    """Return the versions of package, commit, Python and installed libraries, and processor, system and host."""
    software = {"qllm_exp": _version("qllm_exp"), "commit": _commit(), "python": sys.version.split()[0]}
    for library in _LIBRARIES:
        version = _version(library)
        if version:
            software[library] = version
    return software | {"machine": platform.machine(), "system": platform.platform(), "host": socket.gethostname()}


def _version(library: str) -> str:
    """Return the installed version of a library, '' if it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Return the git commit of the package, with '+changes' if tracked files differ from it; '' outside a checkout."""
    try:
        if not _git("ls-files", "--error-unmatch", Path(__file__).name):
            return ""
        commit = _git("rev-parse", "HEAD")
        if commit and _git("status", "--porcelain", "--untracked-files=no"):
            return f"{commit}+changes"
        return commit
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _git(*arguments: str) -> str:
    """Return the output of a git command in the folder of this file, '' if it fails."""
    folder = Path(__file__).resolve().parent
    process = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    return process.stdout.strip() if process.returncode == 0 else ""
