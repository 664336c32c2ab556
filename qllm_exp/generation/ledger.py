"""Ledger of calls: stores each answer as it arrives, and checks the budget and the disk before each call.

A generation that is interrupted and started again finds its earlier answers in the journal and resumes from there. No call
is made unless its answer can be stored.
"""

import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, Message, Reply, Request
from qllm_exp.utils.files import read_regular_file, strict_json
from qllm_exp.utils.text import count

RESERVED_BYTES = 2**18  # that must be free for each call: a long answer, in the journal and in the stored function

_MAX_BYTES = 2**28  # of a journal
_RESERVATION_UNSUPPORTED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}


class Ledger:
    """A backend with a journal and a budget.

    Args:
        backend: answers the requests that the journal has no answer for.
        journal: file of earlier answers, one JSON object per line; created if it does not exist.
        budget_usd: limit of the cost of the whole generation, earlier answers included; None for no limit.

    Attributes:
        calls: number of calls made by this object; answers from the journal do not count.
    """

    def __init__(self, backend: Backend, journal: Path, budget_usd: float | None) -> None:
        self._backend, self._journal, self._budget = backend, journal, budget_usd
        self._known, self._lost_usd = _read(journal)
        self.calls = 0

    @property
    def spent_usd(self) -> float:
        """Cost of the generation so far in US dollars; answers without a known price count as 0."""
        return self._lost_usd + sum(reply.cost_usd or 0.0 for _, reply in self._known.values())

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Answer from the journal where possible, and from the backend otherwise.

        Args:
            requests: the calls to answer.

        Returns:
            A reply or a failure per request, in the same order.

        Raises:
            UserError: the calls could exceed the budget, their answers cannot be stored, or the backend cannot be asked.
        """
        new_requests = [request for request in requests if not self._has(request)]
        answers: dict[str, Reply | CallFailed] = {}
        if new_requests:
            self._check_budget(new_requests)
            self._check_journal(new_requests)
            names = [request.name for request in new_requests]
            answers = dict(zip(names, self._ask_backend(new_requests), strict=True))
        return [self._known[request.name][1] if self._has(request) else answers[request.name] for request in requests]

    def _ask_backend(self, requests: list[Request]) -> list[Reply | CallFailed]:
        """Send requests to the backend, and store each answer as it arrives."""
        if hasattr(self._backend, "ask_each"):
            return self._backend.ask_each(requests, self._store)
        answers = self._backend.ask(requests)  # a backend of one's own that has only the methods of version 0.1
        for request, answer in zip(requests, answers, strict=True):
            self._store(request, answer)
        return answers

    def _has(self, request: Request) -> bool:
        """Whether the journal has the answer to this request: the same name and the same conversation."""
        return request.name in self._known and self._known[request.name][0] == list(request.messages)

    def _check_budget(self, requests: list[Request]) -> None:
        """Raise a UserError if these calls could exceed the budget."""
        if self._budget is None:
            return
        worst_usd = self._backend.worst_case_usd(requests)
        if worst_usd is None:
            raise UserError(
                "tfcaf.budget_usd needs the price of the model, which is unknown. Set llm.usd_per_million_in=... and "
                "llm.usd_per_million_out=..., or tfcaf.budget_usd=null."
            )
        if self.spent_usd + worst_usd > self._budget:
            note = " (an estimate)" if any(reply.estimated for _, reply in self._known.values()) else ""
            raise UserError(
                f"The generation stops before it could exceed tfcaf.budget_usd={self._budget:g}: {self.spent_usd:.4f} USD "
                f"is spent{note}, and the next {count(len(requests), 'call')} may cost up to {worst_usd:.4f} USD "
                "(llm.max_tokens limits it). The answers so far are kept. To resume from them, run the same command with "
                "a higher tfcaf.budget_usd."
            )

    def _check_journal(self, requests: list[Request]) -> None:
        """Raise a UserError if the answers to these requests could not be stored."""
        size = sum(len(message["content"]) for request in requests for message in request.messages)
        with self._explained():
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            if self._journal.exists():
                self._write_line("")  # also ends a line that a killed process has left incomplete
            with tempfile.TemporaryFile(dir=self._journal.parent) as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, size + RESERVED_BYTES * len(requests))
                except OSError as error:
                    if error.errno not in _RESERVATION_UNSUPPORTED:
                        raise

    def _store(self, request: Request, answer: Reply | CallFailed) -> None:
        """Append an answer, or the cost of a call that failed, to the journal."""
        self.calls += 1
        row: dict[str, Any] = {"name": request.name}
        if isinstance(answer, Reply):
            messages = list(request.messages)
            self._known[request.name] = messages, answer
            row |= {"messages": messages, "reply": asdict(answer)}
        elif answer.cost_usd:
            self._lost_usd += answer.cost_usd
            row |= {"lost_usd": answer.cost_usd}
        else:
            return
        with self._explained():
            self._write_line(strict_json(row))

    def _write_line(self, line: str) -> None:
        """Append a line to the journal and wait until it is on the disk."""
        with open(self._journal, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the file system into a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The answers of the language model cannot be stored in {self._journal.parent} "
                f"({error.strerror or error}), so no further call is made. Free space there, or choose another folder with "
                "tfcaf.cache=... The same command continues from the answers in the folder."
            ) from None


def _read(journal: Path) -> tuple[dict[str, tuple[list[Message], Reply]], float]:
    """Read a journal, without lines that are not valid, such as a truncated last line.

    Returns:
        Per name of a call its messages and the reply; and the cost of calls without an answer in US dollars.

    Raises:
        UserError: the journal cannot be read.
    """
    known: dict[str, tuple[list[Message], Reply]] = {}
    lost_usd = 0.0
    try:
        lines = read_regular_file(journal, _MAX_BYTES).split(b"\n")
    except FileNotFoundError:
        return known, lost_usd
    except OSError as error:
        raise UserError(f"The journal {journal} cannot be read: {error.strerror}.") from None
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            row = json.loads(line)
            lost_usd += _valid_cost(row.get("lost_usd", 0.0))
            if "reply" in row:
                known[row["name"]] = row["messages"], _valid_reply(row["reply"])
    return known, lost_usd


def _valid_reply(values: dict[str, Any]) -> Reply:
    """Build a reply from a line of a journal; raises a ValueError or a TypeError if it is not valid."""
    names = {field.name for field in fields(Reply)}
    reply = Reply(**{name: value for name, value in values.items() if name in names})
    if not isinstance(reply.text, str) or not isinstance(reply.model, str):
        raise TypeError("text and model must be strings")
    if reply.cost_usd is not None:
        _valid_cost(reply.cost_usd)
    return reply


def _valid_cost(usd: float) -> float:
    """Return a cost in US dollars; raises a ValueError or a TypeError if it is not one."""
    if not math.isfinite(usd) or usd < 0:
        raise ValueError(f"{usd} is not a cost")
    return usd
