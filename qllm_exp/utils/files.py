"""Where things are kept between runs, writing a file as one step, and locking one."""

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/qllm_exp, or ~/.cache/qllm_exp."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qllm_exp"


def write_atomically(path: Path, text: str) -> None:
    """Make the file, or replace its content, at once or not at all: a reader sees the old text or the new one.

    The folder must be there. Several processes may write the same file at a time; the last one stays.
    """
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp makes files for their owner only
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # some shared file systems


def flock(handle: int, kind: int) -> bool | None:
    """Take a lock (fcntl.LOCK_SH or LOCK_EX, with LOCK_NB: without waiting) on an open file. It is freed when the file is closed.

    Returns:
        False when another process has it; None on a file system that has no locks.
    """
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return None
    return True
