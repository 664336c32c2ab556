"""Stored credit-assignment functions: one JSON file each, with the source, the tensor program and the provenance.

The format of the file:

{"format": 2, "env": "lbf", "task": "8x8-2p-2f-coop-2s", "n_agents": 2, "state_dim": 14,
 "function": "credit_assignment", "source": "...", "program": {...},
 "prompt_hash": "<sha256>", "key": "<sha256 of the request>", "request": {... everything that shaped the answer ...},
 "provenance": {"model": "...", "date": "...", "procedure": "..."},
 "prompts": {"coder": "...", "evaluator": "..."}, "transcript": [{"call": "round-1-coder-1", "answer": "...", ...}, ...],
 "cost": {"calls": 4, "tokens_in": 0, "tokens_out": 0, "usd": null}, "verdict": "...", "hash": "<sha256 of the rest>"}
"""

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from qllm_exp.credit.program import Program
from qllm_exp.credit.program_json import canonical_json
from qllm_exp.credit.refused import FUNCTION_NAMES, Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.utils.files import write_atomically

FORMAT = 2
BUNDLED = Path(__file__).parent / "bundled"  # <env>/<task>.json, read only
_STRING_KEYS = ("env", "task", "function", "source", "prompt_hash", "key", "verdict")
_DICT_KEYS = ("request", "provenance", "prompts", "cost")
_KEYS = {"format", "n_agents", "state_dim", "program", "transcript", "hash", *_STRING_KEYS, *_DICT_KEYS}
_EDITED_ADVICE = (
    "Write the source to a .py file and import it (python -m qllm_exp.tfcaf import FILE), or restore the file."
)


@dataclass(frozen=True)
class StoredFunction:
    """A credit-assignment function with its source, tensor program and provenance.

    Attributes:
        env: environment family that it was written for.
        task: task that it was written for.
        source: Python source, for reading; training runs `program`.
        function: name of the function in the source.
        program: the tensor program.
        prompt_hash: `Prompts.hash` of the prompts that it answers; '' for an imported function.
        key: key under which it is stored: hash of `request`; for an imported function, hash of its source and task.
        request: everything that shaped the answer: prompts, procedure, model, sampling settings, sample.
        provenance: {'model', 'date', 'procedure'} and other known facts, as strings.
        prompts: the system prompts of the two roles, {'coder', 'evaluator'}.
        transcript: a row per call (coder_evaluator.Outcome); the messages are those after the system prompt.
        cost: {'calls', 'tokens_in', 'tokens_out', 'usd'}; usd is None if no price is known.
        verdict: how the function was chosen, and the notes of the verifier.
        path: the file it was loaded from; None for a function that is not stored yet.
    """

    env: str
    task: str
    source: str
    function: str
    program: Program
    prompt_hash: str = ""
    key: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    transcript: tuple[dict[str, Any], ...] = ()
    cost: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""
    path: Path | None = field(default=None, compare=False)

    @property
    def n_agents(self) -> int:
        """Number of agents."""
        return self.program.n_agents

    @property
    def state_dim(self) -> int:
        """Number of columns of the global state."""
        return self.program.state_dim

    def check_fits(self, env: TeamEnv) -> None:
        """Raise a UserError if `env` has another number of agents or another state dimension."""
        if (self.n_agents, self.state_dim) != (env.n_agents, env.state_dim):
            name = self.path if self.path is not None else f"for {self.env}/{self.task}"
            raise UserError(
                f"TFCAF {name} is for {self.n_agents} agents and a state of {self.state_dim} columns, but env "
                f"{env.task.env}/{env.task.task} has {env.n_agents} agents and a state of {env.state_dim} columns. "
                "Pass a matching file with mixer.file=..., or change the env."
            )

    def save(self, path: Path | str) -> None:
        """Write the file in one step: a reader never sees a partial file. An existing file is replaced."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _format_json(self._to_json()) + "\n")

    def _to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        names = [field.name for field in fields(self) if field.name not in {"path", "program"}]
        values = {name: getattr(self, name) for name in names}
        sizes = {"n_agents": self.n_agents, "state_dim": self.state_dim}
        content = {"format": FORMAT, **values, **sizes, "program": self.program.to_json()}
        return content | {"hash": content_hash(content)}


def _format_json(value: Any, depth: int = 0) -> str:
    """Return JSON text with one key, message or operation per line."""
    indent = "\n" + " " * (depth + 1)
    if depth < 3 and isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {_format_json(item, depth + 1)}" for key, item in value.items()]
        return "{" + indent + ("," + indent).join(items) + indent[:-1] + "}"
    if depth < 3 and isinstance(value, list | tuple) and value:
        return "[" + indent + ("," + indent).join(_format_json(item, 3) for item in value) + indent[:-1] + "]"
    return json.dumps(value, allow_nan=False)


def content_hash(content: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON data without its own 'hash', 64 hex digits."""
    text = canonical_json({key: value for key, value in content.items() if key != "hash"})
    return hashlib.sha256(text.encode()).hexdigest()


