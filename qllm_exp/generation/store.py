"""Store of generated functions: one file per key, shared by all processes and machines that see the folder.

    KEY.json          the stored function; written in one step, never changed afterwards
    KEY.journal       answers paid for by a generation that has not finished; removed when it succeeds
    KEY.claim.1       which process generates it (process, host, token); the highest number counts; touched as a heartbeat
    KEY.failed        why the last generation failed, for the processes that waited for it

One process generates a function, the others wait for its file. When its process is dead, whichever process creates the claim
with the next number first takes over, and finds the earlier answers in the journal. On the same machine, the system says
whether a process is alive. Elsewhere it counts as dead if its claim has not been touched for `STALE_S`: by the date of the
file, and then for `CONFIRM_BEATS` heartbeats while this process watches, since clocks change; or, whatever its date, for
`STALE_S` while this process watches.

On a network file system this relies on two guarantees of NFS version 3 and later: link() is atomic, so only one process
creates a name; and opening a file brings its attributes up to date. Clocks need not agree: dates are compared with the date
of a file that is touched on the same server.
"""

import contextlib
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from qllm_exp.credit.stored_function import StoredFunction, load
from qllm_exp.errors import UserError, nearest
from qllm_exp.utils.files import file_system_time_ns, write_atomically

log = logging.getLogger(__name__)

BEAT_S, STALE_S, POLL_S = 10.0, 180.0, 0.5
CONFIRM_BEATS = 3


