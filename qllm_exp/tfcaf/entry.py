"""A stored credit-assignment function: one JSON file with its source, tensor program and where both come from.

{"format": 1, "env": "lbf", "task": "8x8-2p-2f-coop-2s", "n_agents": 2, "state_dim": 14,
 "function": "credit_assignment", "source": "...", "program": {...}, "program_hash": "<sha256>",
 "source_hash": "<sha256>", "prompt_hash": "<sha256>",
 "provenance": {"model": "...", "date": "...", "procedure": "..."},
 "transcript": [{"role": "system", "content": "..."}, ...], "verdict": "..."}
"""

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.tfcaf.program import Program
from qllm_exp.tfcaf.static_check import FUNCTION_NAMES, Refused

FORMAT = 1
BUNDLED = Path(__file__).parent / "bundled"  # <env>/<task>.json, read only
_TEXTS = ("env", "task", "function", "source", "program_hash", "source_hash", "prompt_hash", "verdict")
_KEYS = {"format", "n_agents", "state_dim", "program", "provenance", "transcript", *_TEXTS}


@dataclass(frozen=True)
class Entry:
    """A stored function.

    Attributes:
        env, task: what it was written for.
        source: Python, for reading; training runs `program`.
        function: name of the function in the source.
        prompt_hash: `Prompts.hash` of the prompts that asked for it; '' for a function that no prompt asked for.
        provenance: {'model', 'date', 'procedure'} and what else is known.
        transcript: the conversation, [{'role', 'content'}].
        verdict: why it was chosen, or other notes.
        path: the file it was loaded from; None for one that is not stored yet.
    """

    env: str
    task: str
    source: str
    function: str
    program: Program
    prompt_hash: str = ""
    provenance: dict[str, str] = field(default_factory=dict)
    transcript: tuple[dict[str, str], ...] = ()
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
        text = json.dumps(self._to_json(), indent=1, allow_nan=False) + "\n"
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files for their owner only
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def _to_json(self) -> dict[str, Any]:
        values = {key: value for key, value in asdict(self).items() if key not in {"path", "program"}}
        return {
            "format": FORMAT,
            **values,
            "n_agents": self.n_agents,
            "state_dim": self.state_dim,
            "program": self.program.to_json(),
            "program_hash": self.program.hash,
            "source_hash": _sha256(self.source),
        }


def load(path: Path | str) -> Entry:
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
    path = BUNDLED / env / f"{task}.json"
    shipped = {str(one.relative_to(BUNDLED).with_suffix("")): one for one in sorted(BUNDLED.glob("*/*.json"))}
    found = shipped.get(f"{env}/{task}")
    if found is None:
        names = ", ".join(shipped) or "none"
        advice = "Give a file of your own with mixer.file=..., or use another mixer."
        raise UserError(f"No TFCAF for {env}/{task} comes with qllm_exp. Bundled: {names}. {advice}")
    return path


def _parsed(data: Any, path: Path) -> Entry:
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
    provenance, transcript = data["provenance"], data["transcript"]
    if not isinstance(provenance, dict) or not all(isinstance(value, str) for value in provenance.values()):
        raise wrong("provenance must be a dictionary of texts.")
    if not isinstance(transcript, list) or not all(_is_message(message) for message in transcript):
        raise wrong("transcript must be a list of {'role': text, 'content': text}.")
    try:
        program = Program.from_json(data["program"])
    except Refused as refused:
        raise wrong(f"its program is not valid: {refused.reason}.") from None
    for key, given in (("program", program.hash), ("source", _sha256(data["source"]))):
        if data[f"{key}_hash"] != given:
            raise wrong(
                f"the {key} does not match {key}_hash: the file was edited. "
                "Edit the source in a .py file and generate the entry from it, or restore the file."
            )
    for key in ("n_agents", "state_dim"):
        if data[key] != getattr(program, key):
            raise wrong(f"{key}={data[key]!r}, but its program is for {getattr(program, key)}.")
    return Entry(
        env=data["env"],
        task=data["task"],
        source=data["source"],
        function=data["function"],
        program=program,
        prompt_hash=data["prompt_hash"],
        provenance=provenance,
        transcript=tuple(transcript),
        verdict=data["verdict"],
        path=path,
    )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and all(isinstance(value, str) for value in message.values())
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
