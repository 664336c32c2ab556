"""The process that uploads runs to Weights & Biases; one of the few modules that import the W&B client.

`python -m qllm_exp.tracking.wandb_upload FOLDER PID` follows the run of process PID and ends with it (started by sidecar.py).
`... --once` reads folders from standard input and uploads what the server lacks of each (started by
`python -m qllm_exp.results sync`).

No row is uploaded twice and none is left out, whichever process dies at whatever time, because two counts agree: the step of
a row is its number in metrics.jsonl, and the server tells a resumed run which step comes next. Rows that a run writes again
after resuming from a checkpoint are the same but for their wall-clock time, and have numbers that the server already has.
`wandb.json` in the folder records two facts: that the run was created from this folder, so that a new run of the same name is
not mistaken for it; and how many rows the server has confirmed, so that complete runs need no request.
"""

import argparse
import contextlib
import fcntl
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import wandb

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.runs.metrics import MetricsReader
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking import wandb_client, wandb_payload
from qllm_exp.utils.files import flock

POLL_S = 0.5  # seconds between reads of the metrics file
RETRY_S = 20.0  # seconds between attempts to reach the server
INIT_S = 30.0  # seconds for one attempt
MAX_UNREACHABLE = 2  # consecutive runs for which the server cannot be reached, after which no other run is tried
NICENESS = 10  # training has priority on a shared core
_UNFINISHED_STATES = ("queued", "running", "interrupted", "pruned")


class UploadError(Exception):
    """Not all rows of a run have been uploaded; the message says why."""


class ServerUnreachableError(UploadError):
    """The server did not answer, or gave an invalid answer."""


class ForeignRunError(UploadError):
    """The server's run of that name was created from another folder."""


