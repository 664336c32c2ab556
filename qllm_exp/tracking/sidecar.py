"""The process that sends a run's rows to Weights & Biases, from the side of the run, which never imports their client.

The run's own files are the record; `qllm_exp.tracking.wandb_upload` follows them in a process of its own. That process costs the
run a fork and, in the end, a wait that is bounded; whatever happens to the server, the client or that process, the run does not
notice. A thread would share the interpreter's lock, the exit and the faults of the client with training, and an import of half a
second and 50 MB. It is started by exec, so that it does not matter whether the run itself was forked.
"""

import contextlib
import logging
import os
import subprocess
import sys

from qllm_exp.config import schema
from qllm_exp.runs.metrics import Rows
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking.wandb_payload import UploadState

log = logging.getLogger(__name__)

_GRACE_S = 1.0  # beyond the time in which the mirror ends by itself

# All that the client sees of the environment: what Python, the system's network and the client's own login need.
_PASSED = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "XDG_CONFIG_HOME"),
    *("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_APP_URL", "WANDB_ENTITY", "WANDB_IDENTITY_TOKEN_FILE"),
    *("WANDB_CREDENTIALS_FILE", "WANDB_CONFIG_DIR", "WANDB_INSECURE_DISABLE_SSL", "WANDB_X_EXTRA_HTTP_HEADERS"),
}


def environment() -> dict[str, str]:
    """The environment of a process that imports the client. What is not named above, keys of models above all, is not in it."""
    passed = {key: value for key, value in os.environ.items() if key.upper() in _PASSED}
    return passed | {"WANDB_ERROR_REPORTING": "false"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qllm_exp.tracking.wandb_upload", *arguments]


class Mirror:
    """The mirror of one run. Does nothing for a run that is not tracked online."""

    def __init__(self, directory: RunDirectory, tracking: schema.TrackingConfig) -> None:
        self._directory, self._tracking = directory, tracking
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to send rows. Call it once the metrics file is cut to what the run goes on from."""
        if not isinstance(self._tracking, schema.WandbConfig) or self._tracking.mode != "online":
            return
        folder = self._directory.path.absolute()
        try:
            (folder / "wandb").mkdir(exist_ok=True)
            with open(folder / "wandb" / "mirror.txt", "ab") as said:
                self._process = subprocess.Popen(
                    command(str(folder), str(os.getpid())),
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C is for the run
                )
        except OSError as error:
            log.warning("nothing is sent to Weights & Biases: %s", error)

    def close(self) -> None:
        """Call it once the run's status says how it ended. Returns when all is sent, or `finish_s` later, and says which."""
        if self._process is None:
            return
        assert isinstance(self._tracking, schema.WandbConfig) and self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"\n")
            self._process.stdin.close()
        try:
            self._process.wait(self._tracking.finish_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        rows, sent = Rows(self._directory.metrics), UploadState(self._directory)
        rows.new()
        if sent.rows >= rows.count:
            log.info("W&B has all rows: %s", sent.url)
        else:
            path = self._directory.path
            log.warning(
                "W&B may miss rows of this run (%s says why); to send them: python -m qllm_exp.results sync %s",
                path / "wandb" / "mirror.txt",
                path,
            )
