"""A folder in place of a language model: prompts are written to files, and answers are read from files beside them.

Any language model can be used this way, by hand or with a script: give it each prompt, write its answer to the file beside
it, and run the same command again. A file is named after the call and the hash of its conversation, so that an answer is
never read for another prompt.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, Message, Reply, Request
from qllm_exp.utils.files import read_regular_file, write_atomically


@dataclass
class Config(schema.LlmConfig):
    """Answers read from files, so that any language model can be asked by hand."""

    name: str = "folder"
    backend: str = "folder"
    path: str = field(default="", metadata={"identity": False})
    model: str = ""


_MAX_BYTES = 8 * 2**20  # of an answer


def make(config: Config) -> Backend:
    """Make the backend of a configuration; raises a UserError if llm.path is empty."""
    if not config.path:
        raise UserError("llm=folder needs a folder for prompts and answers: set llm.path=..., e.g. llm.path=answers.")
    return FolderBackend(config)


class FolderBackend(Backend):
    """Reads answers from files, see the description of the module."""

    def __init__(self, config: Config) -> None:
        self._folder = Path(config.path).expanduser()
        self._model = config.model or "a large language model"

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Write all prompts, then read the answers.

        Args:
            requests: the calls.

        Returns:
            A reply per request, in the same order.

        Raises:
            UserError: the file of an answer is missing or empty.
        """
        stems = [file_stem(request) for request in requests]
        for request, stem in zip(requests, stems, strict=True):
            prompt_path = self._folder / f"{stem}.prompt.txt"
            if not prompt_path.exists():
                _write(prompt_path, prompt_text(request.messages))
        answer_paths = [self._folder / f"{stem}.answer.txt" for stem in stems]
        missing = [path for path in answer_paths if not path.exists()]
        if missing:
            missing_lines = "\n".join(f"  {path}" for path in missing)
            raise UserError(
                f"llm=folder: {len(missing)} of {len(answer_paths)} answers are missing:\n{missing_lines}\n"
                "Give each prompt (the file of the same name with .prompt.txt) on its own to a language model, write its "
                "whole answer to the file, and run the same command again."
            )
        return [Reply(_read(path), self._model) for path in answer_paths]

    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        """Return 0: answers in files cost nothing."""
        return 0.0


def file_stem(request: Request) -> str:
    """Return the name of a call's files: the name of the call, and 8 hex digits of the SHA-256 of its messages as JSON."""
    messages = json.dumps(list(request.messages), sort_keys=True, ensure_ascii=False)
    return f"{request.name}-{hashlib.sha256(messages.encode()).hexdigest()[:8]}"


def prompt_text(messages: Sequence[Message]) -> str:
    """Return a conversation as one text.

    A system message and a user message are joined by a blank line. In longer conversations, a line with the role comes
    before each message.
    """
    if [message["role"] for message in messages] == ["system", "user"]:
        return "\n\n".join(message["content"].strip("\n") for message in messages)
    return "\n\n".join(f"[{message['role']}]\n{message['content'].strip(chr(10))}" for message in messages)


def _read(path: Path) -> str:
    """Read the text of an answer, unedited."""
    try:
        text = read_regular_file(path, _MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"llm=folder: {path} is not UTF-8 text. Save the answer as UTF-8.") from None
    except OSError as error:
        raise UserError(f"llm=folder: {path} cannot be read ({error.strerror}).") from None
    if not text.strip():
        raise UserError(
            f"llm=folder: {path} is empty. Write the whole answer of the language model to it, or delete it."
        )
    return text


def _write(path: Path, text: str) -> None:
    """Write a prompt, and create its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(
            f"llm.path={path.parent} cannot be written ({error.strerror or error}). Choose another folder."
        ) from None
