"""The process that downloads a project of Weights & Biases into run directories, which then are like any others.

`python -m qllm_exp.tracking.wandb_download CACHE ENTITY PROJECT GROUP` (ENTITY and GROUP may be empty; started by
results/records/sources.py) prints one JSON object: {"entity", "project", "folders", "read", "foreign"}, or {"error": message}.

Folders lie in CACHE/ENTITY/PROJECT. Runs are listed in pages, with everything but their histories. A history, which is nearly
all of the data, is read only if the run has changed since the last time, several at a time. A folder is prepared elsewhere and
moved to its place in one step, so that every folder is complete even if this process is killed. A run that the server no
longer has loses its folder.
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

CONCURRENT_HISTORIES = 8
PAGE_SIZE = 100  # runs in one answer
SILENCE_S = 90.0  # without any answer, after which the server counts as unreachable; each request gives up earlier
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_PARTIAL_PREFIX = ".reading-"  # of folders in a project's that are being prepared
_FUNCTIONS = ".functions"  # in a project's folder: HASH.json


class _Watchdog:
    """Ends the process if the server is silent for too long: downloads have no time limit of their own.

    Attributes:
        done: number of runs read so far.
        total: number of runs to read.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._last_answer = time.monotonic()
        self.done = 0
        self.total = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        """Note an answer."""
        self._last_answer = time.monotonic()

    def _watch(self) -> None:
        while time.monotonic() - self._last_answer < self._limit_s:
            time.sleep(1.0)
        error = _connection_error(f"no answer for {self._limit_s:.0f} s", self.done, self.total)
        _print_json({"error": str(error)})
        os._exit(2)


class Project:
    """A project on the server and its folder in the cache.

    Args:
        cache: folder of all projects of this server.
        entity: owner of the project; '': the default entity of the account.
        project: its name.

    Raises:
        UserError: the credentials are rejected, the server does not answer, or there is no default entity.
    """

    def __init__(self, cache: Path, entity: str, project: str) -> None:
        self._watchdog = _Watchdog(SILENCE_S)
        try:
            self._api = wandb_client.api()
            self.entity = entity or os.environ.get("WANDB_ENTITY") or str(self._api.default_entity or "")
        except Exception as error:  # the client's error types have no common base class
            raise _login_error(error) from error
        if not self.entity:
            raise UserError(f"Your account has no default entity: give it, as in wandb://ENTITY/{project}.")
        self.project = project
        self.folder = cache / quote(self.entity, safe="") / quote(project, safe="")
        self._functions: dict[str, str] = {}
        self._function_lock = threading.Lock()

    def read(self, group: str) -> dict[str, Any]:
        """Bring the folders up to date.

        Args:
            group: name of the sweep whose runs are read; '' for all runs.

        Returns:
            The object that the module describes.

        Raises:
            UserError: the project does not exist, or the server does not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / ".lock", self._watchdog.reset):
            for leftover in self.folder.glob(f"{_PARTIAL_PREFIX}*"):  # by a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            listed = self._list_runs(group)
            runs = {run.name: (run, api_run) for run, api_run in listed if run.name}
            stale = [
                (run, api_run)
                for name, (run, api_run) in runs.items()
                if not wandb_restore.is_current(self.folder / name, run)
            ]
            if not group:
                for name in self._folder_names() - runs.keys():
                    shutil.rmtree(self.folder / name, ignore_errors=True)
            for name, (run, _) in runs.items():
                if run.state == "running" and (self.folder / name).exists():
                    wandb_restore.write_status(self.folder / name, run)
            self._fetch_all(stale)
        return {
            "entity": self.entity,
            "project": self.project,
            "folders": [str(self.folder / name) for name in sorted(runs)],
            "read": len(stale),
            "foreign": sum(not run.name for run, _ in listed),
        }

    def _list_runs(self, group: str) -> list[tuple[RemoteRun, wandb.apis.public.Run]]:
        path, listed = f"{self.entity}/{self.project}", []
        try:
            filters = {"group": group} if group else {}
            for run in self._api.runs(path, filters=filters, per_page=PAGE_SIZE, lazy=False):
                node = {
                    "name": run.id,
                    "displayName": run.name,
                    "state": run.state,
                    "config": run.config,
                    "heartbeatAt": run.heartbeatAt,
                    "historyLineCount": run.historyLineCount,
                    "summaryMetrics": run.summary_metrics,
                }
                listed.append((wandb_restore.parse_run(node, run.url), run))
                self._watchdog.reset()
        except ValueError as error:
            if "could not find project" not in str(error).lower():
                raise _connection_error(wandb_client.one_line(error)) from error
            raise UserError(
                f"There is no project {path} on {wandb_login.server()}, or you have no access to it. "
                "Look at the address of its page, and type wandb://ENTITY/PROJECT."
            ) from error
        except Exception as error:
            raise _connection_error(wandb_client.one_line(error)) from error
        return listed

    def _folder_names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")}

    def _fetch_all(self, stale: Sequence[tuple[RemoteRun, wandb.apis.public.Run]]) -> None:
        """Read runs concurrently. If one cannot be read, those that were read before stay.

        Raises:
            UserError: a run cannot be read.
            OSError: a folder cannot be written.
        """
        from tqdm import tqdm

        self._watchdog.total = len(stale)
        with (
            tempfile.TemporaryDirectory(dir=self.folder, prefix=_PARTIAL_PREFIX) as partial,
            tqdm(total=len(stale), desc=f"{self.entity}/{self.project}", unit="run", disable=None, leave=False) as bar,
            ThreadPoolExecutor(CONCURRENT_HISTORIES) as pool,
        ):

            def fetch(run: RemoteRun, api_run: wandb.apis.public.Run) -> None:
                self._fetch(run, api_run, Path(partial))
                self._watchdog.done += 1
                self._watchdog.reset()
                bar.update()

            futures = [pool.submit(fetch, run, api_run) for run, api_run in stale]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            pool.shutdown(wait=True, cancel_futures=True)
            for future in done:
                error = future.exception()
                if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
                    raise error
                if error is not None:
                    message = wandb_client.one_line(error)
                    raise _connection_error(message, self._watchdog.done, self._watchdog.total) from error

    def _fetch(self, run: RemoteRun, api_run: wandb.apis.public.Run, partial: Path) -> None:
        """Prepare a run's folder inside `partial`, and move it to its place."""
        history: list[dict[str, Any]] = []
        function = ""
        if run.result:
            for row in api_run.scan_history():
                history.append(row)
                self._watchdog.reset()
            function = self._function(run.function)
        wandb_restore.restore(partial / run.name, run, history, function)
        folder = self.folder / run.name
        if folder.exists():
            folder.rename(partial / f"{run.name}.old")
        (partial / run.name).rename(folder)

    def _function(self, digits: str) -> str:
        """The JSON text of a function, downloaded once for all runs that use it; '' if the server does not have it."""
        if not digits.isalnum():
            return ""
        cached = self.folder / _FUNCTIONS / f"{digits}.json"
        with self._function_lock:
            if not cached.exists() and digits not in self._functions:
                self._functions[digits] = self._download_function(digits)
                if self._functions[digits]:
                    cached.parent.mkdir(exist_ok=True)
                    write_atomically(cached, self._functions[digits])
        return cached.read_text(encoding="utf-8") if cached.exists() else ""

    def _download_function(self, digits: str) -> str:
        try:
            artifact = self._api.artifact(f"{self.entity}/{self.project}/tfcaf-{digits}:latest")
        except wandb.errors.CommError as error:
            if "not found" in str(error):
                return ""
            raise
        with tempfile.TemporaryDirectory() as folder:
            path = Path(artifact.get_entry("tfcaf.json").download(folder, skip_cache=True))
            text = path.read_text(encoding="utf-8")
        self._watchdog.reset()
        return text if str(json.loads(text).get("hash", "")).startswith(digits) else ""


