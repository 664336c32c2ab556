"""Stored credit-assignment functions: one JSON file each, with the source, the tensor program and the provenance.

The format of the file:

{"format": 2, "env": "lbf", "task": "8x8-2p-2f-coop-2s", "n_agents": 2, "state_dim": 14,
 "function": "credit_assignment", "source": "...", "program": {...},
 "prompt_hash": "<sha256>", "key": "<sha256 of the request>", "request": {... everything that shaped the answer ...},
 "provenance": {"model": "...", "date": "...", "procedure": "..."},
 "prompts": {"coder": "...", "evaluator": "..."}, "transcript": [{"call": "round-1-coder-1", "answer": "...", ...}, ...],
 "cost": {"calls": 4, "tokens_in": 0, "tokens_out": 0, "usd": null}, "verdict": "...", "hash": "<sha256 of the rest>"}

Anybody may have written such a file, so `load` checks all of it before anything of it is used. Its texts may still contain
anything: show them with `qllm_exp.utils.text.inert` or `inert_lines`.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qllm_exp.credit.program import Program
from qllm_exp.credit.program_json import canonical_json
from qllm_exp.credit.refused import FUNCTION_NAMES, Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError, nearest
from qllm_exp.utils.files import MAX_BYTES, nearest_path, parse_strict_json, read_regular_file, write_atomically
from qllm_exp.utils.text import excerpt, inert

FORMAT = 2
STATE_KIND = "state"  # key of the provenance: value of env.state, where it is not 'features'
BUNDLED = Path(__file__).parent / "bundled"  # <env>/<task>.json, read only; further samples: <task>.sample-<n>.json
_STRING_KEYS = ("env", "task", "function", "source", "prompt_hash", "key", "verdict", "hash")
_DICT_KEYS = ("request", "provenance", "prompts", "cost", "program")
_KEYS = {"format", "n_agents", "state_dim", "transcript", *_STRING_KEYS, *_DICT_KEYS}
_COST_KEYS = frozenset({"calls", "tokens_in", "tokens_out", "usd"})
_ROW_STRINGS = ("call", "outcome", "answer")  # of a transcript row, beside its messages
_ROW_NUMBERS = ("tokens_in", "tokens_out", "cost_usd", "seconds", "attempts")
_DIGITS = re.compile(r"[0-9a-f]{64}")
_ENV = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)  # a module
_TASK = re.compile(r"\w[\w.:+@-]*(/\w[\w.:+@-]*)*", re.ASCII)  # no part is '..', and nothing has a meaning for Hydra
_MAX_NAME = 128
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
        provenance: {'model', 'date', 'procedure'} and other known facts, as strings; 'state' if env.state was not 'features'.
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

    @property
    def state_kind(self) -> str:
        """Value of `env.state` that it was written for."""
        return self.provenance.get(STATE_KIND, TeamEnv.state_kind)

    def check_fits(self, env: TeamEnv) -> None:
        """Raise a UserError if `env` has another number of agents, another state dimension or another kind of state."""
        if (self.n_agents, self.state_dim) != (env.n_agents, env.state_dim):
            name = inert(self.path if self.path is not None else f"for {self.env}/{self.task}")
            raise UserError(
                f"TFCAF {name} is for {self.n_agents} agents and a state of {self.state_dim} columns, but env "
                f"{env.task.env}/{env.task.task} has {env.n_agents} agents and a state of {env.state_dim} columns. "
                "Pass a matching file with mixer.file=..., or change the env."
            )
        if self.state_kind != env.state_kind:  # whose sizes may be equal by accident
            name = inert(self.path if self.path is not None else f"for {self.env}/{self.task}")
            raise UserError(
                f"TFCAF {name} was verified with env.state={self.state_kind}, but this run has env.state={env.state_kind}, whose "
                f"columns mean something else. Type env.state={self.state_kind}, or import the function again with "
                f"env.state={env.state_kind}."
            )

    def check_written_for(self, env: TeamEnv) -> None:
        """Raise a UserError if the function was written for another task than that of `env`.

        A function that the user names with mixer.file may be for another task (generation/transfer.py); no other function may.
        """
        task = env.task
        if (self.env, self.task) != (task.env, task.task):
            raise UserError(
                f"TFCAF {inert(self.path)} is for {self.env}/{self.task}, not for {task.env}/{task.task}. Remove the file to "
                f"have the function generated again; to use it all the same: mixer.file={inert(self.path)} "
                f"mixer.written_for={self.env}/{self.task}"
            )

    def check_values(self, states: Tensor) -> None:
        """Raise a UserError if the program fails on a state, or its value or a weight there is not finite.

        Args:
            states: [B, state_dim] states of the task.
        """
        try:
            weights, bias = self.program.weights_and_bias(states)
        except (RuntimeError, IndexError, ValueError) as error:  # e.g. an index that depends on the state
            reason = excerpt(str(error).partition("\n")[0], 200)
        else:
            if bool(torch.isfinite(weights).all()) and bool(torch.isfinite(bias).all()):
                return
            reason = "its value or a weight is not finite"
        name = inert(self.path if self.path is not None else f"for {self.env}/{self.task}")
        raise UserError(f"TFCAF {name} does not work on the states of the task: {reason}. {_EDITED_ADVICE}")

    def save(self, path: Path | str) -> None:
        """Write the file in one step: a reader never sees a partial file. An existing file is replaced.

        A function whose file would be too large to be read again is saved with less of its transcript: without earlier
        messages of a conversation, or without the transcript.

        Raises:
            UserError: the environment or the task has a name that a stored function cannot have.
        """
        check_names(self.env, self.task)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        last_messages = tuple(row | {"messages": row.get("messages", [])[-1:]} for row in self.transcript)
        for transcript in (self.transcript, last_messages, ()):
            text = _format_json(replace(self, transcript=transcript)._to_json()) + "\n"
            if len(text) <= MAX_BYTES:  # it is ASCII
                break
        write_atomically(path, text)

    def _to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        names = [field.name for field in fields(self) if field.name not in {"path", "program"}]
        values = {name: _encodable(getattr(self, name)) for name in names}
        sizes = {"n_agents": self.n_agents, "state_dim": self.state_dim}
        content = {"format": FORMAT, **values, **sizes, "program": self.program.to_json()}
        return content | {"hash": content_hash(content)}


def check_names(env: str, task: str) -> None:
    """Raise a UserError if a stored function cannot be for this environment and task.

    Names of stored functions end up in commands, configurations and names of files, so few characters are allowed.

    Args:
        env: environment family: a Python module.
        task: task in it.
    """
    if len(env) > _MAX_NAME or not _ENV.fullmatch(env):
        raise UserError(
            f"env {excerpt(env)!r} is not a name that a stored function may have: a Python module of up to {_MAX_NAME} "
            "characters, e.g. lbf or package.module."
        )
    if len(task) > _MAX_NAME or not _TASK.fullmatch(task):
        raise UserError(
            f"task {excerpt(task)!r} is not a name that a stored function may have: up to {_MAX_NAME} letters, digits and "
            "the characters _ - . : + @ /"
        )


def _encodable(value: Any) -> Any:
    """Return JSON data with '?' for halves of surrogate pairs, which a model's answer may contain and UTF-8 cannot encode."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


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
        path: the JSON file. A file that is named by a key must hold the function of that key.

    Raises:
        UserError: the file cannot be read, or its content is not valid; the message names the file and the fault.
    """
    path = Path(path)
    name = inert(path)
    try:
        data = parse_strict_json(read_regular_file(path))
    except FileNotFoundError:
        hint = inert(nearest_path(path))
        raise UserError(f"TFCAF {name} does not exist.{hint} Pass an existing file with mixer.file=...") from None
    except OSError as error:
        raise UserError(f"TFCAF {name} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"TFCAF {name} is not JSON: {inert(error)}. Generate it again, or restore the file.") from None
    try:
        return _parse(data, path)
    except _Invalid as invalid:
        raise UserError(f"TFCAF {name}: {invalid}") from None


def bundled_path(env: str, task: str, sample: int = 0) -> Path:
    """Return the file of the function that ships with the package for a task.

    Args:
        env: environment family, e.g. 'lbf'.
        task: task in it, e.g. '8x8-2p-2f-coop-2s'.
        sample: index of an independent repetition of the procedure that wrote it.

    Raises:
        UserError: there is no bundled function for the task, or no such sample; the message lists what there is.
    """
    paths = _bundled_paths(BUNDLED)
    path = paths.get(f"{env}/{task}{_sample_suffix(sample)}")
    if path is None and f"{env}/{task}" in paths:
        samples = [n for n in range(sample) if f"{env}/{task}{_sample_suffix(n)}" in paths]
        raise UserError(
            f"tfcaf.sample={sample} is not bundled with qllm_exp for {env}/{task}. Allowed: {', '.join(map(str, samples))}. "
            "Choose a language model that can generate another sample (llm=openai, ...)."
        )
    if path is None:
        names, hint = ", ".join(paths) or "none", nearest(f"{env}/{task}", paths)
        raise UserError(
            f"No TFCAF for {env}/{task} is bundled with qllm_exp.{hint} Bundled: {names}. Choose a language model that can "
            "generate one (llm=openai, ...), pass a file with mixer.file=..., or use another mixer."
        )
    return path


def _sample_suffix(sample: int) -> str:
    """Return what the name of a bundled sample has after the task."""
    return f".sample-{sample}" if sample else ""


def bundled_names() -> list[str]:
    """Return 'env/task' of every function that ships with the package, or 'env/task.sample-1' of a further sample."""
    return list(_bundled_paths(BUNDLED))


@cache
def _bundled_paths(folder: Path) -> dict[str, Path]:
    """Map the names of `bundled_names` to the files, for every function below `folder`."""
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.glob("*/*.json"))}


class _Invalid(Exception):
    """The content of a file is not valid. The message says why and what to do."""


def _parse(data: Any, path: Path) -> StoredFunction:
    """Check the content of a file, and build the function from it.

    Raises:
        _Invalid: anything in it is wrong.
    """
    if not isinstance(data, dict) or "format" not in data:
        raise _Invalid(f"not a TFCAF file: it has no 'format' (this package writes format {FORMAT}).")
    if type(data["format"]) is not int or data["format"] != FORMAT:
        written = excerpt(repr(data["format"]))
        raise _Invalid(f"unknown format {written}; this package reads format {FORMAT}. Generate it again.")
    if set(data) != _KEYS:
        missing, unknown = sorted(_KEYS - set(data)), excerpt(sorted(set(data) - _KEYS))
        raise _Invalid(f"missing keys {missing}, unknown keys {unknown}. Generate it again, or restore the file.")
    for key in _STRING_KEYS:
        _check_type(key, data[key], "a string", _is_text)
    for key in _DICT_KEYS:
        _check_type(key, data[key], "a dictionary", _is_dict)
    if data["hash"] != content_hash(data):
        raise _Invalid(f"the content does not match its hash: the file was edited. {_EDITED_ADVICE}")
    _check_names(data)
    _check_key(data, path)
    _check_origin(data)
    try:
        program = Program.from_json(data["program"])
    except Refused as refused:
        raise _Invalid(f"its program is not valid: {excerpt(refused.reason, 500)}.") from None
    for key in ("n_agents", "state_dim"):
        if type(data[key]) is not int or data[key] != getattr(program, key):
            raise _Invalid(f"{key}={excerpt(repr(data[key]))}, but its program is for {getattr(program, key)}.")
    names = [field.name for field in fields(StoredFunction) if field.name not in {"path", "program", "transcript"}]
    values = {name: data[name] for name in names}
    return StoredFunction(**values, program=program, transcript=tuple(data["transcript"]), path=path)


def _check_type(name: str, value: Any, expected: str, is_valid: Callable[[Any], bool]) -> None:
    """Raise _Invalid if a value is not of its type.

    Args:
        name: what the value is.
        value: the value.
        expected: its type, for the message.
        is_valid: whether the value has the type.
    """
    if not is_valid(value):
        raise _Invalid(f"{name} must be {expected}, got {excerpt(repr(value))}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_amount(value)


def _is_amount_or_none(value: Any) -> bool:
    return value is None or _is_amount(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _check_names(data: Mapping[str, Any]) -> None:
    """Check the names of environment, task and function."""
    try:
        check_names(data["env"], data["task"])
    except UserError as error:
        raise _Invalid(str(error)) from None
    if data["function"] not in FUNCTION_NAMES:
        raise _Invalid(f"function {excerpt(data['function'])!r} is not one of {', '.join(FUNCTION_NAMES)}.")


def _check_key(data: Mapping[str, Any], path: Path) -> None:
    """Check the hashes: the key is that of the request, or of an imported source, and that of the file's name."""
    key, request = data["key"], data["request"]
    for name in ("key", "prompt_hash"):
        if data[name] and not _DIGITS.fullmatch(data[name]):
            raise _Invalid(f"{name} must be 64 hexadecimal digits or empty, got {excerpt(data[name])!r}.")
    if _DIGITS.fullmatch(path.stem) and path.stem != key:
        raise _Invalid(
            f"it is filed under the key {path.stem[:12]}, but holds the function of key {key[:12] or 'none'}. "
            "Remove it, or give it its own name."
        )
    if not key:
        return
    content = imported_content(
        *(data[name] for name in ("source", "env", "task", "n_agents", "state_dim", "provenance"))
    )
    contents = [request] if request else [content, content[:3]]  # version 0.1 left out the sizes
    if key not in [hashlib.sha256(canonical_json(content).encode()).hexdigest() for content in contents]:
        raise _Invalid(f"its key {key[:12]} is not the hash of its request, or of its source. {_EDITED_ADVICE}")
    if request and request.get("prompts", data["prompt_hash"]) != data["prompt_hash"]:
        raise _Invalid(f"its prompt hash is not that of its request. {_EDITED_ADVICE}")


