"""The coder: a language model that writes functions. A refused function goes back to it with the reason.

QLLM's procedure (coder_evaluator.py) and the search (qllm_exp/search) request their functions here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.credit.refused import Refused
from qllm_exp.errors import UserError
from qllm_exp.generation.prompt_rendering import MAX_ANSWER, Prompts, extract_code
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import CallFailed, Message, Reply, Request
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

Verifier = Callable[[Sequence[str]], Sequence[Accepted | Refused]]  # sources to verdicts, in the same order


class NoCandidateAccepted(UserError):
    """No function was accepted, so there is nothing to continue from."""


class LanguageModel(Protocol):
    """The interface that a procedure requires of a language model."""

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Answer all requests; a reply or a failure for each, in the same order."""


@dataclass(frozen=True)
class WrittenFunction:
    """An accepted function with the answer that contains it.

    Attributes:
        answer: the whole answer of the coder.
        accepted: the verified function.
    """

    answer: str
    accepted: Accepted


class Coder:
    """Requests functions, verifies them, and requests repairs.

    Args:
        prompts: the prompts of the task.
        options: the `tfcaf` group of the configuration.
        model: the language model.
        verify: decides for each source whether it is accepted.

    Attributes:
        transcript: a row per call: its name and role, the messages after the system prompt, the answer, the cost, and the
            outcome.
    """

    def __init__(self, prompts: Prompts, options: GenerationConfig, model: LanguageModel, verify: Verifier) -> None:
        self._prompts, self._options, self._model, self._verify = prompts, options, model, verify
        self.transcript: list[dict[str, Any]] = []

    def write(
        self, conversations: Mapping[str, Sequence[Message]], title: str
    ) -> tuple[dict[str, WrittenFunction], dict[str, str]]:
        """Request a function for each conversation, all at once, and repairs of those that are refused.

        Args:
            conversations: messages by the name of the call; the last message is the request.
            title: what the functions are for, e.g. 'round 2', for the log.

        Returns:
            The accepted functions, and the last reason for each of the others, by the name of the call.
        """
        pending = {name: list(messages) for name, messages in conversations.items()}
        accepted: dict[str, WrittenFunction] = {}
        reasons: dict[str, str] = {}
        for attempt in range(1, self._options.retries + 2):
            suffix = f"-attempt-{attempt}" if attempt > 1 else ""
            requests = {name: Request(tuple(pending[name]), f"{name}{suffix}") for name in pending}
            for name, (verdict, answer) in self._attempt(requests).items():
                if isinstance(verdict, Accepted):
                    accepted[name] = WrittenFunction(answer, verdict)
                    del pending[name]
                    continue
                reasons[name] = str(verdict)
                if answer and self._options.error_feedback:
                    retry = self._prompts.coder_retry(verdict.reason)
                    pending[name] = [*conversations[name], message("assistant", answer), message("user", retry)]
            log.info("  %s: %d of %d candidates accepted", title, len(accepted), len(conversations))
            if not pending:
                break
        in_order = [name for name in conversations if name in accepted]
        return {name: accepted[name] for name in in_order}, {name: reasons[name] for name in pending}

    def _attempt(self, requests: Mapping[str, Request]) -> dict[str, tuple[Accepted | Refused, str]]:
        """Send the requests, by candidate, and return the verdict and the answer of each.

        The answer is '' if there is none, or if it is too long to be sent back.
        """
        replies = dict(zip(requests, self._model.ask(list(requests.values())), strict=True))
        verdicts: dict[str, tuple[Accepted | Refused, str]] = {}
        sources: dict[str, str] = {}
        for name, reply in replies.items():
            if isinstance(reply, CallFailed):
                verdicts[name] = Refused("answer", f"no answer: {reply}"), ""
                continue
            try:
                sources[name] = extract_code(reply.text)
            except Refused as refused:
                verdicts[name] = refused, reply.text if len(reply.text) <= MAX_ANSWER else ""
        source_verdicts = self._verify(list(sources.values())) if sources else []
        for name, verdict in zip(sources, source_verdicts, strict=True):
            reply = replies[name]
            verdicts[name] = verdict, reply.text if isinstance(reply, Reply) else ""
        for name, request in requests.items():
            verdict, _ = verdicts[name]
            outcome = "accepted" if isinstance(verdict, Accepted) else f"refused ({verdict.stage}): {verdict.reason}"
            self.transcript.append(call_row("coder", request, replies[name], outcome))
        return verdicts


def call_row(role: str, request: Request, reply: Reply | CallFailed, outcome: str) -> dict[str, Any]:
    """Return the row of a call for a transcript.

    Args:
        role: 'coder' or 'evaluator'.
        request: the call.
        reply: its reply or its failure.
        outcome: what became of the answer.
    """
    row: dict[str, Any] = {"call": request.name, "role": role, "messages": list(request.messages[1:])}
    if isinstance(reply, Reply):
        row |= {
            "answer": reply.text,
            "model": reply.model,
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
            "cost_usd": reply.cost_usd,
            "seconds": round(reply.seconds, 2),
            "attempts": reply.attempts,
        }
        if reply.estimated:
            row["usage"] = "estimated"
    else:
        row |= {
            "answer": "",
            "model": "",
            "tokens_in": 0,
            "tokens_out": 0,
            "cost_usd": None,
            "seconds": 0.0,
            "attempts": 0,
        }
    return row | {"outcome": outcome}


def no_candidate_message(options: GenerationConfig, reasons: Sequence[str]) -> str:
    """Return the error message for candidates that were all refused.

    Args:
        options: the `tfcaf` group of the configuration.
        reasons: the last reason for each candidate.
    """
    tries = f"{count(options.candidates, 'candidate')}, {count(options.retries + 1, 'attempt')} each"
    reason_lines = "\n".join(f"  {reason}" for reason in reasons)
    advice = "Choose another llm, or raise tfcaf.retries."
    return f"No credit-assignment function was accepted ({tries}). The last reasons:\n{reason_lines}\n{advice}"


def message(role: str, content: str) -> Message:
    """Build a message of a conversation."""
    return {"role": role, "content": content}
