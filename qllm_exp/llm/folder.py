"""A folder in place of a language model: prompts are written to files, and answers are read from files beside them.

So any language model can be asked, by hand or by a script: give it each prompt, write its answer beside it, run again.
The file of a call is named after the call and the hash of its conversation: an answer is never read for another prompt.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, Message, Reply, Request
from qllm_exp.utils.files import write_atomically


@dataclass
class Config(schema.LlmConfig):
    """Answers read from files, so that any language model can be asked by hand."""

    name: str = "folder"
    backend: str = "folder"
    path: str = field(default="", metadata={"identity": False})
    model: str = ""


def make(config: Config) -> Backend:
    """The backend of a configuration; UserError where it names no folder."""
    if not config.path:
        raise UserError(
            "llm=folder needs a folder for prompts and answers: give it as llm.path=..., e.g. llm.path=answers."
        )
    return FolderBackend(config)


class FolderBackend(Backend):
    """See the module."""

    def __init__(self, config: Config) -> None:
        self._folder = Path(config.path).expanduser()
        self._model = config.model or "a large language model"

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """The answers; UserError where a file is missing or empty. All prompts are written before that."""
        stems = [stem(request) for request in requests]
        for request, name in zip(requests, stems, strict=True):
            prompt = self._folder / f"{name}.prompt.txt"
            if not prompt.exists():
                _write(prompt, prompt_text(request.messages))
        answers = [self._folder / f"{name}.answer.txt" for name in stems]
        missing = [path for path in answers if not path.exists()]
        if missing:
            lines = "\n".join(f"  {path}" for path in missing)
            raise UserError(
                f"llm=folder: {len(missing)} of {len(answers)} answers are missing:\n{lines}\n"
                "For each, give the prompt (the file of the same name with .prompt.txt) alone to a language model, write "
                "its whole answer into the file, and run the same command again."
            )
        return [Reply(_read(path), self._model) for path in answers]

    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        """Nothing: this package pays for no answer that a file holds."""
        return 0.0


def stem(request: Request) -> str:
    """The name of a call's files: its own, and 8 hexadecimal digits of the SHA-256 of its messages as JSON."""
    messages = json.dumps(list(request.messages), sort_keys=True, ensure_ascii=False)
    return f"{request.name}-{hashlib.sha256(messages.encode()).hexdigest()[:8]}"


def prompt_text(messages: Sequence[Message]) -> str:
    """A conversation as one text: a system and a user message joined by a blank line, a longer one with a line per role."""
    if [message["role"] for message in messages] == ["system", "user"]:
        return "\n\n".join(message["content"].strip("\n") for message in messages)
    return "\n\n".join(f"[{message['role']}]\n{message['content'].strip(chr(10))}" for message in messages)


def _read(path: Path) -> str:
    """The file's text, unedited."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"llm=folder: {path} is not UTF-8 text. Save the answer as UTF-8.") from None
    except OSError as error:
        raise UserError(f"llm=folder: {path} cannot be read ({error.strerror}).") from None
    if not text.strip():
        raise UserError(f"llm=folder: {path} is empty. Write the language model's whole answer into it, or delete it.")
    return text


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(
            f"llm.path={path.parent} cannot be written ({error.strerror or error}): name another folder."
        ) from None
