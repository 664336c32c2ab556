"""Generated functions on disk, one file per key, shared by all processes and machines that see the folder.

    KEY.json          the entry; written whole or not at all, never changed afterwards
    KEY.journal       answers paid for by a generation that has not ended; removed with its success
    KEY.claim.1       who generates it now (process, host, token); the highest number counts; touched as a heartbeat
    KEY.failed        why the last generation failed, for those who were waiting for it

One process generates, the others wait for its entry. A claim that has not been touched for `STALE_S` belongs to a process
that is gone: whoever makes the next number first takes over, and finds the answers so far in the journal.

On a network file system this relies on two things that NFS gives (version 3 or later): link() is atomic, so that one
process alone makes a name; and attributes are not cached for longer than `STALE_S` (acregmax is 60 s by default). Clocks
need not agree: ages are taken against a file that is touched on the same server.
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
    """A folder of generated functions. Times in seconds; tests shorten them."""

    def __init__(self, folder: Path, beat_s: float = BEAT_S, stale_s: float = STALE_S, poll_s: float = POLL_S) -> None:
        self.folder, self._beat_s, self._stale_s, self._poll_s = folder, beat_s, stale_s, poll_s

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def journal(self, key: str) -> Path:
        return self.folder / f"{key}.journal"

    def get(self, key: str) -> StoredFunction | None:
        """The entry of a key, None when there is none; UserError for a file that was edited."""
        return load(self.path(key)) if self.path(key).exists() else None

    def find(self, prefix: str) -> Path:
        """The one entry whose key starts so; UserError when there is none, or more than one."""
        found = [path for path in self.paths() if path.stem.startswith(prefix)]
        if len(found) != 1:
            what = "No stored function" if not found else f"{len(found)} stored functions"
            raise UserError(
                f"{what} in {self.folder} has a key that starts with {prefix!r}: python -m qllm_exp.tfcaf list"
            )
        return found[0]

    def paths(self) -> list[Path]:
        """The files of all entries, oldest first."""
        return sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)

    def obtain(
        self, key: str, make: Callable[[], StoredFunction], waiting: Callable[[str], None] = lambda owner: None
    ) -> StoredFunction:
        """The entry of a key; where there is none, `make` is called by one process while the others wait for it.

        Args:
            waiting: told once who is being waited for.

        Raises:
            UserError: what `make` raised, in whichever process it did.
        """
        token, told = "", False
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
                if owner and not told:
                    waiting(f"process {owner.get('pid', '?')} on {owner.get('host', '?')}")
                    told = True
                time.sleep(self._poll_s * random.uniform(0.5, 1.5))
                continue
            with self._held(key, claim):
                stored = self.get(key)  # it may have come between the look and the claim
                return stored if stored is not None else self._publish(key, make())

    def add(self, key: str, entry: StoredFunction) -> Path:
        """Store an entry that was not generated here. One that is there already stays."""
        self._prepare()
        self._publish(key, entry)
        return self.path(key)

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.folder}: {error.strerror}. Choose another with tfcaf.cache=..."
            ) from None

    def _publish(self, key: str, entry: StoredFunction) -> StoredFunction:
        part = self.folder / f".{key}.{uuid.uuid4().hex}"
        entry.save(part)
        with _removed(part), contextlib.suppress(FileExistsError):  # an earlier one stays
            os.link(part, self.path(key))
        return load(self.path(key))

    def _claims(self, key: str) -> list[int]:
        names = (path.name.rpartition(".")[2] for path in self.folder.glob(f"{key}.claim.*"))
        return sorted(int(number) for number in names if number.isdigit())

    def _owner(self, key: str) -> dict[str, str]:
        """Who holds the claim that counts; empty when nobody does."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.folder / f"{key}.claim.{max(self._claims(key))}").read_text()))
        return {}

    def _claim(self, key: str) -> "_Claim | None":
        """Make the next claim where nobody alive holds one; None when somebody does, or was faster."""
        numbers = self._claims(key)
        if numbers and not self._is_stale(self.folder / f"{key}.claim.{numbers[-1]}"):
            return None
        part = self.folder / f".{key}.{uuid.uuid4().hex}"
        owner = {"pid": str(os.getpid()), "host": socket.gethostname(), "token": uuid.uuid4().hex}
        part.write_text(json.dumps(owner))
        number = numbers[-1] + 1 if numbers else 1
        claim = self.folder / f"{key}.claim.{number}"
        with _removed(part):
            try:
                os.link(part, claim)
            except FileExistsError:
                return None
        return _Claim(claim, number, owner["token"])

    def _is_stale(self, claim: Path) -> bool:
        now = self.folder / f".now.{uuid.uuid4().hex}"
        with _removed(now):
            now.touch()
            try:
                return now.stat().st_mtime - claim.stat().st_mtime > self._stale_s
            except FileNotFoundError:  # freed between two looks; the next look decides
                return False

    @contextlib.contextmanager
    def _held(self, key: str, claim: "_Claim") -> Iterator[None]:
        """Keep a claim alive, and free it at the end; a failure is written down for those who wait.

        Claims before it are freed with it, one after it is not: that belongs to whoever took over from this process.
        """
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._beat_s):
                with contextlib.suppress(OSError):
                    os.utime(claim.path)

        thread = threading.Thread(target=beat, daemon=True)
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
            for number in (one for one in self._claims(key) if one <= claim.number):
                (self.folder / f"{key}.claim.{number}").unlink(missing_ok=True)

    def _raise_failure(self, key: str, token: str) -> None:
        """Raise the error of the generation that this process was waiting for, if that is how it ended."""
        if not token:
            return
        with contextlib.suppress(FileNotFoundError):
            failed = json.loads((self.folder / f"{key}.failed").read_text())
            if failed["token"] == token:
                raise UserError(failed["error"])


class _Claim(NamedTuple):
    """The right to generate. `token`: what those who wait know it by."""

    path: Path
    number: int
    token: str


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
