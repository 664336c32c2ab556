"""What a run was run with."""

import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

OF_THE_MACHINE = ("host", "system", "network_kernel")  # keys of versions.json that name a machine, or a path on it

_LIBRARIES = ("torch", "numpy", "hydra-core", "omegaconf", "vmas", "gfootball", "pettingzoo", "mpe2")


def versions() -> dict[str, str]:
    """Package, commit, Python, libraries, processor and host, as text."""
    found = {"qllm_exp": _version("qllm_exp"), "commit": _commit(), "python": sys.version.split()[0]}
    found |= {name: version for name in _LIBRARIES if (version := _version(name))}
    return found | {"machine": platform.machine(), "system": platform.platform(), "host": socket.gethostname()}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The git commit that the package is run from, with '+changes' when files differ from it; '' outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        inside = git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD") if inside else ""
        return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.TimeoutExpired):
        return ""
