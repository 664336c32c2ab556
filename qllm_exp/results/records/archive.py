"""An archive of runs: a folder or a .zip file that `results export` writes, with checksums, read back as run directories.

dataset.json   format, and size and SHA-256 of every other file     README.md   the data card
runs.csv, evaluations.csv, and .parquet of both if pyarrow is installed     marl_eval.json
runs/RUN/      the run directories     runs/SWEEP/sweep.json   the sweeps
"""

import hashlib
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.runs.json_files import parse_object
from qllm_exp.utils.files import cache_folder, read_regular_file, strict_json
from qllm_exp.utils.text import excerpt

MANIFEST, RUNS = "dataset.json", "runs"
ZIP = ".zip"
_FORMAT = "qllm_exp dataset 1"
_MAX_FILE_BYTES = 2**30  # of a file in an archive
# What zipfile raises for damaged files: errors of its own, of the compressions, and of its reading beyond the end of a field.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, IndexError)
_AGAIN = "The archive was changed or copied incompletely: copy it again, or export again."

ReadFile = Callable[[str], bytes]  # from the name of a file in the archive


def is_archive(path: Path) -> bool:
    """Return whether a path is a .zip file or a folder with a manifest."""
    return (is_zip(path) and path.is_file()) or (path / MANIFEST).is_file()


def is_zip(path: Path) -> bool:
    """Return whether a path has the ending of a .zip file."""
    return path.suffix.lower() == ZIP


def open_archive(path: Path) -> Path:
    """Return the folder of the run directories of an archive, after all checksums were compared.

    A .zip file is unpacked into the cache folder, once for each content.

    Raises:
        UserError: the archive is damaged, or not one of this package.
    """
    try:
        if is_zip(path) and path.is_file():
            return _unpack(path) / RUNS
        _verify(path, lambda name: read_regular_file(path / name, _MAX_FILE_BYTES), _files_below(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}. {_AGAIN}") from None
    return path / RUNS


def write_manifest(folder: Path) -> None:
    """Write dataset.json for the files that a folder has."""
    entries = {}
    for name in sorted(_files_below(folder)):
        content = (folder / name).read_bytes()
        entries[name] = {"bytes": len(content), "sha256": _digest(content)}
    (folder / MANIFEST).write_text(strict_json({"format": _FORMAT, "files": entries}, indent=1) + "\n")


def _unpack(path: Path) -> Path:
    """Unpack a .zip file, and return the folder."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    folder = cache_folder() / "archives" / digest.hexdigest()[:24]
    if (folder / MANIFEST).exists():  # it was moved to its place as a whole
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}

            def read(name: str) -> bytes:
                if sizes.get(name, 0) > _MAX_FILE_BYTES:
                    raise UserError(f"{path}: {excerpt(name)} is larger than {_MAX_FILE_BYTES:,} bytes.")
                return archive.read(name)

            unpacked = Path(scratch) / "archive"
            for name in _verify(path, read, sizes):
                target = unpacked / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(read(name))
            try:
                os.replace(unpacked, folder)
            except OSError:  # another process has just unpacked the same archive
                if not (folder / MANIFEST).exists():
                    raise
    except _DAMAGED as error:
        raise UserError(f"{path} is not a readable .zip file: {excerpt(error)}. {_AGAIN}") from None
    return folder


def _verify(path: Path, read: ReadFile, present: Iterable[str]) -> list[str]:
    """Return the names of the files of an archive, the manifest first.

    Args:
        path: the archive, for messages.
        read: reads a file of it.
        present: names of the files that it has.

    Raises:
        UserError: there is no manifest, or a file is missing, superfluous or changed.
        OSError: a file cannot be read.
    """
    names = set(present)
    if MANIFEST not in names:
        raise UserError(f"{path} has no {MANIFEST}, so it is not an archive of `qllm-exp results export`.")
    content = parse_object(path / MANIFEST, read(MANIFEST))
    files = content.get("files")
    if content.get("format") != _FORMAT or not isinstance(files, dict) or not all(map(_is_safe, files)):
        raise UserError(f"{path}: {MANIFEST} is not of the format {_FORMAT!r}. {_AGAIN}")
    differing = sorted((names - {MANIFEST}) ^ set(files))
    if differing:
        problem = "is not listed in" if differing[0] in names else "is listed in"
        absent = "" if differing[0] in names else ", but missing"
        raise UserError(f"{path}: {excerpt(differing[0])} {problem} {MANIFEST}{absent}. {_AGAIN}")
    for name, entry in files.items():
        if not isinstance(entry, dict) or _digest(read(name)) != entry.get("sha256"):
            raise UserError(f"{path}: the checksum of {excerpt(name)} differs from that in {MANIFEST}. {_AGAIN}")
    return [MANIFEST, *files]


def _files_below(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()]


def _is_safe(name: Any) -> bool:
    """Whether the name of a file leads to a place within the archive."""
    parts = PurePosixPath(str(name)).parts
    return bool(parts) and "\\" not in str(name) and ".." not in parts and not PurePosixPath(str(name)).is_absolute()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
