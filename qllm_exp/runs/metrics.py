"""The metrics file of a run: one JSON object a line, of which a process that was killed may have torn the last."""

import json
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError

KINDS = ("training", "evaluation", "absolute")
_TRAINING = b'{"kind": "training"'  # how such a row begins


def read_rows(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """Rows of the given kinds ('training', 'evaluation', 'absolute'; none given: all), as they were written.

    A last line without its end is ignored: it was being written when the process died, or is being written now.

    Raises:
        UserError: for a missing file, and for any other line that is no row; the message names file and line.
    """
    wanted = kinds or KINDS
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Copy the run's whole folder.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line or ("training" not in wanted and _is_whole_training_row(line)):
            continue
        try:
            row = json.loads(line)
            if row["kind"] in wanted:
                rows.append(row)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                shown = line[:60].decode(errors="replace")
                raise UserError(
                    f"{path}, line {number} is no row of figures: {shown!r}. Only the last line of a run may be torn. "
                    "Copy the file again from where the run was made, or leave the run out."
                ) from None
    return rows


def _is_whole_training_row(line: bytes) -> bool:
    """Told without parsing, since most rows are of this kind. A row that was torn and written on has a second brace."""
    return line.startswith(_TRAINING) and line.endswith(b"}") and line.rfind(b"{") == 0


class Rows:
    """The rows of a metrics file, in order, as they are written.

    Rows are counted, not bytes: a run that goes on from its checkpoint writes the rows after it again, and their wall-clock
    times, and so their lengths, are others.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self.count = path, 0, 0

    def new(self) -> list[dict[str, Any]]:
        """The rows that were completed since the last call."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = [json.loads(line) for line in whole.splitlines()]
        self.count += len(rows)
        return rows
