"""Whether this machine has a login for Weights & Biases: looked up where their client does, without it and without the network."""

import netrc
import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from qllm_exp.config import schema
from qllm_exp.errors import UserError

HOW = "there is no login for {server} here. Type `wandb login` first (or set WANDB_API_KEY)"
_SERVICE = "https://api.wandb.ai"


def check(tracking: schema.WandbConfig, tags: tuple[str, ...]) -> None:
    """UserError for a run that could not be sent: nobody is logged in, or a name that the service does not take.

    Args:
        tags: all of the run's.
    """
    if tracking.mode == "disabled":
        return
    if not tracking.project or len(tracking.project) > 128 or re.search(r"[/\\#?%:]", tracking.project):
        raise UserError(
            f"tracking.project={tracking.project!r} is no name for a project: use 1 to 128 characters without / \\ # ? % :"
        )
    for tag in tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(
                f"The tag {tag!r} has {len(tag)} characters; Weights & Biases takes 1 to 64 (sweep.tags, tracking.tags)."
            )
    if tracking.mode == "online" and not logged_in():
        raise UserError(
            f"tracking=wandb: {HOW.format(server=server())}, or use tracking.mode=offline (sent later: "
            f"python -m qllm_exp.results sync), or tracking=local."
        )


@cache
def server() -> str:
    """The server that runs are sent to: WANDB_BASE_URL, else that of `wandb login --host=...`, else the public service."""
    given = os.environ.get("WANDB_BASE_URL") or _setting("base_url") or _SERVICE
    return given.rstrip("/")


@cache
def logged_in() -> bool:
    """Whether there is a key or a token for `server()`. Looked up once."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _setting("api_key"):
        return True
    given = os.environ.get("NETRC")
    paths = [Path(given).expanduser()] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return False
    try:
        return netrc.netrc(str(path)).authenticators(urlsplit(server()).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _setting(key: str) -> str:
    """A value of the settings file that `wandb login` writes; '' when it has none."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    try:
        text = (Path(folder) / "settings").read_text()
    except OSError:
        return ""
    found = re.search(rf"^\s*{key}\s*[=:]\s*(\S+)\s*$", text, re.MULTILINE)
    return found[1] if found else ""
