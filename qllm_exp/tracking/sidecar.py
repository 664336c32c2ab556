"""The sidecar process that uploads a run's rows to Weights & Biases, so that the run itself never imports the W&B client.

The run's own files are the record; `qllm_exp.tracking.wandb_upload` follows them in a separate process. It costs the run a
fork and, at the end, a bounded wait. A failure of the server, the client or that process does not affect the run. A thread
would share the interpreter lock, the exit and the crashes of the client with training, and importing the client takes half
a second and 50 MB. The process is started by exec, so that it does not matter whether the run itself was forked.
"""

import contextlib
import logging
import os
import subprocess
import sys

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.runs.metrics import MetricsReader
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking.wandb_login import obey_environment
from qllm_exp.tracking.wandb_payload import UploadState

log = logging.getLogger(__name__)

_GRACE_S = 1.0  # beyond the time after which the sidecar ends by itself

# The only environment variables that the client gets: what Python, the system's network and the client's login need.
_ALLOWED_VARIABLES = {
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "XDG_CONFIG_HOME",
    "PYTHONPATH",
    "PYTHONHOME",
    "LD_LIBRARY_PATH",
    "NETRC",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_APP_URL",
    "WANDB_ENTITY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_CREDENTIALS_FILE",
    "WANDB_CONFIG_DIR",
    "WANDB_INSECURE_DISABLE_SSL",
    "WANDB_X_EXTRA_HTTP_HEADERS",
}


def environment() -> dict[str, str]:
    """Return the environment of a process that imports the client: allowed variables only, so no key of a language model."""
    allowed = {key: value for key, value in os.environ.items() if key.upper() in _ALLOWED_VARIABLES}
    return allowed | {"WANDB_ERROR_REPORTING": "false"}


def command(*arguments: str) -> list[str]:
    """Return the command line of an upload process."""
    return [sys.executable, "-m", "qllm_exp.tracking.wandb_upload", *arguments]


class Sidecar:
    """The upload process of one run. Does nothing for a run that is not tracked online.

    Args:
        directory: of the run.
        tracking: the run's tracking configuration.
    """

    def __init__(self, directory: RunDirectory, tracking: schema.TrackingConfig) -> None:
        self._directory = directory
        self._tracking = tracking
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the upload. Call it after the metrics file is truncated to the checkpoint that the run resumes from."""
        if not isinstance(self._tracking, schema.WandbConfig):
            return
        folder = self._directory.path.absolute()
        try:
            if obey_environment(self._tracking).mode != "online":  # a run may be resumed where WANDB_MODE is another
                return
            (folder / "wandb").mkdir(exist_ok=True)
            with open(folder / "wandb" / "mirror.txt", "ab") as log_file:
                self._process = subprocess.Popen(
                    command(str(folder), str(os.getpid())),
                    stdin=subprocess.PIPE,
                    stdout=log_file,
                    stderr=log_file,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C reaches the run only
                )
        except (OSError, UserError) as error:
            log.warning("nothing is uploaded to Weights & Biases: %s", error)

    def close(self) -> None:
        """Wait until everything is uploaded, at most `finish_s`, and log the outcome. Call it after the final status is written."""
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
        rows, uploaded = MetricsReader(self._directory.metrics), UploadState(self._directory)
        rows.read_new()
        if uploaded.rows >= rows.count:
            log.info("W&B has all rows: %s", uploaded.url)
        else:
            path = self._directory.path
            log.warning(
                "W&B may lack rows of this run (see %s); to upload them: python -m qllm_exp.results sync %s",
                path / "wandb" / "mirror.txt",
                path,
            )
