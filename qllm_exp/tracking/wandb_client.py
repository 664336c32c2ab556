"""Settings of the Weights & Biases client, shared by all modules that import it."""

import os
from pathlib import Path

import wandb

_RETRY_LIMITS = {
    "RETRY_MAX": "3",
    "RETRY_WAIT_MIN_SECONDS": "0.5",
    "RETRY_WAIT_MAX_SECONDS": "5",
    "TIMEOUT_SECONDS": "20",
}


def keep_out_of_home(folder: Path) -> None:
    """Make the client write into this folder what it would write into the home folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[name] = str(folder)


def api() -> wandb.Api:
    """Return a client for reading and for workspaces: silent, without files of its own, and with a limit on retries.

    Call it after `keep_out_of_home`.

    Raises:
        Exception: the client's own error types, where the server rejects the stored credentials.
    """
    os.environ |= {"WANDB_SILENT": "true", "WANDB_DIR": os.environ["WANDB_DATA_DIR"]}
    os.environ |= {f"WANDB_X_GRAPHQL_{name}": value for name, value in _RETRY_LIMITS.items()}
    return wandb.Api(timeout=60)


def settings(init_s: float, finish_s: float) -> wandb.Settings:
    """Return settings under which the client sends only what it is given and never waits without a limit.

    Args:
        init_s: seconds for starting a run on the server.
        finish_s: seconds for finishing it.
    """
    return wandb.Settings(
        mode="online",
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        program="qllm_exp",  # otherwise the path of this file
        host="",
        symlink=False,
        init_timeout=init_s,
        finish_timeout=finish_s,
        finish_timeout_raises=True,
        x_file_stream_transmit_interval=5.0,
    )


def one_line(error: BaseException) -> str:
    """Return the type and the message of a client error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
