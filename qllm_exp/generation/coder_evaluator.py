"""The coder-evaluator procedure of QLLM (arXiv 2504.12961): M rounds of K candidates.

In each round K candidates are asked of the coder at once, all with the same memory. A candidate that is refused goes back
to the coder with the reason, a bounded number of times. The evaluator then reads the accepted sources and chooses one (a
0/1 list with a single 1), which becomes part of the coder's memory; from the second round on it first gives one sentence of
advice on its last choice. Without failures that is M K + M + (M - 1) calls: 14 for M = K = 3.

What the paper leaves open is settled so, and every use of it stands in the transcript:
- an answer of the evaluator that cannot be read is asked for once more; after that the first accepted candidate is chosen,
  or the round does without advice;
- where one candidate alone is accepted, nobody is asked to choose;
- a later round without an accepted candidate leaves the function of the round before; when the first has none, that is an
  error with the last reasons;
- memories keep the last `memory` messages; the oldest question is dropped together with its answer.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.credit.refused import Refused
from qllm_exp.errors import UserError
from qllm_exp.generation.prompt_rendering import Prompts, extract_advice, extract_choice, extract_code
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import CallFailed, Message, Reply, Request
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

Verifier = Callable[[Sequence[str]], Sequence[Accepted | Refused]]  # sources to verdicts, in their order
Ranker = Callable[[Sequence[Accepted]], Sequence[float]]  # the return that a short training with each one reaches


class NoneAccepted(UserError):
    """The procedure has come to its end without a function."""


class LanguageModel(Protocol):
    """What the procedure needs of a language model."""

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]: ...


@dataclass(frozen=True)
class Candidate:
    """An accepted function. `number`: which of the round's candidates, from 1. `answer`: the coder's, whole."""

    number: int
    answer: str
    accepted: Accepted


@dataclass(frozen=True)
class Outcome:
    """What the procedure ends with.

    Attributes:
        accepted: the function chosen in the last round that had one.
        transcript: a row per call: what for, the messages after the system prompt, the answer, its cost, what became of it.
        verdict: how the function was chosen, in words.
    """

    accepted: Accepted
    transcript: tuple[dict[str, Any], ...]
    verdict: str


def generate(
    prompts: Prompts, options: GenerationConfig, model: LanguageModel, judge: Verifier, rank: Ranker | None = None
) -> Outcome:
    """Run the whole procedure.

    Args:
        rank: needed for options.selection='probe'.

    Raises:
        NoneAccepted: no candidate was accepted. UserError: the model cannot be asked.
    """
    return _Procedure(prompts, options, model, judge, rank).run()


class _Memory:
    """The messages of a role after its system prompt, the last ones only."""

    def __init__(self, system: str, size: int) -> None:
        self._system, self._size = _message("system", system), size
        self._pairs: list[tuple[Message, Message]] = []

    def add(self, question: str, answer: str) -> None:
        self._pairs.append((_message("user", question), _message("assistant", answer)))
        self._pairs = self._pairs[-(self._size // 2) :]

    def conversation(self, question: str) -> list[Message]:
        return [self._system, *(one for pair in self._pairs for one in pair), _message("user", question)]


class _Procedure:
    def __init__(
        self, prompts: Prompts, options: GenerationConfig, model: LanguageModel, judge: Verifier, rank: Ranker | None
    ) -> None:
        self.prompts, self.options, self.model, self.judge, self.rank = prompts, options, model, judge, rank
        self.coder = _Memory(prompts.coder_system, options.memory)
        self.evaluator = _Memory(prompts.evaluator_system, options.memory)
        self.transcript: list[dict[str, Any]] = []
        self.verdicts: list[str] = []

    def run(self) -> Outcome:
        chosen: Candidate | None = None
        for number in range(1, self.options.rounds + 1):
            question = self._question(number, chosen)
            candidates, reasons = self._candidates(number, question)
            if candidates:
                chosen = self._choose(number, candidates)
                self.coder.add(question, chosen.answer)
            elif chosen is None:
                raise NoneAccepted(_none_accepted(self.options, reasons))
            else:
                self._say(f"round {number}: no candidate was accepted, the function of the round before stays")
        assert chosen is not None
        return Outcome(chosen.accepted, tuple(self.transcript), "; ".join(self.verdicts))

    def _say(self, verdict: str) -> None:
        log.info("  %s", verdict)
        self.verdicts.append(verdict)

    def _question(self, number: int, chosen: Candidate | None) -> str:
        """What the coder is asked in a round."""
        if chosen is None:
            return self.prompts.coder_request
        if not self.options.evaluator:
            return self.prompts.coder_next()
        question = self.prompts.evaluator_advice(chosen.accepted.source)
        advice = self._read(f"round-{number}-advice", question, extract_advice, "advice")
        return self.prompts.coder_next() if advice is None else self.prompts.coder_advice(advice)

    def _candidates(self, number: int, question: str) -> tuple[list[Candidate], list[str]]:
        """The accepted candidates of a round, and for the others the last reason."""
        first = self.coder.conversation(question)
        open_ = dict.fromkeys(range(1, self.options.candidates + 1), first)
        accepted: dict[int, Candidate] = {}
        reasons: dict[int, str] = {}
        for attempt in range(1, self.options.retries + 2):
            again = f"-attempt-{attempt}" if attempt > 1 else ""
            asked = {k: Request(tuple(open_[k]), f"round-{number}-coder-{k}{again}") for k in open_}
            for k, (verdict, answer) in self._attempt(asked).items():
                if isinstance(verdict, Accepted):
                    accepted[k] = Candidate(k, answer, verdict)
                    del open_[k]
                    continue
                reasons[k] = str(verdict)
                if answer and self.options.error_feedback:
                    told = self.prompts.coder_retry(verdict.reason)
                    open_[k] = [*first, _message("assistant", answer), _message("user", told)]
            log.info("  round %d: %d of %d candidates accepted", number, len(accepted), self.options.candidates)
            if not open_:
                break
        return [accepted[k] for k in sorted(accepted)], [f"candidate {k}: {reasons[k]}" for k in sorted(open_)]

    def _attempt(self, asked: dict[int, Request]) -> dict[int, tuple[Accepted | Refused, str]]:
        """Verdict and answer ('' for none) of each candidate asked for."""
        replies = dict(zip(asked, self.model.ask(list(asked.values())), strict=True))
        verdicts: dict[int, tuple[Accepted | Refused, str]] = {}
        sources: dict[int, str] = {}
        for k, reply in replies.items():
            if isinstance(reply, CallFailed):
                verdicts[k] = Refused("answer", f"no answer: {reply}"), ""
                continue
            try:
                sources[k] = extract_code(reply.text)
            except Refused as refused:
                verdicts[k] = refused, reply.text
        for k, verdict in zip(sources, self.judge(list(sources.values())) if sources else [], strict=True):
            reply = replies[k]
            verdicts[k] = verdict, reply.text if isinstance(reply, Reply) else ""
        for k, request in asked.items():
            verdict, _ = verdicts[k]
            outcome = "accepted" if isinstance(verdict, Accepted) else f"refused ({verdict.stage}): {verdict.reason}"
            self._record("coder", request, replies[k], outcome)
        return verdicts

    def _choose(self, number: int, candidates: list[Candidate]) -> Candidate:
        if len(candidates) == 1:
            (only,) = candidates
            of = f" of {self.options.candidates}" if self.options.candidates > 1 else ""
            self._say(f"round {number}: candidate {only.number}{of}, the only one that was accepted")
            return only
        if self.options.selection == "probe":
            return self._probe(number, candidates)
        if not self.options.evaluator:
            self._say(f"round {number}: candidate {candidates[0].number}, the first one accepted")
            return candidates[0]
        question = self.prompts.evaluator_choice([one.accepted.source for one in candidates])
        index = self._read(
            f"round-{number}-choice", question, lambda answer: extract_choice(answer, len(candidates)), "choice"
        )
        if index is None:
            self._say(f"round {number}: candidate {candidates[0].number}, the first one, as no choice could be read")
            return candidates[0]
        chosen: Candidate = candidates[index]
        self._say(f"round {number}: candidate {chosen.number} of {len(candidates)}, chosen by the evaluator")
        return chosen

    def _probe(self, number: int, candidates: list[Candidate]) -> Candidate:
        assert self.rank is not None, "selection=probe needs a way to rank candidates"
        returns = self.rank([one.accepted for one in candidates])
        best = max(range(len(candidates)), key=lambda i: returns[i])
        figures = ", ".join(f"{one.number}: {value:.3f}" for one, value in zip(candidates, returns, strict=True))
        probe = self.options.probe
        budget = f"{probe.total_steps:,} steps, {count(probe.seeds, 'seed')}"
        self._say(
            f"round {number}: candidate {candidates[best].number}, best return of short training ({budget}; {figures})"
        )
        return candidates[best]

    def _read(self, name: str, question: str, read: Callable[[str], Any], what: str) -> Any | None:
        """An answer of the evaluator, read strictly and asked for once more; None when neither can be read."""
        conversation = self.evaluator.conversation(question)
        for request in (f"{name}", f"{name}-repair"):
            asked = Request(tuple(conversation), request)
            (reply,) = self.model.ask([asked])
            if isinstance(reply, CallFailed):
                self._record("evaluator", asked, reply, f"no answer: {reply}")
                continue
            try:
                value = read(reply.text)
            except Refused as refused:
                self._record("evaluator", asked, reply, f"cannot be read: {refused.reason}")
                repair = self.prompts.evaluator_repair(refused.reason)
                conversation = [*conversation, _message("assistant", reply.text), _message("user", repair)]
                continue
            self._record("evaluator", asked, reply, what)
            self.evaluator.add(question, reply.text)
            return value
        self._say(f"{name}: no {what} could be read")
        return None

    def _record(self, role: str, request: Request, reply: Reply | CallFailed, outcome: str) -> None:
        row: dict[str, Any] = {"call": request.name, "role": role, "messages": list(request.messages[1:])}
        if isinstance(reply, Reply):
            row |= {
                "answer": reply.text,
                "model": reply.model,
                "tokens_in": reply.tokens_in,
                "tokens_out": reply.tokens_out,
            }
            row |= {"cost_usd": reply.cost_usd, "seconds": round(reply.seconds, 2), "attempts": reply.attempts}
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
        self.transcript.append(row | {"outcome": outcome})


def _none_accepted(options: GenerationConfig, reasons: list[str]) -> str:
    tries = f"{options.candidates} candidates, {options.retries + 1} attempts each"
    shown = "\n".join(f"  {reason}" for reason in reasons)
    advice = "Try another llm, or more tfcaf.retries."
    return f"No credit-assignment function was accepted ({tries}). The last reasons:\n{shown}\n{advice}"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
