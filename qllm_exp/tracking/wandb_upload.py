"""The process that sends runs to Weights & Biases; one of the few that import their client.

`python -m qllm_exp.tracking.wandb_upload FOLDER PID` follows the run of process PID and ends with it (mirror.py starts it).
`... --once` reads folders from its input and sends what the server lacks of each (`python -m qllm_exp.results sync` starts it).

No row is sent twice and none is left out, whatever dies when, since two counts agree: the step of a row is its number in
metrics.jsonl, and a run that is gone on with begins, in the server's own words, after the last step that it has. Rows that come
again after a checkpoint, as they were but for the clock, have numbers that it has already. `wandb.json` in the folder says that
the run was begun from this folder, so that one made anew under the same name is not taken for it, and how many rows the server
confirmed, so that what is complete is not asked for again.
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
from qllm_exp.runs.metrics import Rows
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking import wandb_client, wandb_payload

POLL_S = 0.5  # seconds between looks at the metrics file
RETRY_S = 20.0  # seconds between attempts to reach the server
INIT_S = 30.0  # seconds for one attempt
PATIENCE = 2  # runs in a row for which the server cannot be reached, before the others are not tried
BEHIND = 10  # niceness: training comes first on a shared core
_GOES_ON = ("queued", "running", "interrupted")  # states of a run that is not over


class Unsent(Exception):
    """In words: why not all rows of a run have arrived."""


class Unreachable(Unsent):
    """The same, where the server did not answer, or not as it should."""


class Foreign(Unsent):
    """The same, where the server's run of that name was begun from another folder."""


class Session:
    """One run on the server, begun or gone on with. Raises Unsent when that cannot be.

    Args:
        init_s, finish_s: seconds that the client may take in the beginning and in the end.
        adopt: go on with a run that was not begun from this folder.
    """

    def __init__(
        self, directory: RunDirectory, tracking: schema.WandbConfig, init_s: float, finish_s: float, adopt: bool = False
    ) -> None:
        self._directory, self._tracking = directory, tracking
        self._rows = Rows(directory.metrics)
        self._task = wandb_payload.task_key(directory.read_config())
        self._sent = wandb_payload.UploadState(directory)
        known = adopt or self._sent.begun_in(tracking)
        rows = self._sent.rows if known else 0
        if not known:
            self._sent.write(tracking, "", 0, "")  # its mark has to be there before the run is
        try:
            self._run = self._begin(init_s, finish_s, "allow" if known else "never")
            self._start: int = self._run.starting_step
            self._sent.write(tracking, self._run.url or "", min(rows, self._start), "running")
            self._run.define_metric("env_step")
            self._run.define_metric("*", step_metric="env_step")
            self._log_function()
        except Unsent:
            raise
        except Exception as error:  # the client's own types share no base
            raise Unreachable(wandb_client.words(error)) from error

    def _begin(self, init_s: float, finish_s: float, resume: Literal["allow", "never"]) -> wandb.Run:
        directory, tracking = self._directory, self._tracking
        try:
            return wandb.init(
                project=tracking.project,
                entity=tracking.entity or None,
                id=wandb_payload.run_id(directory),
                name=directory.path.name,
                config=wandb_payload.flat_config(directory) | {"folder": self._sent.folder},
                dir=str(directory.path),
                resume=resume,
                reinit="finish_previous",
                settings=wandb_client.settings(init_s, finish_s),
                **wandb_payload.words(directory.read_config()),
            )
        except Exception as error:
            wandb.teardown()  # the client would hold the id to be in use
            # Its words for a run that resume="never" finds: another folder's, or ours, where the answer to its beginning
            # was lost.
            if resume == "allow" or "already exists" not in str(error):
                raise
            if self._is_ours():
                return self._begin(init_s, finish_s, "allow")
            raise Foreign(
                f"W&B has a run {wandb_payload.run_id(directory)} in {tracking.project} that was not begun from this folder. "
                f"Choose another tracking.project, or go on with it: "
                f"python -m qllm_exp.results sync --adopt {directory.path}"
            ) from error

    def _is_ours(self) -> bool:
        """Whether the server's run was begun from this folder."""
        tracking = self._tracking
        path = "/".join(
            part for part in (tracking.entity, tracking.project, wandb_payload.run_id(self._directory)) if part
        )
        return bool(wandb.Api(timeout=10).run(path).config.get("folder") == self._sent.folder)

    def send(self) -> None:
        """Hand the rows over that the server does not have and that were not handed over before. Does not wait for it."""
        first = self._rows.count
        for number, row in enumerate(self._rows.new(), first):
            if number >= self._start:
                self._run.log(wandb_payload.logged(row, self._task), step=number)

    def finish(self) -> int:
        """The last rows and the final figures; returns how many rows were sent. Raises Unsent if any is missing.

        The run is left as finished or failed; one that will go on is left as preempted.
        """
        state = str(self._directory.status().get("state", ""))
        self.send()
        try:
            self._run.summary.update(
                wandb_payload.summary(self._directory.result() or {}, self._rows.count, self._task)
            )
            if state in _GOES_ON:
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if state == "finished" else 1)
            has = self._confirmed()
        except Exception as error:  # the client's own types share no base
            raise Unreachable(wandb_client.words(error)) from error
        self._sent.write(self._tracking, self._sent.url, min(has, self._rows.count), state)
        if has < self._rows.count:
            raise Unsent(f"the server has {has} of {self._rows.count} rows as yet")
        for folder in (Path(self._run.dir).parent, _scratch(self._directory)):  # the client's copies
            shutil.rmtree(folder, ignore_errors=True)
        return max(0, self._rows.count - self._start)

    def _confirmed(self) -> int:
        """Rows that the server says it has; it is given a moment to count them."""
        has = 0
        for attempt in range(4):
            time.sleep(0.5 * attempt)
            has = int(wandb.Api(timeout=10).run(self._run.path).lastHistoryStep) + 1
            if has >= self._rows.count:
                break
        return has

    def _log_function(self) -> None:
        """The credit-assignment function, with where it comes from, as an artifact; the same one is the same for all runs."""
        if not self._directory.tfcaf.exists():
            return
        stored = wandb_payload.function(self._directory)
        about = {key: stored.get(key) for key in ("env", "task", "hash", "prompt_hash", "key", "verdict")}
        origin = {f"provenance.{key}": value for key, value in stored.get("provenance", {}).items()}
        artifact = wandb.Artifact(f"tfcaf-{stored['hash'][:8]}", "tfcaf", metadata=about | origin)
        source = _scratch(self._directory) / "function.py"
        source.write_text(stored["source"], encoding="utf-8")
        for path, name in ((self._directory.tfcaf, "tfcaf.json"), (source, "function.py")):
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)  # no copies
        self._run.log_artifact(artifact)


