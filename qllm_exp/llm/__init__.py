"""Language models, found by name: `llm.backend=online` is the module `qllm_exp.llm.online`.

Each module has `make(config) -> Backend`, where config is the `llm` group of the configuration as a plain dataclass.
A backend answers conversations. It knows nothing of credit assignment; keys come from the environment only, and a text
that a backend returns, logs or raises never contains one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qllm_exp.config import registry
from qllm_exp.errors import UserError

Message = dict[str, str]  # {'role': 'system' | 'user' | 'assistant', 'content': text}


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        messages: the conversation so far; the last message is the user's.
        name: what the call is for, unique within a generation, e.g. 'round-1-coder-2'.
    """

    messages: tuple[Message, ...]
    name: str


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: the whole answer, unedited; never empty.
        model: who answered, as the provider calls it.
        tokens_in, tokens_out: as the provider counts them; 0 where it does not say.
        cost_usd: None where no price is known.
        seconds: from the first attempt to the answer, waiting included.
        attempts: calls that it took, failed ones included.
    """

    text: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float | None = None
    seconds: float = 0.0
    attempts: int = 1


class CallFailed(UserError):
    """No answer after all attempts; the message says why and what to do, without a secret.

    Attributes:
        cost_usd: what the attempts cost all the same (an answer that is cut off is paid for); None where no price is known.
    """

    def __init__(self, message: str, cost_usd: float | None = 0.0) -> None:
        super().__init__(message)
        self.cost_usd = cost_usd


class Backend(ABC):
    """Answers conversations."""

    @abstractmethod
    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Send all requests at once and wait for all; an answer or a failure for each, in their order.

        Raises UserError for what no further call can mend (a missing key, a model that does not exist).
        """

    def check(self) -> None:  # noqa: B027 - a backend may need nothing
        """UserError where something is missing that asking needs, e.g. a key. LanguageModel nobody."""

    @abstractmethod
    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        """An upper bound of what these calls cost when each is answered once; None where no price is known."""


def make_backend(config: Any) -> Backend:
    """The backend of an `llm` configuration; UserError where it has none."""
    backend: Backend = registry.find("llm", config.backend).make(config)
    return backend