@contextlib.contextmanager
def _locked(path: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time read a project, so that the next one can use what it has read."""
    with open(path, "w") as lock:
        while flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            while_waiting()
            time.sleep(0.2)
        yield


def _login_error(error: Exception) -> UserError:
    """The error for a client that could not be created: rejected credentials, or a server that does not answer."""
    message = str(error)
    if "giving up" not in message and any(word in message for word in ("401", "API key", "credentials")):
        return UserError(f"{wandb_login.server()} rejected the stored W&B credentials. Type `wandb login --relogin`.")
    return _connection_error(wandb_client.one_line(error))


def _connection_error(reason: str, done: int = 0, total: int = 0) -> UserError:
    """The error for a server that does not answer, or gives an invalid answer.

    Args:
        reason: message of the client.
        done: number of runs read so far.
        total: number of runs to read; 0: reading has not started.
    """
    progress = f" after {done} of {total} runs; these are kept" if total else ""
    return UserError(
        f"{wandb_login.server()} cannot be read{progress}. Type the same command again to resume. Reason: {reason[:200]}"
    )


def _print_json(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main(arguments: list[str]) -> int:
    """Run the command line that the module describes, and return the exit code."""
    cache, entity, project, group = arguments
    with tempfile.TemporaryDirectory() as scratch:
        wandb_client.keep_out_of_home(Path(scratch))
        try:
            _print_json(Project(Path(cache), entity, project).read(group))
        except UserError as error:
            _print_json({"error": str(error)})
            return 2
        except OSError as error:
            if error.errno not in _WRITE_ERRORS:
                raise
            _print_json({"error": f"Cannot write to {cache}: {error.strerror}. Set XDG_CACHE_HOME to another folder."})
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
