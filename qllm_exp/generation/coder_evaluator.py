"""The coder-evaluator procedure of QLLM (arXiv 2504.12961): M rounds of K candidates.

In each round, K candidates are requested from the coder at once, all with the same memory. A refused candidate goes back
to the coder with the reason, a bounded number of times. The evaluator then reads the accepted sources and chooses one with
a 0/1 list that contains a single 1. The choice becomes part of the coder's memory. From the second round on, the evaluator
first gives one sentence of advice on its last choice. Without failures that is M K + M + (M - 1) calls: 14 for M = K = 3.

The paper leaves some cases open. They are handled as follows, and each occurrence is recorded in the transcript:

1. An answer of the evaluator that cannot be read is requested once more. After that the first accepted candidate is
   chosen, or the round has no advice.
2. If only one candidate is accepted, the evaluator is not asked to choose.
3. A later round without an accepted candidate keeps the function of the round before. If the first round has none, that is
   an error with the last reasons.
4. Memories keep the last `memory` messages. The oldest question is dropped together with its answer.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.credit.refused import Refused
from qllm_exp.errors import UserError
from qllm_exp.generation.prompt_rendering import MAX_ANSWER, Prompts, extract_advice, extract_choice, extract_code
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import CallFailed, Message, Reply, Request
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

Verifier = Callable[[Sequence[str]], Sequence[Accepted | Refused]]  # sources to verdicts, in the same order
Ranker = Callable[[Sequence[Accepted]], Sequence[float]]  # candidates to their returns after a short training


class NoCandidateAccepted(UserError):
    """The procedure ended without an accepted function."""


class LanguageModel(Protocol):
    """The interface that the procedure requires of a language model."""

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Answer all requests; a reply or a failure for each, in the same order."""


@dataclass(frozen=True)
class Candidate:
    """An accepted candidate of a round.

    Attributes:
        number: its number in the round, from 1.
        answer: the whole answer of the coder.
        accepted: the verified function.
    """

    number: int
    answer: str
    accepted: Accepted


@dataclass(frozen=True)
class Outcome:
    """The result of the procedure.

    Attributes:
        accepted: the function chosen in the last round that had an accepted candidate.
        transcript: a row per call: its name and role, the messages after the system prompt, the answer, the cost, and the
            outcome.
        verdict: how the function was chosen, as text.
    """

    accepted: Accepted
    transcript: tuple[dict[str, Any], ...]
    verdict: str


def generate(
    prompts: Prompts, options: GenerationConfig, model: LanguageModel, verify: Verifier, rank: Ranker | None = None
) -> Outcome:
    """Run the whole procedure.

    Args:
        prompts: the prompts of the task.
        options: the `tfcaf` group of the configuration.
        model: the language model that plays both roles.
        verify: decides for each source whether it is accepted.
        rank: returns of a short training with each candidate; required for options.selection='probe'.

    Raises:
        NoCandidateAccepted: no candidate was accepted.
        UserError: the model cannot be asked.
    """
    return _Procedure(prompts, options, model, verify, rank).run()


