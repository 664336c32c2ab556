"""The software and the hardware that a run uses, for versions.json, and how they changed where the run was resumed.

versions.json has the versions of the run's last process. If a run was resumed with other versions, it also has `segments`: for each
part of the run the environment step at which it starts and its versions, without those that name a machine.
"""

import functools
import hashlib
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from qllm_exp.utils.text import excerpt

SEGMENTS = "segments"  # key of versions.json
# Keys that name a machine, or a path on it (the last one up to 0.2).
MACHINE_KEYS = ("host", "system", "network_kernel")

_PACKAGE = Path(__file__).resolve().parents[1]
# Modules and subpackages that determine the numbers of a run that has begun. Its configuration and its
# credit-assignment function are in its directory, so conf/, prompts and bundled functions are not among them.
_TRAINING_PACKAGES = (
    *("errors.py", "experiment.py"),
    *("algorithms", "config", "credit", "envs", "mixers", "networks", "runs", "training", "utils"),
)
_SOURCE_SUFFIXES = (".py", ".cpp")
_LIBRARIES = ("torch", "numpy", "hydra-core", "omegaconf")
_START = "env_step"  # key of a segment
# Keys of what changes no number of a run that has begun.
_NOT_COMPARED = (*MACHINE_KEYS, "hydra-core", "omegaconf", SEGMENTS, _START)
_NAMES_OF_SOURCE = ("qllm_exp", "commit")  # they may differ although the files that determine the numbers are the same
_MAX_SEGMENTS = 1_000  # that are read; anybody may have written the file


@functools.cache
def software() -> Mapping[str, str]:
    """Return the versions of package, commit, training source, Python and installed libraries.

    Read once per process: files that are edited later are not those that it has imported.
    """
    versions = {"qllm_exp": library_version("qllm_exp"), "commit": _commit(), "source": source_hash(training_files())}
    versions["python"] = sys.version.split()[0]
    return versions | {name: version for name in _LIBRARIES if (version := library_version(name))}


def hardware() -> dict[str, str]:
    """Return the processor, with the instruction set that torch uses on it, and the names of system and host."""
    import torch

    processor = f"{_vendor()} {torch.backends.cpu.get_cpu_capability()}".strip()
    return {
        "machine": platform.machine(),
        "processor": processor,
        "system": platform.platform(),
        "host": socket.gethostname(),
    }


def library_version(name: str) -> str:
    """Return the installed version of a library, '' if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def training_files() -> list[Path]:
    """Return the source files of the package that determine the numbers of a run that has begun."""
    files: list[Path] = []
    for name in _TRAINING_PACKAGES:
        path = _PACKAGE / name
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _SOURCE_SUFFIXES]
    return [file for file in files if file.is_file()]  # an editor's lock is a link to nowhere


def source_hash(files: Iterable[Path], folder: Path = _PACKAGE) -> str:
    """Return the first digits of the hash of source files. A wheel and a checkout with equal files have equal hashes.

    Args:
        files: the files, in any order.
        folder: contains them; their paths below it count.
    """
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        with open(file, "rb") as content:
            digest.update(f"{name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:10]


def _vendor() -> str:
    """Return the maker of an x86 processor, for which numerical libraries choose their code; '' if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


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


# What changed where a run was resumed


def segments(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of a run with their versions, in order: 'env_step' is the environment step at which each starts.

    Args:
        record: content of versions.json; anything invalid in it is left out.
    """
    listed = record.get(SEGMENTS)
    if isinstance(listed, list):
        valid = [segment for segment in listed[:_MAX_SEGMENTS] if _is_segment(segment)]
        if valid:
            return valid
    return [{_START: 0, **_without_machine(record)}] if record else []


def _is_segment(segment: Any) -> bool:
    return isinstance(segment, dict) and type(segment.get(_START)) is int


def _without_machine(versions: Mapping[str, Any]) -> dict[str, Any]:
    return {name: version for name, version in versions.items() if name not in (*MACHINE_KEYS, SEGMENTS)}


def resumed_record(record: Mapping[str, Any], versions: Mapping[str, str], env_step: int) -> dict[str, Any]:
    """Return the content of versions.json of a run that is resumed.

    Args:
        record: content of versions.json before; {} if it is missing.
        versions: versions of this process.
        env_step: environment step of the checkpoint. What later segments trained is lost, so they are dropped.
    """
    first, *later = segments(record) or [{_START: 0, **_without_machine(versions)}]
    kept = [first, *(segment for segment in later if segment[_START] < env_step)]
    if differences(kept[-1], versions):
        kept.append({_START: env_step, **_without_machine(versions)})
    return {**versions, SEGMENTS: kept} if len(kept) > 1 else dict(versions)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return {'torch': '2.6.0 -> 2.7.0'} for the versions that differ, without those that change no number.

    Args:
        before: versions of a part of a run. A name that it lacks, as a run of an earlier release may, does not count.
        after: versions of the next part.
    """
    return {
        name: f"{_short(before[name])} -> {_short(version)}"
        for name, version in after.items()
        if name in before and before[name] != version and name not in _NOT_COMPARED
    }


def _short(version: Any) -> str:
    """Return a version as text, a commit with its first digits alone."""
    text = str(version)
    commit, plus, marks = text.partition("+")
    if len(commit) == 40 and all(digit in "0123456789abcdef" for digit in commit):
        text = commit[:10] + plus + marks
    return excerpt(text, 60) or "none"


def changes(record: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each resumption that may have changed numbers: its environment step, and the `differences` there.

    Another commit whose training files are the same is not among them.

    Args:
        record: content of versions.json.
    """
    for before, after in pairwise(segments(record)):
        differing = differences(before, after)
        if before.get("source", "") == after.get("source"):
            differing = {name: change for name, change in differing.items() if name not in _NAMES_OF_SOURCE}
        if differing:
            yield after[_START], differing
