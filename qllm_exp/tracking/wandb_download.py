"""The process that reads a project of Weights & Biases into run folders, which then are like any others.

`python -m qllm_exp.tracking.wandb_download CACHE ENTITY PROJECT GROUP` (ENTITY and GROUP may be empty; sources.py starts it)
prints one JSON object: {"entity", "project", "folders", "read", "foreign"}, or {"error": words}.

Folders lie in CACHE/ENTITY/PROJECT. Runs are listed with all but their histories, in pages; a history, which is nearly all there
is to read, is read only where something of the run has changed since, several at a time. A folder is made aside and moved to
its place whole, so that whatever dies when, what is there is right; a run that the server no longer has loses its folder.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import quote

import wandb

from qllm_exp.errors import UserError
from qllm_exp.tracking import wandb_client, wandb_login, wandb_restore
from qllm_exp.tracking.wandb_restore import RemoteRun
from qllm_exp.utils.files import flock, write_atomically

AT_A_TIME = 8  # histories
PAGE = 100  # runs in an answer
SILENCE_S = 90.0  # without any answer, after which the server counts as lost; each request gives up before
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_ASIDE = ".reading-"  # begins the name of a folder in a project's
_FUNCTIONS = ".functions"  # in a project's folder: HASH.json


class _Watch:
    """Ends the process when nothing has come for too long: downloads have no limit of their own."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._last = limit_s, time.monotonic()
        self.done, self.of = 0, 0
        threading.Thread(target=self._look, daemon=True).start()

    def heard(self) -> None:
        self._last = time.monotonic()

    def _look(self) -> None:
        while time.monotonic() - self._last < self._limit_s:
            time.sleep(1.0)
        _print({"error": str(_lost(f"no answer for {self._limit_s:.0f} s", self.done, self.of))})
        os._exit(2)