class Store:
    """A folder of generated functions.

    Args:
        folder: created with the first function.
        beat_s: seconds between two heartbeats of a claim.
        stale_s: seconds without a heartbeat after which a claim is stale.
        poll_s: mean seconds between two looks of a waiting process.
    """

    def __init__(self, folder: Path, beat_s: float = BEAT_S, stale_s: float = STALE_S, poll_s: float = POLL_S) -> None:
        self.folder, self._beat_s, self._stale_s, self._poll_s = folder, beat_s, stale_s, poll_s
        self._watched: dict[Path, tuple[int, float]] = {}  # date of a claim, and since when this process has seen it

    def path(self, key: str) -> Path:
        """Return the file of a key, which may not exist."""
        return self.folder / f"{key}.json"

    def journal(self, key: str) -> Path:
        """Return the journal of a key, which may not exist."""
        return self.folder / f"{key}.journal"

    def get(self, key: str) -> StoredFunction | None:
        """Load the function of a key, or return None if there is none; raises a UserError for a file that was edited."""
        return load(self.path(key)) if os.path.lexists(self.path(key)) else None

    def find(self, prefix: str) -> Path:
        """Return the file of the only function whose key starts with `prefix`.

        Raises:
            UserError: no key starts with `prefix`, or more than one does.
        """
        matches = [path for path in self.paths() if path.stem.startswith(prefix)]
        if len(matches) != 1:
            functions = "No stored function" if not matches else f"{len(matches)} stored functions"
            verb = "have" if len(matches) > 1 else "has"
            hint = "" if matches else nearest(prefix, [path.stem[:12] for path in self.paths()])
            raise UserError(
                f"{functions} in {self.folder} {verb} a key that starts with {prefix!r}.{hint} "
                "To list all keys: python -m qllm_exp.tfcaf list"
            )
        return matches[0]

    def paths(self) -> list[Path]:
        """Return the files of all functions, oldest first."""
        return sorted(self.folder.glob("*.json"), key=lambda path: path.lstat().st_mtime)

    def get_or_generate(
        self,
        key: str,
        generate: Callable[[], StoredFunction],
        on_wait: Callable[[str], None] = lambda owner: None,
    ) -> StoredFunction:
        """Load the function of a key; generate it first if it does not exist.

        Only one process calls `generate`, while the others wait for the result.

        Args:
            key: the key of the function.
            generate: generates the function.
            on_wait: called once if this process waits, with a description of the process that it waits for.

        Raises:
            UserError: raised by `generate`, in this process or in the one that it waited for.
        """
        token, has_reported = "", False
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            stored = self.get(key)
            if stored is not None:
                return stored
            self._raise_failure(key, token)
            with self._explained():
                claim = self._claim(key)
            if claim is None:
                owner = self._owner(key)
                token = owner.get("token", token)
                if owner and not has_reported:
                    on_wait(f"process {owner.get('pid', '?')} on {owner.get('host', '?')}")
                    has_reported = True
                time.sleep(self._poll_s * random.uniform(0.5, 1.5))
                continue
            with self._held(key, claim, token):
                stored = self.get(key)  # it may have appeared between the look and the claim
                if stored is not None:
                    return stored
                return self._publish(key, generate())

    def add(self, key: str, function: StoredFunction) -> Path:
        """Store a function that was not generated here, and return its file. An existing file of the key is kept."""
        self._publish(key, function)
        return self.path(key)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the file system into a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.folder}: {error.strerror or error}. Free space there, or choose another folder with "
                "tfcaf.cache=..."
            ) from None

    def _publish(self, key: str, function: StoredFunction) -> StoredFunction:
        """Write the file of a key in one step unless it exists, and load it."""
        temporary = self.folder / f".{key}.{uuid.uuid4().hex}"
        with self._explained(), _removed_afterwards(temporary):
            function.save(temporary)
            with contextlib.suppress(FileExistsError):  # an earlier file is kept
                os.link(temporary, self.path(key))
        return load(self.path(key))

    def _claims(self, key: str) -> list[int]:
        """Return the numbers of all claims of a key, in order."""
        names = (path.name.rpartition(".")[2] for path in self.folder.glob(f"{key}.claim.*"))
        return sorted(int(number) for number in names if number.isdigit())

    def _owner(self, key: str) -> dict[str, str]:
        """Return the process that holds the highest claim; empty if there is no claim."""
        numbers = self._claims(key)
        return _read_json(self.folder / f"{key}.claim.{numbers[-1]}") if numbers else {}

    def _claim(self, key: str) -> "_Claim | None":
        """Create the next claim; return None if a live process holds one, or another process was faster."""
        numbers = self._claims(key)
        if numbers and not self._is_abandoned(self.folder / f"{key}.claim.{numbers[-1]}"):
            return None
        temporary = self.folder / f".{key}.{uuid.uuid4().hex}"
        owner = {
            "pid": str(os.getpid()),
            "host": socket.gethostname(),
            "token": uuid.uuid4().hex,
            "machine": _machine(),
            "start": _start_time(os.getpid()) or "",
        }
        number = numbers[-1] + 1 if numbers else 1
        claim = self.folder / f"{key}.claim.{number}"
        with _removed_afterwards(temporary):
            temporary.write_text(json.dumps(owner))
            try:
                os.link(temporary, claim)
            except FileExistsError:
                return None
        return _Claim(claim, number, owner["token"])

    def _is_abandoned(self, claim: Path) -> bool:
        """Whether the process that holds a claim is dead, see the description of the module."""
        owner = _read_json(claim)
        pid, machine = owner.get("pid", ""), _machine()
        if machine and owner.get("machine") == machine and pid.isdecimal() and len(pid) < 10:
            start = _start_time(int(pid))
            if start is not None:
                return start != owner.get("start")
        try:
            with open(claim, "rb") as file:
                date = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:  # the claim was just released; the next look decides
            return False
        now = time.monotonic()
        if self._watched.get(claim, (0, 0.0))[0] != date:
            self._watched[claim] = date, now
        watched_s = now - self._watched[claim][1]
        return watched_s > self._stale_s or (
            watched_s > CONFIRM_BEATS * self._beat_s and file_system_time_ns(self.folder) - date > self._stale_s * 1e9
        )

    @contextlib.contextmanager
    def _held(self, key: str, claim: "_Claim", waited_token: str) -> Iterator[None]:
        """Keep a claim alive inside the `with` block, then release it. A failure is stored for the waiting processes.

        Earlier claims are released with it. A later one is not: it belongs to the process that took over from this one.

        Args:
            key: the key.
            claim: the claim of this process.
            waited_token: the claim that this process has waited for; '' for none. If its generation has failed meanwhile,
                that error is raised.
        """
        done = threading.Event()

        def touch_regularly() -> None:
            while not done.wait(self._beat_s):
                with contextlib.suppress(OSError):
                    os.utime(claim.path)

        thread = threading.Thread(target=touch_regularly, daemon=True)
        thread.start()
        try:
            self._raise_failure(key, waited_token)
            try:
                yield
            except UserError as error:
                self._store_failure(key, claim, str(error))
                raise
            except Exception as error:
                self._store_failure(key, claim, f"The generation failed in another process: {error!r}")
                raise
            for name in ("journal", "failed"):
                self._remove(self.folder / f"{key}.{name}")
        finally:
            done.set()
            thread.join()
            for number in self._claims(key):
                if number <= claim.number:
                    self._remove(self.folder / f"{key}.claim.{number}")

    def _store_failure(self, key: str, claim: "_Claim", message: str) -> None:
        """Tell the waiting processes why the generation failed. If that cannot be written, they find out themselves."""
        with contextlib.suppress(OSError):
            write_atomically(self.folder / f"{key}.failed", json.dumps({"token": claim.token, "error": message}))

    def _remove(self, path: Path) -> None:
        """Remove a file. The result of a generation does not depend on it."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("Cannot remove %s: %s", path, error.strerror)

    def _raise_failure(self, key: str, token: str) -> None:
        """Raise the error of the generation that this process waited for, if it failed."""
        if not token:
            return
        failure = _read_json(self.folder / f"{key}.failed")
        if failure.get("token") == token:
            raise UserError(failure.get("error", "The generation failed in another process."))


class _Claim(NamedTuple):
    """The right to generate the function of a key.

    Attributes:
        path: file of the claim.
        number: number of the claim, from 1.
        token: identifies the claim to the waiting processes.
    """

    path: Path
    number: int
    token: str


def _read_json(path: Path) -> dict[str, str]:
    """Return the strings in a small JSON file; empty if it does not exist or is not valid."""
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(2**20))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _machine() -> str:
    """Return what identifies this system since its start, and its process numbers (a container has its own); '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """Return when a process was started, in the unit of the system; '' if no such process lives; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        with contextlib.suppress(PermissionError):  # another user's process, which the system may hide
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return ""
        return None
    state, start = fields[0], fields[19]  # fields 3 and 22 of the file; the second may contain spaces and parentheses
    return "" if state in {b"Z", b"X"} else start.decode()


@contextlib.contextmanager
def _removed_afterwards(path: Path) -> Iterator[None]:
    """Remove a file after the `with` block."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
