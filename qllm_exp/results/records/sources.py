"""What may be given where a command asks for folders: folders, and projects of Weights & Biases, read into folders first."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qllm_exp.errors import UserError

_SCHEME = "wandb:"
_EXAMPLE = (
    "Write wandb://PROJECT, wandb://ENTITY/PROJECT or wandb://ENTITY/PROJECT/SWEEP, e.g. wandb://my-team/qllm_exp."
)


@dataclass(frozen=True)
class Address:
    """An address as it was typed: 'wandb://ENTITY/PROJECT/GROUP'."""

    text: str

    def __str__(self) -> str:
        return self.text

    def parts(self) -> tuple[str, str, str]:
        """Entity ('' for the default one), project, group ('' for all). UserError for what is no address."""
        found = re.fullmatch(r"wandb://(?:([^/]+)/)?([^/]+)/?", self.text) or re.fullmatch(
            r"wandb://([^/]+)/([^/]+)/([^/]+)/?", self.text
        )
        parts = tuple(part or "" for part in found.groups()) if found else ()
        if not parts or any(re.search(r"[\\#?%:\s]", part) or part in (".", "..") for part in parts):
            raise UserError(f"{self.text!r} is no address of a project. {_EXAMPLE}")
        entity, project, *group = parts
        return entity, project, group[0] if group else ""


@dataclass(frozen=True)
class Project:
    """A project that was read: the folders of its runs, by name, and the entity that an address without one means."""

    entity: str
    project: str
    group: str
    folders: tuple[Path, ...]


def source(text: str) -> Path | Address:
    """For argparse: a folder, or an address that `local` will resolve."""
    return Address(text) if text.startswith(_SCHEME) else Path(text)


def local(given: Sequence[Path | Address]) -> list[Path]:
    """Folders for all that was given, in its order; a project stands for the folders of its runs.

    Raises:
        UserError: as `read`.
    """
    return [path for one in given for path in (read(one).folders if isinstance(one, Address) else (one,))]


def read(address: Address) -> Project:
    """Read what is new in a project, in a process of its own, which alone imports the client; says a line about it.

    Raises:
        UserError: for a malformed address, without a login, for a project that is not there or has no run of this package,
            and where the server is lost.
    """
    from qllm_exp.tracking import sidecar, wandb_login
    from qllm_exp.utils.files import cache_folder

    entity, project, group = address.parts()
    if not wandb_login.logged_in():
        raise UserError(f"{address.text}: {wandb_login.HOW.format(server=wandb_login.server())}.")
    server = hashlib.sha256(wandb_login.server().encode()).hexdigest()[:8]
    cache = cache_folder() / "wandb" / server
    command = [sys.executable, "-m", "qllm_exp.tracking.wandb_download", str(cache), entity, project, group]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=sidecar.environment(), check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise UserError(f"{address.text}: the process that reads it ended with code {done.returncode}.") from None
    if "error" in answer:
        raise UserError(f"{address.text}: {answer['error']}")
    folders = tuple(Path(path) for path in answer["folders"])
    left_out = f"; left out: {answer['foreign']} not made by qllm_exp" if answer["foreign"] else ""
    if not folders:
        what = f"no run of the sweep {group}" if group else "no run of qllm_exp"
        raise UserError(f"{address.text} has {what}{left_out}. Runs are sent there with tracking=wandb.")
    print(f"{address.text}: {len(folders)} runs, {answer['read']} new or changed{left_out}", file=sys.stderr)
    return Project(answer["entity"], answer["project"], group, folders)
