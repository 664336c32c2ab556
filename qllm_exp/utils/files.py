"""The cache folder, atomic writes and file locks."""

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/qllm_exp, or ~/.cache/qllm_exp if that variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qllm_exp"


def write_atomically(path: Path, text: str) -> None:
    """Create a file, or replace its content, in one step: a reader sees the old text or the new text, never a mixture.

    Several processes may write the same file at the same time; the last write wins.

    Args:
        path: file to write; its folder must exist.
        text: new content.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp creates files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


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