def load(path: Path | str) -> StoredFunction:
    """Load a stored function and check it.

    Args:
        path: the JSON file.

    Raises:
        UserError: the file cannot be read, or its content is not valid; the message names the file and the fault.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"TFCAF {path} does not exist. Pass an existing file with mixer.file=...") from None
    except OSError as error:
        raise UserError(f"TFCAF {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"TFCAF {path} is not JSON ({error}). Generate it again, or restore the file.") from None
    return _parse(data, path)


def bundled_path(env: str, task: str) -> Path:
    """Return the file of the function that ships with the package for a task.

    Args:
        env: environment family, e.g. 'lbf'.
        task: task in it, e.g. '8x8-2p-2f-coop-2s'.

    Raises:
        UserError: there is no bundled function for the task; the message lists the tasks that have one.
    """
    paths = _bundled_paths(BUNDLED)
    path = paths.get(f"{env}/{task}")
    if path is None:
        names = ", ".join(paths) or "none"
        raise UserError(
            f"No TFCAF for {env}/{task} is bundled with qllm_exp. Bundled: {names}. Choose a language model that can "
            "generate one (llm=openai, ...), pass a file with mixer.file=..., or use another mixer."
        )
    return path


@cache
def _bundled_paths(folder: Path) -> dict[str, Path]:
    """Map 'env/task' to the file, for every function below `folder`."""
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.glob("*/*.json"))}


def _parse(data: Any, path: Path) -> StoredFunction:
    """Check the content of a file and build the function from it."""
    if not isinstance(data, dict) or "format" not in data:
        raise _invalid(path, f"not a TFCAF file: it has no 'format' (this package writes format {FORMAT}).")
    if data["format"] != FORMAT:
        raise _invalid(
            path, f"unknown format {data['format']!r}; this package reads format {FORMAT}. Generate it again."
        )
    if set(data) != _KEYS:
        missing, unknown = sorted(_KEYS - set(data)), sorted(set(data) - _KEYS)
        raise _invalid(path, f"missing keys {missing}, unknown keys {unknown}. Generate it again, or restore the file.")
    for key in _STRING_KEYS:
        if not isinstance(data[key], str):
            raise _invalid(path, f"{key} must be a string, got {data[key]!r}.")
    if data["function"] not in FUNCTION_NAMES:
        raise _invalid(path, f"function {data['function']!r} is not one of {', '.join(FUNCTION_NAMES)}.")
    for key in _DICT_KEYS:
        if not isinstance(data[key], dict):
            raise _invalid(path, f"{key} must be a dictionary, got {data[key]!r}.")
    transcript = data["transcript"]
    if not isinstance(transcript, list) or not all(isinstance(row, dict) for row in transcript):
        raise _invalid(path, "transcript must be a list of dictionaries.")
    if data["hash"] != content_hash(data):
        raise _invalid(path, f"the content does not match its hash: the file was edited. {_EDITED_ADVICE}")
    try:
        program = Program.from_json(data["program"])
    except Refused as refused:
        raise _invalid(path, f"its program is not valid: {refused.reason}.") from None
    for key in ("n_agents", "state_dim"):
        if data[key] != getattr(program, key):
            raise _invalid(path, f"{key}={data[key]!r}, but its program is for {getattr(program, key)}.")
    names = [field.name for field in fields(StoredFunction) if field.name not in {"path", "program", "transcript"}]
    values = {name: data[name] for name in names}
    return StoredFunction(**values, program=program, transcript=tuple(transcript), path=path)


def _invalid(path: Path, fault: str) -> UserError:
    """Build the error for a file whose content is not valid."""
    return UserError(f"TFCAF {path}: {fault}")