class _Memory:
    """The conversation of a role: its system prompt and the last `size` messages."""

    def __init__(self, system: str, size: int) -> None:
        self._system, self._size = _message("system", system), size
        self._pairs: list[tuple[Message, Message]] = []

    def add(self, question: str, answer: str) -> None:
        """Append a question with its answer, and drop the oldest pairs beyond the size."""
        self._pairs.append((_message("user", question), _message("assistant", answer)))
        self._pairs = self._pairs[-(self._size // 2) :]

    def conversation(self, question: str) -> list[Message]:
        """Return the messages to send with a new question."""
        past = [message for pair in self._pairs for message in pair]
        return [self._system, *past, _message("user", question)]


class _Procedure:
    """The state of one run of the procedure; arguments as for `generate`."""

    def __init__(
        self, prompts: Prompts, options: GenerationConfig, model: LanguageModel, verify: Verifier, rank: Ranker | None
    ) -> None:
        self.prompts, self.options, self.model, self.verify, self.rank = prompts, options, model, verify, rank
        self.coder = _Memory(prompts.coder_system, options.memory)
        self.evaluator = _Memory(prompts.evaluator_system, options.memory)
        self.transcript: list[dict[str, Any]] = []
        self.verdicts: list[str] = []

    def run(self) -> Outcome:
        """Run all rounds."""
        chosen: Candidate | None = None
        for number in range(1, self.options.rounds + 1):
            question = self._question(number, chosen)
            candidates, reasons = self._candidates(number, question)
            if candidates:
                chosen = self._choose(number, candidates)
                self.coder.add(question, chosen.answer)
            elif chosen is None:
                raise NoCandidateAccepted(_no_candidate_message(self.options, reasons))
            else:
                self._add_verdict(
                    f"round {number}: no candidate was accepted, the function of the previous round is kept"
                )
        assert chosen is not None
        return Outcome(chosen.accepted, tuple(self.transcript), "; ".join(self.verdicts))

    def _add_verdict(self, verdict: str) -> None:
        """Log a decision and add it to the verdict."""
        log.info("  %s", verdict)
        self.verdicts.append(verdict)

    def _question(self, number: int, chosen: Candidate | None) -> str:
        """Return the question to the coder in a round, after asking the evaluator for advice if there is one."""
        if chosen is None:
            return self.prompts.coder_request
        if not self.options.evaluator:
            return self.prompts.coder_next()
        question = self.prompts.evaluator_advice(chosen.accepted.source)
        advice = self._ask_evaluator(f"round-{number}-advice", question, extract_advice, "advice")
        return self.prompts.coder_next() if advice is None else self.prompts.coder_advice(advice)

    def _candidates(self, number: int, question: str) -> tuple[list[Candidate], list[str]]:
        """Return the accepted candidates of a round, and the last reason of each of the others."""
        first_conversation = self.coder.conversation(question)
        pending = dict.fromkeys(range(1, self.options.candidates + 1), first_conversation)
        accepted: dict[int, Candidate] = {}
        reasons: dict[int, str] = {}
        for attempt in range(1, self.options.retries + 2):
            suffix = f"-attempt-{attempt}" if attempt > 1 else ""
            requests = {k: Request(tuple(pending[k]), f"round-{number}-coder-{k}{suffix}") for k in pending}
            for k, (verdict, answer) in self._attempt(requests).items():
                if isinstance(verdict, Accepted):
                    accepted[k] = Candidate(k, answer, verdict)
                    del pending[k]
                    continue
                reasons[k] = str(verdict)
                if answer and self.options.error_feedback:
                    retry = self.prompts.coder_retry(verdict.reason)
                    pending[k] = [*first_conversation, _message("assistant", answer), _message("user", retry)]
            log.info("  round %d: %d of %d candidates accepted", number, len(accepted), self.options.candidates)
            if not pending:
                break
        return [accepted[k] for k in sorted(accepted)], [f"candidate {k}: {reasons[k]}" for k in sorted(pending)]

    def _attempt(self, requests: dict[int, Request]) -> dict[int, tuple[Accepted | Refused, str]]:
        """Send the requests, by candidate number, and return the verdict and the answer of each.

        The answer is '' if there is none, or if it is too long to be sent back.
        """
        replies = dict(zip(requests, self.model.ask(list(requests.values())), strict=True))
        verdicts: dict[int, tuple[Accepted | Refused, str]] = {}
        sources: dict[int, str] = {}
        for k, reply in replies.items():
            if isinstance(reply, CallFailed):
                verdicts[k] = Refused("answer", f"no answer: {reply}"), ""
                continue
            try:
                sources[k] = extract_code(reply.text)
            except Refused as refused:
                verdicts[k] = refused, reply.text if len(reply.text) <= MAX_ANSWER else ""
        source_verdicts = self.verify(list(sources.values())) if sources else []
        for k, verdict in zip(sources, source_verdicts, strict=True):
            reply = replies[k]
            verdicts[k] = verdict, reply.text if isinstance(reply, Reply) else ""
        for k, request in requests.items():
            verdict, _ = verdicts[k]
            outcome = "accepted" if isinstance(verdict, Accepted) else f"refused ({verdict.stage}): {verdict.reason}"
            self._record("coder", request, replies[k], outcome)
        return verdicts

    def _choose(self, number: int, candidates: list[Candidate]) -> Candidate:
        """Choose one of the accepted candidates of a round."""
        if len(candidates) == 1:
            (candidate,) = candidates
            total = f" of {self.options.candidates}" if self.options.candidates > 1 else ""
            self._add_verdict(f"round {number}: candidate {candidate.number}{total}, the only one accepted")
            return candidate
        if self.options.selection == "probe":
            return self._choose_by_training(number, candidates)
        if not self.options.evaluator:
            self._add_verdict(f"round {number}: candidate {candidates[0].number}, the first one accepted")
            return candidates[0]
        question = self.prompts.evaluator_choice([candidate.accepted.source for candidate in candidates])
        index = self._ask_evaluator(
            f"round-{number}-choice", question, lambda answer: extract_choice(answer, len(candidates)), "choice"
        )
        if index is None:
            self._add_verdict(
                f"round {number}: candidate {candidates[0].number}, the first one, as no choice could be read"
            )
            return candidates[0]
        chosen: Candidate = candidates[index]
        self._add_verdict(f"round {number}: candidate {chosen.number} of {len(candidates)}, chosen by the evaluator")
        return chosen

    def _choose_by_training(self, number: int, candidates: list[Candidate]) -> Candidate:
        """Choose the candidate with the best return of a short training."""
        assert self.rank is not None, "tfcaf.selection=probe needs a ranker"
        returns = self.rank([candidate.accepted for candidate in candidates])
        best = max(range(len(candidates)), key=lambda i: returns[i])
        scores = ", ".join(
            f"{candidate.number}: {value:.3f}" for candidate, value in zip(candidates, returns, strict=True)
        )
        probe = self.options.probe
        budget = f"{probe.total_steps:,} steps, {count(probe.seeds, 'seed')}"
        self._add_verdict(
            f"round {number}: candidate {candidates[best].number}, best return of short training ({budget}; {scores})"
        )
        return candidates[best]

    def _ask_evaluator(self, name: str, question: str, read: Callable[[str], Any], kind: str) -> Any | None:
        """Ask the evaluator, and once more if its answer cannot be read.

        Args:
            name: name of the call.
            question: the message to the evaluator.
            read: extracts the value from an answer; raises Refused for an answer that cannot be read.
            kind: what the answer contains, 'choice' or 'advice'.

        Returns:
            The value, or None if neither answer can be read.
        """
        conversation = self.evaluator.conversation(question)
        for request_name in (name, f"{name}-repair"):
            request = Request(tuple(conversation), request_name)
            (reply,) = self.model.ask([request])
            if isinstance(reply, CallFailed):
                self._record("evaluator", request, reply, f"no answer: {reply}")
                continue
            try:
                value = read(reply.text)
            except Refused as refused:
                self._record("evaluator", request, reply, f"cannot be read: {refused.reason}")
                if len(reply.text) > MAX_ANSWER:
                    continue
                repair = self.prompts.evaluator_repair(refused.reason)
                conversation = [*conversation, _message("assistant", reply.text), _message("user", repair)]
                continue
            self._record("evaluator", request, reply, kind)
            self.evaluator.add(question, reply.text)
            return value
        self._add_verdict(f"{name}: no {kind} could be read")
        return None

    def _record(self, role: str, request: Request, reply: Reply | CallFailed, outcome: str) -> None:
        """Append a call to the transcript."""
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
        self.transcript.append(row | {"outcome": outcome})


def _no_candidate_message(options: GenerationConfig, reasons: list[str]) -> str:
    """Build the error message of a generation in which every candidate was refused."""
    tries = f"{count(options.candidates, 'candidate')}, {count(options.retries + 1, 'attempt')} each"
    reason_lines = "\n".join(f"  {reason}" for reason in reasons)
    advice = "Choose another llm, or raise tfcaf.retries."
    return f"No credit-assignment function was accepted ({tries}). The last reasons:\n{reason_lines}\n{advice}"


def _message(role: str, content: str) -> Message:
    """Build a message of a conversation."""
    return {"role": role, "content": content}