class RunUpload:
    """The upload of one run, which is created or resumed on the server.

    Args:
        directory: of the run.
        tracking: the run's W&B configuration.
        init_s: seconds that the client may take to start the run on the server.
        finish_s: seconds that the client may take to finish it.
        adopt: resume a run that was not created from this folder.

    Raises:
        UploadError: the run cannot be created or resumed.
    """

    def __init__(
        self, directory: RunDirectory, tracking: schema.WandbConfig, init_s: float, finish_s: float, adopt: bool = False
    ) -> None:
        self._directory = directory
        self._tracking = tracking
        self._rows = MetricsReader(directory.metrics)
        self._task = wandb_payload.task_key(directory.read_config())
        self._state = wandb_payload.UploadState(directory)
        resume = adopt or self._state.was_created_in(tracking)
        confirmed = self._state.rows if resume else 0
        if not resume:
            self._state.write(tracking, "", 0, "")  # the folder's mark must be stored before the run is created
        try:
            self._run = self._init(init_s, finish_s, "allow" if resume else "never")
            self._start: int = self._run.starting_step
            self._state.write(tracking, self._run.url or "", min(confirmed, self._start), "running")
            self._run.define_metric("env_step")
            self._run.define_metric("*", step_metric="env_step")
            self._log_function()
        except UploadError:
            raise
        except Exception as error:  # the client's error types have no common base class
            raise ServerUnreachableError(wandb_client.one_line(error)) from error

    def _init(self, init_s: float, finish_s: float, resume: Literal["allow", "never"]) -> wandb.Run:
        """Create or resume the run on the server."""
        directory, tracking = self._directory, self._tracking
        try:
            return wandb.init(
                project=tracking.project,
                entity=tracking.entity or None,
                id=wandb_payload.run_id(directory),
                name=directory.path.name,
                config=wandb_payload.flat_config(directory) | {"folder": self._state.mark},
                dir=str(directory.path),
                resume=resume,
                reinit="finish_previous",
                settings=wandb_client.settings(init_s, finish_s),
                **wandb_payload.run_labels(directory.read_config()),
            )
        except Exception as error:
            wandb.teardown()  # otherwise the client considers the id to be in use
            # The client's message for a run that exists in spite of resume="never". It was created from another folder, or
            # from this one in an attempt whose answer was lost.
            if resume == "allow" or "already exists" not in str(error):
                raise
            if self._was_created_here():
                return self._init(init_s, finish_s, "allow")
            raise ForeignRunError(
                f"W&B has a run {wandb_payload.run_id(directory)} in {tracking.project} that was not created from this folder. "
                f"Choose another tracking.project, or resume that run: "
                f"python -m qllm_exp.results sync --adopt {directory.path}"
            ) from error

    def _was_created_here(self) -> bool:
        """Whether the server's run was created from this folder."""
        names = (self._tracking.entity, self._tracking.project, wandb_payload.run_id(self._directory))
        path = "/".join(name for name in names if name)
        return bool(wandb.Api(timeout=10).run(path).config.get("folder") == self._state.mark)

    def send(self) -> None:
        """Pass new rows that the server lacks to the client. Does not wait for their upload."""
        first = self._rows.count
        for number, row in enumerate(self._rows.read_new(), first):
            if number >= self._start:
                self._run.log(wandb_payload.history_row(row, self._task), step=number)

    def finish(self) -> int:
        """Upload the last rows and the summary, and end the run as finished or failed, or as preempted if it will be resumed.

        Returns:
            Number of rows that were uploaded.

        Raises:
            UploadError: the server lacks rows.
        """
        state = str(self._directory.status().get("state", ""))
        self.send()
        try:
            self._run.summary.update(
                wandb_payload.summary(self._directory.result() or {}, self._rows.count, self._task)
            )
            if state in _UNFINISHED_STATES:
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if state == "finished" else 1)
            confirmed = self._confirmed_rows()
        except Exception as error:  # the client's error types have no common base class
            raise ServerUnreachableError(wandb_client.one_line(error)) from error
        self._state.write(self._tracking, self._state.url, min(confirmed, self._rows.count), state)
        if confirmed < self._rows.count:
            raise UploadError(f"the server has {confirmed} of {self._rows.count} rows so far")
        for folder in (Path(self._run.dir).parent, _scratch(self._directory)):  # the client's own copies
            shutil.rmtree(folder, ignore_errors=True)
        return max(0, self._rows.count - self._start)

    def _confirmed_rows(self) -> int:
        """Number of rows that the server has; asked up to four times, since the server counts with a delay."""
        confirmed = 0
        for attempt in range(4):
            time.sleep(0.5 * attempt)
            confirmed = int(wandb.Api(timeout=10).run(self._run.path).lastHistoryStep) + 1
            if confirmed >= self._rows.count:
                break
        return confirmed

    def _log_function(self) -> None:
        """Log the credit-assignment function with its provenance as an artifact; runs with the same function share one."""
        if not self._directory.tfcaf.exists():
            return
        function = wandb_payload.read_function(self._directory)
        metadata = {key: function.get(key) for key in ("env", "task", "hash", "prompt_hash", "key", "verdict")}
        metadata |= {f"provenance.{key}": value for key, value in function.get("provenance", {}).items()}
        artifact = wandb.Artifact(f"tfcaf-{function['hash'][:8]}", "tfcaf", metadata=metadata)
        source = _scratch(self._directory) / "function.py"
        source.write_text(function["source"], encoding="utf-8")
        for path, name in ((self._directory.tfcaf, "tfcaf.json"), (source, "function.py")):
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)  # without copies
        self._run.log_artifact(artifact)


def _scratch(directory: RunDirectory) -> Path:
    """The folder for what the client would write into the home folder."""
    return directory.path / "wandb" / "client"


@contextlib.contextmanager
def _locked(directory: RunDirectory, wait_s: float) -> Iterator[None]:
    """Let one process at a time upload a run, with all of the client's folders inside the run's.

    Raises:
        UploadError: another process is still uploading the run after `wait_s` seconds.
    """
    scratch = _scratch(directory)
    scratch.mkdir(parents=True, exist_ok=True)
    wandb_client.keep_out_of_home(scratch)
    with open(scratch.parent / ".lock", "w") as lock:
        deadline = time.monotonic() + wait_s
        while flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            if time.monotonic() >= deadline:
                raise UploadError("another process is uploading it")
            time.sleep(0.1)
        yield


