"""Ledger of calls: stores each answer as it arrives, and checks the budget before each call.

A generation that is interrupted and started again finds its earlier answers in the journal and resumes from there.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, Message, Reply, Request
from qllm_exp.utils.text import count


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
            UserError: the calls could exceed the budget, or the backend cannot be asked.
        """
        new_requests = [request for request in requests if not self._has(request)]
        answers: dict[str, Reply | CallFailed] = {}
        if new_requests:
            self._check_budget(new_requests)
            names = [request.name for request in new_requests]
            answers = dict(zip(names, self._backend.ask(new_requests), strict=True))
            self.calls += len(new_requests)
            self._append(new_requests, answers)
        return [self._known[request.name][1] if self._has(request) else answers[request.name] for request in requests]

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
            raise UserError(
                f"The generation stops before it could exceed tfcaf.budget_usd={self._budget:g}: {self.spent_usd:.4f} USD "
                f"is spent, and the next {count(len(requests), 'call')} may cost up to {worst_usd:.4f} USD "
                "(llm.max_tokens limits it). The answers so far are kept. To resume from them, run the same command with "
                "a higher tfcaf.budget_usd."
            )

    def _append(self, requests: list[Request], answers: dict[str, Reply | CallFailed]) -> None:
        """Append the answers of these calls, and the cost of those that failed, to the journal."""
        rows: list[dict[str, Any]] = []
        for request in requests:
            reply = answers[request.name]
            if isinstance(reply, Reply):
                messages = list(request.messages)
                self._known[request.name] = messages, reply
                rows.append({"name": request.name, "messages": messages, "reply": asdict(reply)})
            elif reply.cost_usd:
                self._lost_usd += reply.cost_usd
                rows.append({"name": request.name, "lost_usd": reply.cost_usd})
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with open(self._journal, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())


def _read(journal: Path) -> tuple[dict[str, tuple[list[Message], Reply]], float]:
    """Read a journal, without lines that are not valid, such as a truncated last line.

    Returns:
        Per name of a call its messages and the reply; and the cost of calls without an answer in US dollars.
    """
    known: dict[str, tuple[list[Message], Reply]] = {}
    lost_usd = 0.0
    try:
        lines = journal.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return known, lost_usd
    for line in lines:
        try:
            row = json.loads(line)
            lost_usd += row.get("lost_usd", 0.0)
            if "reply" in row:
                known[row["name"]] = row["messages"], Reply(**row["reply"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return known, lost_usd
