"""A stored credit-assignment function: one JSON file with its source, tensor program and where both come from.

{"format": 2, "env": "lbf", "task": "8x8-2p-2f-coop-2s", "n_agents": 2, "state_dim": 14,
 "function": "credit_assignment", "source": "...", "program": {...},
 "prompt_hash": "<sha256>", "key": "<sha256 of all that shaped the answer>", "request": {... what the key is taken of ...},
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
from qllm_exp.credit.program_json import canonical
from qllm_exp.credit.refused import FUNCTION_NAMES, Refused
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.utils.files import write_atomically

FORMAT = 2
BUNDLED = Path(__file__).parent / "bundled"  # <env>/<task>.json, read only
_TEXTS = ("env", "task", "function", "source", "prompt_hash", "key", "verdict")
_EDITED = "Put the source into a .py file and import that (python -m qllm_exp.tfcaf import FILE), or restore the file."
_DICTS = ("request", "provenance", "prompts", "cost")
_KEYS = {"format", "n_agents", "state_dim", "program", "transcript", "hash", *_TEXTS, *_DICTS}


@dataclass(frozen=True)
class StoredFunction:
    """A stored function.

    Attributes:
        env, task: what it was written for.
        source: Python, for reading; training runs `program`.
        function: name of the function in the source.
        prompt_hash: `Prompts.hash` of the prompts that asked for it; '' for a function that no prompt asked for.
        key: what it is stored under: hash of `request`; of the source for a function that no prompt asked for.
        request: all that shaped the answer: prompts, procedure, model, sampling settings, sample.
        provenance: {'model', 'date', 'procedure'} and what else is known, as texts.
        prompts: the system prompts of the two roles, {'coder', 'evaluator'}.
        transcript: a row per call (coder_evaluator.Outcome); the messages are those after the system prompt.
        cost: {'calls', 'tokens_in', 'tokens_out', 'usd'}; usd is None where no price is known.
        verdict: how it was chosen, and what the verifier remarked.
        path: the file it was loaded from; None for one that is not stored yet.
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
        return self.program.n_agents

    @property
    def state_dim(self) -> int:
        return self.program.state_dim

    def check_fits(self, env: TeamEnv) -> None:
        """Raise a UserError where the function is for another number of agents or another state."""
        if (self.n_agents, self.state_dim) != (env.n_agents, env.state_dim):
            what = self.path if self.path is not None else f"for {self.env}/{self.task}"
            raise UserError(
                f"TFCAF {what} is for {self.n_agents} agents and a state of {self.state_dim} columns; "
                f"env {env.task.env}/{env.task.task} has {env.n_agents} and {env.state_dim}. "
                f"Give a file that fits with mixer.file=..., or change the env to fit."
            )

    def save(self, path: Path | str) -> None:
        """Write the file at once or not at all: a reader never sees half of it. An existing file is replaced."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _laid_out(self._to_json()) + "\n")

    def _to_json(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in {"path", "program"}}
        sizes = {"n_agents": self.n_agents, "state_dim": self.state_dim}
        content = {"format": FORMAT, **values, **sizes, "program": self.program.to_json()}
        return content | {"hash": digest(content)}


def _laid_out(value: Any, depth: int = 0) -> str:
    """JSON with a key, a message or an operation per line."""
    indent = "\n" + " " * (depth + 1)
    if depth < 3 and isinstance(value, dict) and value:
        inside = ("," + indent).join(f"{json.dumps(k)}: {_laid_out(v, depth + 1)}" for k, v in value.items())
        return "{" + indent + inside + indent[:-1] + "}"
    if depth < 3 and isinstance(value, list | tuple) and value:
        return "[" + indent + ("," + indent).join(_laid_out(v, 3) for v in value) + indent[:-1] + "]"
    return json.dumps(value, allow_nan=False)


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of JSON data, without its own 'hash'."""
    return hashlib.sha256(canonical({k: v for k, v in content.items() if k != "hash"}).encode()).hexdigest()


def load(path: Path | str) -> StoredFunction:
    """Read and check a stored function; raises a UserError that names the file and what is wrong with it."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"TFCAF {path} does not exist. Give an existing file with mixer.file=...") from None
    except OSError as error:
        raise UserError(f"TFCAF {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"TFCAF {path} is not JSON ({error}). Generate it again, or restore the file.") from None
    return _parsed(data, path)


def bundled(env: str, task: str) -> Path:
    """The function that ships with the package for a task, as a file to `load`; UserError where there is none."""
    found = _shipped(BUNDLED).get(f"{env}/{task}")
    if found is None:
        names = ", ".join(_shipped(BUNDLED)) or "none"
        advice = (
            "Choose an llm that can be asked (llm=openai, ...), give a file with mixer.file=..., or use another mixer."
        )
        raise UserError(f"No TFCAF for {env}/{task} comes with qllm_exp. Bundled: {names}. {advice}")
    return found


@cache
def _shipped(folder: Path) -> dict[str, Path]:
    """'env/task' to the file, for every function that comes with the package."""
    return {str(one.relative_to(folder).with_suffix("")): one for one in sorted(folder.glob("*/*.json"))}


def _parsed(data: Any, path: Path) -> StoredFunction:
    def wrong(what: str) -> UserError:
        return UserError(f"TFCAF {path}: {what}")

    if not isinstance(data, dict) or "format" not in data:
        raise wrong(f"this is no TFCAF file: it has no 'format' (this package writes format {FORMAT}).")
    if data["format"] != FORMAT:
        raise wrong(f"format {data['format']!r} is unknown; this package reads format {FORMAT}. Generate it again.")
    if set(data) != _KEYS:
        missing, unknown = sorted(_KEYS - set(data)), sorted(set(data) - _KEYS)
        raise wrong(f"missing keys {missing}, unknown keys {unknown}. Generate it again, or restore the file.")
    for key in _TEXTS:
        if not isinstance(data[key], str):
            raise wrong(f"{key} must be a text, not {data[key]!r}.")
    if data["function"] not in FUNCTION_NAMES:
        raise wrong(f"function {data['function']!r} is not one of {', '.join(FUNCTION_NAMES)}.")
    for key in _DICTS:
        if not isinstance(data[key], dict):
            raise wrong(f"{key} must be a dictionary, not {data[key]!r}.")
    transcript = data["transcript"]
    if not isinstance(transcript, list) or not all(isinstance(row, dict) for row in transcript):
        raise wrong("transcript must be a list of dictionaries.")
    if data["hash"] != digest(data):
        raise wrong("its content does not match its hash: the file was edited. " + _EDITED)
    try:
        program = Program.from_json(data["program"])
    except Refused as refused:
        raise wrong(f"its program is not valid: {refused.reason}.") from None
    for key in ("n_agents", "state_dim"):
        if data[key] != getattr(program, key):
            raise wrong(f"{key}={data[key]!r}, but its program is for {getattr(program, key)}.")
    kept = {
        one.name: data[one.name] for one in fields(StoredFunction) if one.name not in {"path", "program", "transcript"}
    }
    return StoredFunction(**kept, program=program, transcript=tuple(transcript), path=path)
