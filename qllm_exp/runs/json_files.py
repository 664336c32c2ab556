"""JSON files of runs: read strictly for results, leniently while a run may be writing them, and written in one step."""

import json
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.utils.files import read_regular_file, strict_json, write_atomically


def read_bytes(path: Path) -> bytes | None:
    """Return the content of a file; None if it does not exist.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return read_regular_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def parse_object(path: Path, content: bytes) -> dict[str, Any]:
    """Return the JSON object that a file of a run holds.

    Args:
        path: the file, for the error message.
        content: its content.

    Raises:
        UserError: the content is not a JSON object.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is truncated or not valid JSON: {error}. Copy the run directory again, or leave this run out."
        ) from None
    if not isinstance(parsed, dict):
        raise UserError(f"{path} is not a JSON object. Copy the run directory again, or leave this run out.")
    return parsed


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file is missing, unreadable, invalid or holds something else."""
    try:
        return parse_object(path, read_bytes(path) or b"{}")
    except UserError:
        return {}


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object in one step, so that a reader never sees a part of it."""
    write_atomically(path, strict_json(content, indent=1) + "\n")