class Project:
    """A project on the server and its folder here.

    Raises:
        UserError: for a project that is not there, a login that is not taken, a server that is lost.
    """

    def __init__(self, cache: Path, entity: str, project: str) -> None:
        self._watch = _Watch(SILENCE_S)
        try:
            self._api = wandb_client.api()
            self.entity = entity or os.environ.get("WANDB_ENTITY") or str(self._api.default_entity or "")
        except Exception as error:  # the client's own types share no base
            raise _refused(error) from error
        if not self.entity:
            raise UserError(f"Your account has no default entity: give it, as in wandb://ENTITY/{project}.")
        self.project = project
        self.folder = cache / quote(self.entity, safe="") / quote(project, safe="")
        self._functions: dict[str, str] = {}
        self._fetching = threading.Lock()

    def read(self, group: str) -> dict[str, Any]:
        """Bring the folders up to date. `group`: of this sweep's runs alone; '' for all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder / ".lock", self._watch.heard):
            for left in self.folder.glob(f"{_ASIDE}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            every = self._listed(group)
            runs = {run.name: (run, api_run) for run, api_run in every if run.name}
            stale = [
                (run, api_run)
                for name, (run, api_run) in runs.items()
                if not wandb_restore.is_made(self.folder / name, run)
            ]
            for name in () if group else self._names() - runs.keys():
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name, (run, _) in runs.items():
                if run.state == "running" and (self.folder / name).exists():
                    wandb_restore.note_status(self.folder / name, run)
            self._fetch_all(stale)
        folders = [str(self.folder / name) for name in sorted(runs)]
        foreign = sum(not run.name for run, _ in every)
        return {
            **{"entity": self.entity, "project": self.project, "folders": folders},
            **{"read": len(stale), "foreign": foreign},
        }

    def _listed(self, group: str) -> list[tuple[RemoteRun, wandb.apis.public.Run]]:
        path, found = f"{self.entity}/{self.project}", []
        try:
            filters = {"group": group} if group else {}
            for run in self._api.runs(path, filters=filters, per_page=PAGE, lazy=False):
                node = {
                    **{"name": run.id, "displayName": run.name, "state": run.state, "config": run.config},
                    **{"heartbeatAt": run.heartbeatAt, "historyLineCount": run.historyLineCount},
                    "summaryMetrics": run.summary_metrics,
                }
                found.append((wandb_restore.told(node, run.url), run))
                self._watch.heard()
        except ValueError as error:
            if "could not find project" not in str(error).lower():
                raise _lost(wandb_client.words(error)) from error
            raise UserError(
                f"There is no project {path} on {wandb_login.server()}, or it is not shown to you. "
                "Look at the address of its page, and type wandb://ENTITY/PROJECT."
            ) from error
        except Exception as error:
            raise _lost(wandb_client.words(error)) from error
        return found

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")}

    def _fetch_all(self, stale: Sequence[tuple[RemoteRun, wandb.apis.public.Run]]) -> None:
        """What one cannot read, the others do not suffer from: what was read by then stays."""
        from tqdm import tqdm

        self._watch.of = len(stale)
        with (
            tempfile.TemporaryDirectory(dir=self.folder, prefix=_ASIDE) as aside,
            tqdm(total=len(stale), desc=f"{self.entity}/{self.project}", unit="run", disable=None, leave=False) as bar,
            ThreadPoolExecutor(AT_A_TIME) as pool,
        ):

            def fetch(run: RemoteRun, api_run: wandb.apis.public.Run) -> None:
                self._fetch(run, api_run, Path(aside))
                self._watch.done += 1
                self._watch.heard()
                bar.update()

            waiting = [pool.submit(fetch, *one) for one in stale]
            done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
            pool.shutdown(wait=True, cancel_futures=True)
            for one in done:
                error = one.exception()
                if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
                    raise error
                if error is not None:
                    raise _lost(wandb_client.words(error), self._watch.done, self._watch.of) from error

    def _fetch(self, run: RemoteRun, api_run: wandb.apis.public.Run, aside: Path) -> None:
        history: list[dict[str, Any]] = []
        if run.result:
            for row in api_run.scan_history():
                history.append(row)
                self._watch.heard()
        wandb_restore.make(aside / run.name, run, history, self._function(run.function) if run.result else "")
        here = self.folder / run.name
        if here.exists():
            here.rename(aside / f"{run.name}.old")
        (aside / run.name).rename(here)

    def _function(self, digits: str) -> str:
        """The JSON text of a function, read from the server once for all runs that use it; '' where it is not there."""
        if not digits.isalnum():
            return ""
        kept = self.folder / _FUNCTIONS / f"{digits}.json"
        with self._fetching:
            if not kept.exists() and digits not in self._functions:
                self._functions[digits] = self._downloaded(digits)
                if self._functions[digits]:
                    kept.parent.mkdir(exist_ok=True)
                    write_atomically(kept, self._functions[digits])
        return kept.read_text(encoding="utf-8") if kept.exists() else ""

    def _downloaded(self, digits: str) -> str:
        try:
            artifact = self._api.artifact(f"{self.entity}/{self.project}/tfcaf-{digits}:latest")
        except wandb.errors.CommError as error:
            if "not found" in str(error):
                return ""
            raise
        with tempfile.TemporaryDirectory() as folder:
            path = Path(artifact.get_entry("tfcaf.json").download(folder, skip_cache=True))
            text = path.read_text(encoding="utf-8")
        self._watch.heard()
        return text if str(json.loads(text).get("hash", "")).startswith(digits) else ""


@contextlib.contextmanager
def _alone(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time reads a project; another one then finds what the first has read."""
    with open(path, "w") as lock:
        while flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            waiting()
            time.sleep(0.2)
        yield


def _refused(error: Exception) -> UserError:
    said = str(error)
    if "giving up" not in said and any(word in said for word in ("401", "API key", "credentials")):
        return UserError(f"{wandb_login.server()} does not take the login that is here. Type `wandb login --relogin`.")
    return _lost(wandb_client.words(error))


def _lost(why: str, done: int = 0, of: int = 0) -> UserError:
    """For a server that does not answer, or not as it should. `done`, `of`: runs read, and to be read."""
    kept = f" after {done} of {of} runs; these are kept" if of else ""
    return UserError(
        f"{wandb_login.server()} cannot be read{kept}. The same command goes on from there. It said: {why[:200]}"
    )


def _print(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main(arguments: list[str]) -> int:
    cache, entity, project, group = arguments
    with tempfile.TemporaryDirectory() as scratch:
        wandb_client.keep_out_of_home(Path(scratch))
        try:
            _print(Project(Path(cache), entity, project).read(group))
        except UserError as error:
            _print({"error": str(error)})
            return 2
        except OSError as error:
            if error.errno not in _NOT_WRITTEN:
                raise
            _print({"error": f"Cannot write to {cache}: {error.strerror}. Set XDG_CACHE_HOME to another folder."})
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
