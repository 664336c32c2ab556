"""Keeps what was paid for: answers are written down as they come, and the budget is checked before each call.

A generation that is ended in the middle and started again finds the answers it had in its journal and goes on from there.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, Reply, Request


class Ledger:
    """A backend with a memory and a limit.

    Args:
        journal: file of earlier answers, made when it is not there; one JSON object per line.
        budget_usd: what the whole generation may cost, earlier answers included; None for no limit.
    """

    def __init__(self, backend: Backend, journal: Path, budget_usd: float | None) -> None:
        self._backend, self._journal, self._budget = backend, journal, budget_usd
        self._known, self._lost_usd = _read(journal)
        self.calls = 0  # calls made by this object; what the journal had is not counted

    @property
    def spent_usd(self) -> float:
        """What the generation has cost so far; answers without a known price count nothing."""
        return self._lost_usd + sum(reply.cost_usd or 0.0 for _, reply in self._known.values())

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Answers from the journal where it has them, the others from the backend."""
        new = [one for one in requests if not self._has(one)]
        if new:
            self._check_budget(new)
            answers = dict(zip((one.name for one in new), self._backend.ask(new), strict=True))
            self.calls += len(new)
            self._keep(new, answers)
        else:
            answers = {}
        return [self._known[one.name][1] if self._has(one) else answers[one.name] for one in requests]

    def _has(self, request: Request) -> bool:
        return request.name in self._known and self._known[request.name][0] == list(request.messages)

    def _check_budget(self, requests: list[Request]) -> None:
        if self._budget is None:
            return
        worst = self._backend.worst_case_usd(requests)
        if worst is None:
            raise UserError(
                "tfcaf.budget_usd needs the model's price, and none is known: give llm.usd_per_million_in=... and "
                "llm.usd_per_million_out=..., or tfcaf.budget_usd=null."
            )
        if self.spent_usd + worst > self._budget:
            raise UserError(
                f"The generation stops before it could pass tfcaf.budget_usd={self._budget:g}: {self.spent_usd:.4f} is "
                f"spent, and the next {len(requests)} calls may cost up to {worst:.4f} (llm.max_tokens bounds it). "
                "The answers so far are kept: the same command with a higher budget goes on from them."
            )

    def _keep(self, requests: list[Request], answers: dict[str, Reply | CallFailed]) -> None:
        """Write down what these calls gave and cost."""
        rows: list[dict[str, Any]] = []
        for one in requests:
            reply = answers[one.name]
            if isinstance(reply, Reply):
                self._known[one.name] = list(one.messages), reply
                rows.append({"name": one.name, "messages": list(one.messages), "reply": asdict(reply)})
            elif reply.cost_usd:
                self._lost_usd += reply.cost_usd
                rows.append({"name": one.name, "lost_usd": reply.cost_usd})
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with open(self._journal, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())


def _read(journal: Path) -> tuple[dict[str, tuple[list[dict[str, str]], Reply]], float]:
    """The answers of a journal by the name of their request, and what calls without an answer have cost.

    A last line that was cut off is left out.
    """
    known: dict[str, tuple[list[dict[str, str]], Reply]] = {}
    lost = 0.0
    try:
        lines = journal.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return known, lost
    for line in lines:
        try:
            row = json.loads(line)
            lost += row.get("lost_usd", 0.0)
            if "reply" in row:
                known[row["name"]] = row["messages"], Reply(**row["reply"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return known, lost
