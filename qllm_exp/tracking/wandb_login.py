"""Checks of Weights & Biases credentials and names before a run starts, without the W&B client and without the network."""

import logging
import netrc
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from qllm_exp.config import schema
from qllm_exp.errors import UserError, nearest

log = logging.getLogger(__name__)

LOGIN_HINT = (
    "no W&B credentials for {server} are stored on this machine. Type `wandb login` first (or set WANDB_API_KEY)"
)
_PUBLIC_SERVER = "https://api.wandb.ai"
_MODES = ("online", "offline", "disabled")  # each uploads less than those before it
_MODE_SYNONYMS = {"run": "online", "dryrun": "offline"}  # earlier names, which the client accepts
_FALSE = ("", "0", "f", "false", "n", "no", "off")


def obey_environment(tracking: schema.WandbConfig) -> schema.WandbConfig:
    """Return the configuration with the mode that WANDB_MODE and WANDB_DISABLED leave, and log it once if it is another.

    The variables only restrict the mode: with tracking.mode=offline, WANDB_MODE=online uploads nothing.

    Args:
        tracking: the run's tracking configuration.

    Raises:
        UserError: WANDB_MODE is not a mode of this package.
    """
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    mode = _MODE_SYNONYMS.get(mode, mode) or _MODES[0]
    if mode not in _MODES:
        raise UserError(
            f"WANDB_MODE={os.environ['WANDB_MODE']!r} is not supported.{nearest(mode, _MODES)} Allowed: {', '.join(_MODES)}. "
            "Set one of these, or type: unset WANDB_MODE"
        )
    variable = f"WANDB_MODE={mode}"
    if os.environ.get("WANDB_DISABLED", "").strip().lower() not in _FALSE:
        mode, variable = "disabled", "WANDB_DISABLED"
    if _MODES.index(mode) <= _MODES.index(tracking.mode):
        return tracking
    _log_once(
        f"tracking=wandb: {variable} is set, so nothing is uploaded while runs train"
        + (" (later: python -m qllm_exp.results sync)" if mode == "offline" else "")
    )
    return replace(tracking, mode=mode)


@cache
def _log_once(message: str) -> None:
    log.info("%s", message)


def check(tracking: schema.WandbConfig, tags: tuple[str, ...]) -> None:
    """Raise UserError for a run that could not be uploaded: no credentials, or a name that W&B rejects.

    Args:
        tracking: the run's tracking configuration.
        tags: all tags of the run.
    """
    if tracking.mode == "disabled":
        return
    if not tracking.project or len(tracking.project) > 128 or re.search(r"[/\\#?%:]", tracking.project):
        raise UserError(
            f"tracking.project={tracking.project!r} is not a valid project name: use 1 to 128 characters without / \\ # ? % :"
        )
    for tag in tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(
                f"The tag {tag!r} has {len(tag)} characters; Weights & Biases allows 1 to 64 (sweep.tags, tracking.tags)."
            )
    if tracking.mode == "online" and not logged_in():
        raise UserError(
            f"tracking=wandb: {LOGIN_HINT.format(server=server())}, or use tracking.mode=offline (uploaded later by "
            f"python -m qllm_exp.results sync), or tracking=local."
        )


@cache
def server() -> str:
    """Return the server's URL: WANDB_BASE_URL, else the host of `wandb login --host=...`, else the public service."""
    url = os.environ.get("WANDB_BASE_URL") or _setting("base_url") or _PUBLIC_SERVER
    return url.rstrip("/")


@cache
def logged_in() -> bool:
    """Whether a key or a token for `server()` is stored, in the places where the client looks for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _setting("api_key"):
        return True
    netrc_variable = os.environ.get("NETRC")
    defaults = [Path.home() / ".netrc", Path.home() / "_netrc"]
    paths = [Path(netrc_variable).expanduser()] if netrc_variable else defaults
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return False
    try:
        return netrc.netrc(str(path)).authenticators(urlsplit(server()).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _setting(key: str) -> str:
    """A value of the settings file that `wandb login` writes; '' if it has none."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    try:
        text = (Path(folder) / "settings").read_text()
    except OSError:
        return ""
    match = re.search(rf"^\s*{key}\s*[=:]\s*(\S+)\s*$", text, re.MULTILINE)
    return match[1] if match else ""
