"""Sources of runs: directories; Weights & Biases projects, whose runs are first downloaded; and archives, which are unpacked."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.results.records.archive import is_archive, open_archive

_SCHEME = "wandb:"
_SYNTAX = (
    "Write wandb://PROJECT, wandb://ENTITY/PROJECT or wandb://ENTITY/PROJECT/SWEEP, e.g. wandb://my-team/qllm_exp."
)


@dataclass(frozen=True)
class Address:
    """Address of a W&B project, as typed: 'wandb://ENTITY/PROJECT/GROUP'."""

    text: str

    def __str__(self) -> str:
        return self.text

    def parts(self) -> tuple[str, str, str]:
        """Return entity ('' for the default one), project, and group ('' for all).

        Raises:
            UserError: the text is not an address.
        """
        match = re.fullmatch(r"wandb://(?:([^/]+)/)?([^/]+)/?", self.text) or re.fullmatch(
            r"wandb://([^/]+)/([^/]+)/([^/]+)/?", self.text
        )
        parts = tuple(part or "" for part in match.groups()) if match else ()
        if not parts or any(re.search(r"[\\#?%:\s]", part) or part in (".", "..") for part in parts):
            raise UserError(f"{self.text!r} is not the address of a W&B project. {_SYNTAX}")
        entity, project, *group = parts
        return entity, project, group[0] if group else ""


@dataclass(frozen=True)
class Project:
    """A W&B project after download.

    Attributes:
        entity: the entity, also where the address names none.
        project: name of the project.
        group: the sweep that was read; '' for all runs.
        folders: directories of the runs, by name.
    """

    entity: str
    project: str
    group: str
    folders: tuple[Path, ...]


def parse_source(text: str) -> Path | Address:
    """Return the directory or the address that a command-line argument names (a type for argparse)."""
    return Address(text) if text.startswith(_SCHEME) else Path(text)


def to_folders(sources: Sequence[Path | Address]) -> list[Path]:
    """Return the directories of all sources, in order; a project or an archive stands for the directories of its runs.

    Raises:
        UserError: as in `read_project` and `open_archive`.
    """
    folders: list[Path] = []
    for source in sources:
        if isinstance(source, Address):
            folders += read_project(source).folders
        else:
            folders.append(open_archive(source) if is_archive(source) else source)
    return folders


def read_project(address: Address) -> Project:
    """Download what is new in a project, and print one line about it.

    The download runs in a separate process, which alone imports the W&B client.

    Raises:
        UserError: the address is malformed, nobody is logged in, the project does not exist or has no run of this package, or
            the connection to the server is lost.
    """
    from qllm_exp.tracking import sidecar, wandb_login
    from qllm_exp.utils.files import cache_folder

    entity, project, group = address.parts()
    if not wandb_login.logged_in():
        raise UserError(f"{address.text}: {wandb_login.LOGIN_HINT.format(server=wandb_login.server())}.")
    server = hashlib.sha256(wandb_login.server().encode()).hexdigest()[:8]
    cache = cache_folder() / "wandb" / server
    command = [sys.executable, "-m", "qllm_exp.tracking.wandb_download", str(cache), entity, project, group]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=sidecar.environment(), check=False)
    try:
        answer = json.loads(process.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise UserError(f"{address.text}: the download process failed with exit code {process.returncode}.") from None
    if "error" in answer:
        raise UserError(f"{address.text}: {answer['error']}")
    folders = tuple(Path(path) for path in answer["folders"])
    left_out = f"; left out: {answer['foreign']} not made by qllm_exp" if answer["foreign"] else ""
    if not folders:
        missing = f"no run of the sweep {group}" if group else "no run of qllm_exp"
        raise UserError(f"{address.text} has {missing}{left_out}. Set tracking=wandb to send runs there.")
    print(f"{address.text}: {len(folders)} runs, {answer['read']} new or changed{left_out}", file=sys.stderr)
    return Project(answer["entity"], answer["project"], group, folders)