def _scratch(directory: RunDirectory) -> Path:
    """For what the client would put into the home folder."""
    return directory.path / "wandb" / "client"


@contextlib.contextmanager
def _alone(directory: RunDirectory, wait_s: float) -> Iterator[None]:
    """One process at a time sends a run, with all its folders inside the run's. Raises Unsent when another one does."""
    scratch = _scratch(directory)
    scratch.mkdir(parents=True, exist_ok=True)
    wandb_client.keep_out_of_home(scratch)
    with open(scratch.parent / ".lock", "w") as lock:
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Unsent("another process is sending it") from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield


class _Parent:
    """The run's process: it has ended when it says so, or is gone; `limit_s` later so has this one, whatever it waits for."""

    def __init__(self, pid: int, limit_s: float) -> None:
        self._pid, self._limit_s = pid, limit_s
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self._pid and not select.select([sys.stdin], [], [], POLL_S)[0]:
            pass
        self.ended.set()
        time.sleep(self._limit_s)
        _say("ended before all was sent")
        os._exit(1)  # the client's own process ends with this one


def follow(directory: RunDirectory, pid: int) -> int:
    """Send the rows of a run while it writes them. Returns the exit code: 0 when the server has all."""
    tracking = wandb_payload.settings_of(directory)
    parent = _Parent(pid, tracking.finish_s)
    with _alone(directory, wait_s=60.0):
        session, last = None, ""
        while session is None:
            try:
                session = Session(directory, tracking, INIT_S, tracking.finish_s)
            except Unsent as error:
                if str(error) != last:
                    _say(last := str(error))
                if isinstance(error, Foreign):
                    return 1
                if parent.ended.wait(RETRY_S):
                    return 1
        while not parent.ended.wait(POLL_S):
            session.send()
        session.finish()
    return 0


def send_once(directory: RunDirectory, options: argparse.Namespace) -> str:
    """Send what the server lacks of a run; what was done, in words. Raises Unsent."""
    run = directory.read_config()
    tracking = wandb_payload.settings_of(directory)
    if (not isinstance(run.tracking, schema.WandbConfig) or tracking.mode == "disabled") and not options.all:
        return "is not tracked by W&B (sync --all sends it all the same)"
    owner = directory.owner()
    if owner and isinstance(run.tracking, schema.WandbConfig) and tracking.mode == "online":
        return f"is run by {owner}, which sends it"
    rows, sent = Rows(directory.metrics), wandb_payload.UploadState(directory)
    rows.new()
    state = str(directory.status().get("state", ""))
    if sent.begun_in(tracking) and (sent.rows, sent.state) == (rows.count, state):
        return f"has nothing new ({rows.count} rows): {sent.url}"
    with _alone(directory, wait_s=0.0):
        session = Session(directory, tracking, options.timeout, options.timeout, options.adopt)
        count = session.finish()
    return f"sent {count} of {rows.count} rows: {wandb_payload.UploadState(directory).url}"


def send_all(options: argparse.Namespace) -> int:
    """A line per folder that the input names. Returns 1 when a run is incomplete. Gives up on a server that is not there."""
    failed = in_vain = 0
    for line in sys.stdin:
        directory = RunDirectory(Path(line.rstrip("\n")))
        try:
            if in_vain == PATIENCE:
                raise Unsent("not tried, since the server could not be reached for those before")
            done = send_once(directory, options)
            in_vain = 0
        except (Unsent, UserError) as error:
            in_vain += isinstance(error, Unreachable)
            failed, done = failed + 1, f"NOT SENT: {error}"
        print(f"{directory.path.name}: {done}", flush=True)
    return 1 if failed else 0


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m qllm_exp.tracking.wandb_upload")
    parser.add_argument("follow", nargs="*", metavar="FOLDER PID")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--adopt", action="store_true")
    parser.add_argument("--timeout", type=float, default=60.0)
    options = parser.parse_args(arguments)
    if options.once:
        return send_all(options)
    for number in (signal.SIGINT, signal.SIGTERM):  # those are for the run; this process ends with it
        signal.signal(number, signal.SIG_IGN)
    os.nice(BEHIND)
    folder, pid = options.follow
    try:
        return follow(RunDirectory(Path(folder)), int(pid))
    except Unsent as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