class _Parent:
    """Watches the run's process, which ends by closing this process's standard input, or by dying.

    Ends this process `limit_s` seconds later, whatever it is waiting for.
    """

    def __init__(self, pid: int, limit_s: float) -> None:
        self._pid = pid
        self._limit_s = limit_s
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self._pid and not select.select([sys.stdin], [], [], POLL_S)[0]:
            pass
        self.ended.set()
        time.sleep(self._limit_s)
        _log("ended before everything was uploaded")
        os._exit(1)  # the client's service process ends with this one


def follow(directory: RunDirectory, pid: int) -> int:
    """Upload the rows of a run while it writes them.

    Args:
        directory: of the run.
        pid: the run's process.

    Returns:
        The exit code: 0 if the server has all rows.
    """
    tracking = wandb_payload.wandb_config(directory)
    parent = _Parent(pid, tracking.finish_s)
    with _locked(directory, wait_s=60.0):
        upload, last_message = None, ""
        while upload is None:
            try:
                upload = RunUpload(directory, tracking, INIT_S, tracking.finish_s)
            except UploadError as error:
                if str(error) != last_message:
                    last_message = str(error)
                    _log(last_message)
                if isinstance(error, ForeignRunError):
                    return 1
                if parent.ended.wait(RETRY_S):
                    return 1
        while not parent.ended.wait(POLL_S):
            upload.send()
        upload.finish()
    return 0


def send_once(directory: RunDirectory, options: argparse.Namespace) -> str:
    """Upload what the server lacks of a run.

    Args:
        directory: of the run.
        options: all, adopt and timeout of the command line.

    Returns:
        What was done, for the user.

    Raises:
        UploadError: rows are missing.
    """
    run = directory.read_config()
    tracking = wandb_payload.wandb_config(directory)
    tracked = isinstance(run.tracking, schema.WandbConfig) and tracking.mode != "disabled"
    if not tracked and not options.all:
        return "is not tracked by W&B (sync --all uploads it nevertheless)"
    owner = directory.owner()
    if owner and isinstance(run.tracking, schema.WandbConfig) and tracking.mode == "online":
        return f"is running as {owner}, which uploads it"
    rows, uploaded = MetricsReader(directory.metrics), wandb_payload.UploadState(directory)
    rows.read_new()
    state = str(directory.status().get("state", ""))
    if uploaded.was_created_in(tracking) and (uploaded.rows, uploaded.state) == (rows.count, state):
        return f"has nothing new ({rows.count} rows): {uploaded.url}"
    with _locked(directory, wait_s=0.0):
        count = RunUpload(directory, tracking, options.timeout, options.timeout, options.adopt).finish()
    return f"sent {count} of {rows.count} rows: {wandb_payload.UploadState(directory).url}"


def send_all(options: argparse.Namespace) -> int:
    """Upload the runs whose folders standard input lists, and print a line for each.

    After `MAX_UNREACHABLE` consecutive runs for which the server could not be reached, the others are not tried.

    Args:
        options: all, adopt and timeout of the command line.

    Returns:
        The exit code: 1 if a run is incomplete.
    """
    failed = unreachable = 0
    for line in sys.stdin:
        directory = RunDirectory(Path(line.rstrip("\n")))
        try:
            if unreachable == MAX_UNREACHABLE:
                raise UploadError("not tried, since the server could not be reached for the runs before")
            outcome = send_once(directory, options)
            unreachable = 0
        except (UploadError, UserError) as error:
            if isinstance(error, ServerUnreachableError):
                unreachable += 1
            failed += 1
            outcome = f"NOT SENT: {error}"
        print(f"{directory.path.name}: {outcome}", flush=True)
    return 1 if failed else 0


def _log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the command line that the module describes, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m qllm_exp.tracking.wandb_upload")
    parser.add_argument("follow", nargs="*", metavar="FOLDER PID")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--adopt", action="store_true")
    parser.add_argument("--timeout", type=float, default=60.0)
    options = parser.parse_args(arguments)
    if options.once:
        return send_all(options)
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run; this process ends with the run
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    folder, pid = options.follow
    try:
        return follow(RunDirectory(Path(folder)), int(pid))
    except UploadError as error:
        _log(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
