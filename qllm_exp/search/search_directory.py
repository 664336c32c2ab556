"""The directory of a search: everything that it knows, so that it continues after any interruption.

search.json     the configuration       functions/KEY.json   the functions that were accepted, one file each
search.jsonl    the log, append-only    runs/                run directories of the trainings

A line of the log is a list of rows: the result of one step, whole or not there. Every step first reads the log and computes only
what is missing. The log of a search that was killed and started again therefore equals that of a search that never stopped. The
answers of the language model are in the journal of the function store (generation/ledger.py): no call is paid for twice.

Rows of the log, by 'kind':

question    'name' of the call, 'generation', 'island', 'model', 'parents' (keys), 'text': the request, before it is sent
call        a call with its answer and outcome, as in the transcript of a stored function
candidate   what became of a question: 'name', 'generation', 'island', 'parents', 'key' of the function ('' if it was refused),
            'reason' of the refusal, 'tuned': whether it is its parent with trained constants
training    'function': its key or a baseline ('vdn', 'qmix'), 'stage', 'seed', 'return' (null: diverged), 'curve' of ten returns,
            'evaluations': how many of them are different ones, 'run': name of the run directory, 'env_steps'
"""

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qllm_exp.config.load import load_run, to_dict
from qllm_exp.config.schema import RunConfig
from qllm_exp.credit import stored_function
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.runs.json_files import read_object, write_object
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import SEARCH_RECORD
from qllm_exp.utils.files import nearest_path, read_regular_file, strict_json

Row = dict[str, Any]

_MAX_BYTES = 2**28  # of a log


class SearchDirectory:
    """Paths and files of a search.

    Args:
        path: the directory.

    Attributes:
        rows: the log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = _read_log(self.log)

    @property
    def log(self) -> Path:
        """The log."""
        return self.path / "search.jsonl"

    @property
    def runs(self) -> Path:
        """Folder of the run directories of the trainings."""
        return self.path / "runs"

    @property
    def resume_command(self) -> str:
        """The command that continues the search."""
        return f"python -m qllm_exp.tfcaf search --resume {shlex.quote(str(self.path))}"

    def run(self, name: str) -> RunDirectory:
        """Return the directory of a training."""
        return RunDirectory(self.runs / name)

    def create(self, run: RunConfig, key: str) -> None:
        """Write the configuration, unless it is there, and remove what a killed process has left; for the searching process alone.

        Args:
            run: the configuration of the search.
            key: the key of the function that it looks for.

        Raises:
            UserError: the directory cannot be written, or belongs to another search.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            known = read_object(self.path / SEARCH_RECORD).get("key", key)
            if known != key:
                raise UserError(
                    f"{self.path} is the directory of another search ({known[:12]}). Choose another folder: dir=..."
                )
            write_object(self.path / SEARCH_RECORD, {"key": key, "config": to_dict(run)})
            _remove_incomplete_line(self.log)
        except OSError as error:
            raise UserError(
                f"Cannot write the search directory {self.path}: {error.strerror}. Choose another folder: dir=..."
            ) from error

    def read_config(self) -> RunConfig:
        """Return the configuration of the search.

        Raises:
            UserError: this is not the directory of a search.
        """
        config = read_object(self.path / SEARCH_RECORD).get("config")
        if not isinstance(config, dict):
            raise UserError(
                f"{self.path} is not the directory of a search: it has no {SEARCH_RECORD}.{nearest_path(self.path)} Give the "
                "folder that the search has printed, e.g. runs/search_1a2b3c4d."
            )
        return load_run(config)

    @property
    def key(self) -> str:
        """The key of the function that the search looks for; '' if the directory has no configuration."""
        return str(read_object(self.path / SEARCH_RECORD).get("key", ""))

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the results of all finished trainings, by the names of their run directories."""
        names = [path.parent.name for path in sorted(self.runs.glob("*/result.json"))]
        return {name: self.run(name).result() or {} for name in names}

    def append(self, rows: Sequence[Row]) -> None:
        """Append the rows of one step to the log, and wait until they are on the disk."""
        line = strict_json(list(rows))
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows += json.loads(line)  # as a later process will read them

    def of_kind(self, kind: str, **values: Any) -> list[Row]:
        """Return the rows of a kind that have the given values, in order."""
        return [row for row in self.rows if row["kind"] == kind and all(row[k] == v for k, v in values.items())]

    def restart(self) -> None:
        """Forget the log, so that the same command starts anew."""
        self.log.unlink(missing_ok=True)
        self.rows = []

    def function_path(self, key: str) -> Path:
        """Return the file of a function."""
        return self.path / "functions" / f"{key}.json"

    def add_function(self, function: StoredFunction) -> str:
        """Write the file of a function unless it exists, and return its key."""
        if not self.function_path(function.key).exists():
            function.save(self.function_path(function.key))
        return function.key

    def function(self, key: str) -> StoredFunction:
        """Load a function by its key."""
        return stored_function.load(self.function_path(key))


def cost_of(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return 'trainings', 'env_steps' and 'core_hours' of results of trainings."""
    finished = list(results)
    return {
        "trainings": len(finished),
        "env_steps": sum(int(result.get("env_steps", 0)) for result in finished),
        "core_hours": round(sum(float(result.get("wall_s", 0.0)) for result in finished) / 3600, 4),
    }


def _read_log(path: Path) -> list[Row]:
    """Return the rows of a log, up to a last line that is incomplete: it may be one that a running search is writing."""
    try:
        content = read_regular_file(path, _MAX_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"The log of the search {path} cannot be read: {error.strerror}.") from None
    complete = content[: content.rfind(b"\n") + 1]
    try:
        return [row for line in complete.splitlines() for row in json.loads(line)]
    except ValueError as error:
        raise UserError(
            f"The log of the search {path} is damaged: {error}. Restore the file, or remove the directory to start the search "
            "anew."
        ) from None


def _remove_incomplete_line(path: Path) -> None:
    """Remove a last line of a log that a killed process has left incomplete."""
    if path.exists():
        content = read_regular_file(path, _MAX_BYTES)
        os.truncate(path, content.rfind(b"\n") + 1)
