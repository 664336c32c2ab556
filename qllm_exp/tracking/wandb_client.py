"""How the client of Weights & Biases is set up, whoever uses it here."""

import os
from pathlib import Path

import wandb

_PATIENCE = {"RETRY_MAX": "3", "RETRY_WAIT_MIN_SECONDS": "0.5", "RETRY_WAIT_MAX_SECONDS": "5", "TIMEOUT_SECONDS": "20"}


def keep_out_of_home(folder: Path) -> None:
    """Have the client put into this folder what it would put into the home folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[name] = str(folder)


def api() -> wandb.Api:
    """For reading and for workspaces: says nothing, leaves nothing here, and gives up on a server that is not there.

    Call it after `keep_out_of_home`. Raises the client's errors where the login is not taken.
    """
    os.environ |= {"WANDB_SILENT": "true", "WANDB_DIR": os.environ["WANDB_DATA_DIR"]}
    os.environ |= {f"WANDB_X_GRAPHQL_{name}": value for name, value in _PATIENCE.items()}
    return wandb.Api(timeout=60)


def settings(init_s: float, finish_s: float) -> wandb.Settings:
    """The client's settings: nothing but what it is handed, and nothing that can wait for ever."""
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


def words(error: BaseException) -> str:
    """An error of the client's in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
