"""Store of generated functions: one file per key, shared by all processes and machines that see the folder.

    KEY.json          the stored function; written in one step, never changed afterwards
    KEY.journal       answers paid for by a generation that has not finished; removed when it succeeds
    KEY.claim.1       which process generates it (process, host, token); the highest number counts; touched as a heartbeat
    KEY.failed        why the last generation failed, for the processes that waited for it

One process generates a function, the others wait for its file. A claim that has not been touched for `STALE_S` belongs to a
dead process: whichever process creates the next number first takes over, and finds the earlier answers in the journal.

On a network file system this relies on two guarantees of NFS version 3 and later: link() is atomic, so only one process
creates a name; and attributes are not cached for longer than `STALE_S` (acregmax is 60 s by default). Clocks need not agree:
ages are measured against a file that is touched on the same server.
"""

import contextlib
import json
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
from qllm_exp.errors import UserError
from qllm_exp.utils.files import write_atomically

BEAT_S, STALE_S, POLL_S = 10.0, 180.0, 0.5


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

    def path(self, key: str) -> Path:
        """Return the file of a key, which may not exist."""
        return self.folder / f"{key}.json"

    def journal(self, key: str) -> Path:
        """Return the journal of a key, which may not exist."""
        return self.folder / f"{key}.journal"

    def get(self, key: str) -> StoredFunction | None:
        """Load the function of a key, or return None if there is none; raises a UserError for a file that was edited."""
        return load(self.path(key)) if self.path(key).exists() else None

    def find(self, prefix: str) -> Path:
        """Return the file of the only function whose key starts with `prefix`.

        Raises:
            UserError: no key starts with `prefix`, or more than one does.
        """
        matches = [path for path in self.paths() if path.stem.startswith(prefix)]
        if len(matches) != 1:
            functions = "No stored function" if not matches else f"{len(matches)} stored functions"
            verb = "have" if len(matches) > 1 else "has"
            raise UserError(
                f"{functions} in {self.folder} {verb} a key that starts with {prefix!r}. "
                "To list all keys: python -m qllm_exp.tfcaf list"
            )
        return matches[0]

    def paths(self) -> list[Path]:
        """Return the files of all functions, oldest first."""
        return sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)

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
        self._prepare()
        while True:
            stored = self.get(key)
            if stored is not None:
                return stored
            self._raise_failure(key, token)
            claim = self._claim(key)
            if claim is None:
                owner = self._owner(key)
                token = owner.get("token", token)
                if owner and not has_reported:
                    on_wait(f"process {owner.get('pid', '?')} on {owner.get('host', '?')}")
                    has_reported = True
                time.sleep(self._poll_s * random.uniform(0.5, 1.5))
                continue
            with self._held(key, claim):
                stored = self.get(key)  # it may have appeared between the look and the claim
                if stored is not None:
                    return stored
                return self._publish(key, generate())

    def add(self, key: str, function: StoredFunction) -> Path:
        """Store a function that was not generated here, and return its file. An existing file of the key is kept."""
        self._prepare()
        self._publish(key, function)
        return self.path(key)

    def _prepare(self) -> None:
        """Create the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.folder}: {error.strerror}. Choose another folder with tfcaf.cache=..."
            ) from None

    def _publish(self, key: str, function: StoredFunction) -> StoredFunction:
        """Write the file of a key in one step unless it exists, and load it."""
        temporary = self.folder / f".{key}.{uuid.uuid4().hex}"
        function.save(temporary)
        with _removed_afterwards(temporary), contextlib.suppress(FileExistsError):  # an earlier file is kept
            os.link(temporary, self.path(key))
        return load(self.path(key))

    def _claims(self, key: str) -> list[int]:
        """Return the numbers of all claims of a key, in order."""
        names = (path.name.rpartition(".")[2] for path in self.folder.glob(f"{key}.claim.*"))
        return sorted(int(number) for number in names if number.isdigit())

    def _owner(self, key: str) -> dict[str, str]:
        """Return the process that holds the highest claim; empty if there is no claim."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.folder / f"{key}.claim.{max(self._claims(key))}").read_text()))
        return {}

    def _claim(self, key: str) -> "_Claim | None":
        """Create the next claim; return None if a live process holds one, or another process was faster."""
        numbers = self._claims(key)
        if numbers and not self._is_stale(self.folder / f"{key}.claim.{numbers[-1]}"):
            return None
        temporary = self.folder / f".{key}.{uuid.uuid4().hex}"
        owner = {"pid": str(os.getpid()), "host": socket.gethostname(), "token": uuid.uuid4().hex}
        temporary.write_text(json.dumps(owner))
        number = numbers[-1] + 1 if numbers else 1
        claim = self.folder / f"{key}.claim.{number}"
        with _removed_afterwards(temporary):
            try:
                os.link(temporary, claim)
            except FileExistsError:
                return None
        return _Claim(claim, number, owner["token"])

    def _is_stale(self, claim: Path) -> bool:
        """Whether a claim has not been touched for too long, by the clock of the file server."""
        now = self.folder / f".now.{uuid.uuid4().hex}"
        with _removed_afterwards(now):
            now.touch()
            try:
                return now.stat().st_mtime - claim.stat().st_mtime > self._stale_s
            except FileNotFoundError:  # the claim was just released; the next look decides
                return False

    @contextlib.contextmanager
    def _held(self, key: str, claim: "_Claim") -> Iterator[None]:
        """Keep a claim alive inside the `with` block, then release it. A failure is stored for the waiting processes.

        Earlier claims are released with it. A later one is not: it belongs to the process that took over from this one.
        """
        done = threading.Event()

        def touch_regularly() -> None:
            while not done.wait(self._beat_s):
                with contextlib.suppress(OSError):
                    os.utime(claim.path)

        thread = threading.Thread(target=touch_regularly, daemon=True)
        thread.start()
        try:
            yield
            self.journal(key).unlink(missing_ok=True)
            (self.folder / f"{key}.failed").unlink(missing_ok=True)
        except UserError as error:
            write_atomically(self.folder / f"{key}.failed", json.dumps({"token": claim.token, "error": str(error)}))
            raise
        finally:
            done.set()
            thread.join()
            for number in self._claims(key):
                if number <= claim.number:
                    (self.folder / f"{key}.claim.{number}").unlink(missing_ok=True)

    def _raise_failure(self, key: str, token: str) -> None:
        """Raise the error of the generation that this process waited for, if it failed."""
        if not token:
            return
        with contextlib.suppress(FileNotFoundError):
            failure = json.loads((self.folder / f"{key}.failed").read_text())
            if failure["token"] == token:
                raise UserError(failure["error"])


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


@contextlib.contextmanager
def _removed_afterwards(path: Path) -> Iterator[None]:
    """Remove a file after the `with` block."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
