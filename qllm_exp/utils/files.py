"""The cache folder, atomic writes, full disks, file locks, strict JSON, and reading of files that others wrote."""

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from qllm_exp.errors import nearest

MAX_BYTES = 16 * 2**20  # of a file that others wrote
MAX_JSON_DEPTH = 64
_MAX_INTEGER = 2**63 - 1


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/qllm_exp, or ~/.cache/qllm_exp if that variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qllm_exp"


def nearest_path(path: Path) -> str:
    """Return ' Did you mean PATH?' for the closest name beside a path that does not exist; '' if none is close or it exists."""
    try:
        names = [] if os.path.lexists(path) else os.listdir(path.parent)
    except OSError:
        return ""
    return nearest(str(path), [str(path.parent / name) for name in names if not name.startswith(".")])


def write_atomically(path: Path, content: str | bytes) -> None:
    """Create a file, or replace its content, in one step: a reader sees the old text or the new text, never a mixture.

    Several processes may write the same file at the same time; the last write wins. Like any new file, it gets the
    permissions that the umask leaves.

    Args:
        path: file to write; its folder must exist.
        content: new content; text is encoded as UTF-8.
    """
    # Not mkstemp, whose files only their owner can read: the umask cannot be read without changing it for all threads.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def is_disk_full(error: BaseException | None) -> bool:
    """Return True for the errors of a disk that takes no more data: full, over quota, read-only, or at its largest file size."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def file_system_time_ns(folder: Path) -> int:
    """Return the date that a file written in a folder now gets, in nanoseconds since 1970.

    On a network file system that is the clock of the server, whatever the clock of this machine says.

    Args:
        folder: an existing folder.

    Raises:
        OSError: no file can be created in the folder.
    """
    with tempfile.NamedTemporaryFile(prefix=".now.", dir=folder) as file:
        return os.stat(file.name).st_mtime_ns


_LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of some shared file systems


def flock(handle: int, kind: int) -> bool | None:
    """Lock an open file. Closing the file releases the lock.

    Args:
        handle: descriptor of the open file.
        kind: fcntl.LOCK_SH or fcntl.LOCK_EX; with fcntl.LOCK_NB the call does not wait.

    Returns:
        True once the lock is held, False if another process holds it, None if the file system does not support locks.
    """
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise
        return None
    return True


def read_regular_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file that anybody may have written: a pipe or a device does not block, a huge file is not read.

    Args:
        path: the file.
        limit: largest size, in bytes.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large; `strerror` says which.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)  # fstat would give the wrong size of a file that grows
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(path))
    return content


def strict_json(data: Any, indent: int | None = None) -> str:
    """Return data as JSON that every program reads: null stands for NaN and for infinity, which JSON does not have.

    Args:
        data: dictionaries, lists and tuples, texts, numbers, None.
        indent: spaces per level; None for a single line.
    """
    try:
        return json.dumps(data, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_null_for_non_finite(data), indent=indent, allow_nan=False)


def _null_for_non_finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _null_for_non_finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_null_for_non_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def parse_strict_json(content: bytes) -> Any:
    """Return JSON data that another program reads in the same way.

    Every key is unique within its object; numbers are finite, and integers fit 64 bits; text has no halves of surrogate
    pairs; lists and objects are nested at most MAX_JSON_DEPTH deep.

    Args:
        content: UTF-8 text, without a byte-order mark.

    Raises:
        ValueError: the content is anything else; the message says what.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    try:
        data = json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_bounded_integer,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH}") from None
    level = [data]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return data
    raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH}")


def _children(node: Any) -> list[Any]:
    """Return what a JSON value contains; raise ValueError for text that UTF-8 cannot encode."""
    if isinstance(node, str):
        if not node.isascii():
            try:
                node.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"a text contains half of a surrogate pair, {node[error.start]!a}") from None
        return []
    if isinstance(node, dict):
        return [*node, *node.values()]
    return node if isinstance(node, list) else []


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object (the `object_pairs_hook` of `json.loads`); raise ValueError if a key occurs twice."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:80]!a} occurs twice")
        content[key] = value
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:80]} is too large")
    return number


def _bounded_integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > _MAX_INTEGER:
        raise ValueError(f"the number {digits[:80]} does not fit 64 bits")
    return int(digits)
