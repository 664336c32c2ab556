"""Language models, found by name: `llm.backend=online` is the module `qllm_exp.llm.online`.

Each module has `make(config) -> Backend`, where `config` is the `llm` group of the configuration as a dataclass. A backend
answers conversations and knows nothing of credit assignment. Keys come from the environment only, and no text that a backend
returns, logs or raises contains one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qllm_exp.config import registry
from qllm_exp.errors import UserError

Message = dict[str, str]  # {'role': 'system' | 'user' | 'assistant', 'content': text}


@dataclass(frozen=True)
class Request:
    """A call of a language model.

    Attributes:
        messages: the conversation so far; the last message is the user's.
        name: name of the call, unique within a generation, e.g. 'round-1-coder-2'.
    """

    messages: tuple[Message, ...]
    name: str


@dataclass(frozen=True)
class Reply:
    """The answer of a language model.

    Attributes:
        text: the whole answer, unedited; never empty.
        model: the model that answered, as the provider names it.
        tokens_in: tokens of the prompt, as the provider counts them.
        tokens_out: tokens of the answer, as the provider counts them.
        cost_usd: cost of all attempts; None if no price is known.
        seconds: time from the first attempt to the answer, waits included.
        attempts: number of attempts, failed ones included.
        estimated: whether tokens and cost are estimates, because the provider reports no tokens.
    """

    text: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float | None = None
    seconds: float = 0.0
    attempts: int = 1
    estimated: bool = False


class CallFailed(UserError):
    """A call has no answer after all attempts. The message says why and what to do, without a secret.

    Attributes:
        cost_usd: cost of the attempts, since a truncated answer is paid for as well; None if no price is known.
    """

    def __init__(self, message: str, cost_usd: float | None = 0.0) -> None:
        super().__init__(message)
        self.cost_usd = cost_usd


OnAnswer = Callable[[Request, Reply | CallFailed], None]


class Backend(ABC):
    """Answers conversations."""

    @abstractmethod
    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Send all requests at once and wait for all answers.

        Args:
            requests: the calls.

        Returns:
            A reply or a failure per request, in the same order.

        Raises:
            UserError: no further call can succeed, e.g. because a key is missing or the model does not exist.
        """

    def ask_each(self, requests: Sequence[Request], on_answer: OnAnswer) -> list[Reply | CallFailed]:
        """Like `ask`, and pass each answer on as soon as it is known.

        A backend that waits for each answer separately overrides this, so that answers can be stored while other calls are
        still open.

        Args:
            requests: the calls.
            on_answer: called once per request, one at a time; an exception that it raises ends all calls.
        """
        answers = self.ask(requests)
        for request, answer in zip(requests, answers, strict=True):
            on_answer(request, answer)
        return answers

    def check(self) -> None:  # noqa: B027 - a backend may need nothing
        """Raise a UserError if something is missing for a call, e.g. a key. Makes no call."""

    @abstractmethod
    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        """Return an upper bound of the cost of these calls, one attempt each; None if no price is known."""


def make_backend(config: Any) -> Backend:
    """Make the backend of an `llm` configuration; raises a UserError if it is not valid."""
    backend: Backend = registry.find("llm", config.backend).make(config)
    return backend