def imported_content(
    source: str, env: str, task: str, n_agents: int, state_dim: int, provenance: Mapping[str, Any]
) -> list[Any]:
    """Return what the key of an imported function is the hash of."""
    return [source, env, task, n_agents, state_dim, *([provenance[STATE_KIND]] if STATE_KIND in provenance else [])]


def _check_origin(data: Mapping[str, Any]) -> None:
    """Check prompts, provenance, cost and transcript."""
    for group in ("provenance", "prompts"):
        for name, value in data[group].items():
            _check_type(f"{group}.{excerpt(name)}", value, "a string", _is_text)
    cost = data["cost"]
    if cost or data["request"]:
        missing = sorted(_COST_KEYS - set(cost))
        if missing:
            raise _Invalid(f"cost has no {', '.join(missing)}. Generate it again, or restore the file.")
        for name in ("calls", "tokens_in", "tokens_out"):
            _check_type(f"cost.{name}", cost[name], "a whole number from 0", _is_count)
        _check_type("cost.usd", cost["usd"], "a number from 0 or null", _is_amount_or_none)
    for name in cost.keys() - _COST_KEYS:
        _check_type(f"cost.{excerpt(name)}", cost[name], "a number, a string or null", _is_scalar)
    transcript = data["transcript"]
    if not isinstance(transcript, list) or not all(isinstance(row, dict) for row in transcript):
        raise _Invalid("transcript must be a list of dictionaries.")
    for number, row in enumerate(transcript, 1):
        _check_row(f"transcript row {number}", row)


def _check_row(name: str, row: Mapping[str, Any]) -> None:
    """Check a row of the transcript. `name` stands for it in messages."""
    for key in _ROW_STRINGS:
        _check_type(f"{name}: {key}", row.get(key), "a string", _is_text)
    for key in _ROW_NUMBERS:
        _check_type(f"{name}: {key}", row.get(key), "a number from 0 or null", _is_amount_or_none)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _Invalid(f"{name}: messages must be a list with at least one message.")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise _Invalid(f"{name}: a message must have the texts role and content, got {excerpt(repr(message))}.")
    for key in row.keys() - {"messages", *_ROW_STRINGS, *_ROW_NUMBERS}:
        _check_type(f"{name}: {excerpt(key)}", row[key], "a number, a string or null", _is_scalar)
