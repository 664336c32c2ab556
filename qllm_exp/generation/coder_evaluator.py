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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.credit.refused import Refused
from qllm_exp.generation.coder import (
    Coder,
    LanguageModel,
    NoCandidateAccepted,
    Verifier,
    call_row,
    message,
    no_candidate_message,
)
from qllm_exp.generation.prompt_rendering import MAX_ANSWER, Prompts, extract_advice, extract_choice
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import CallFailed, Message, Reply, Request

log = logging.getLogger(__name__)


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


def generate(prompts: Prompts, options: GenerationConfig, model: LanguageModel, verify: Verifier) -> Outcome:
    """Run the whole procedure.

    Args:
        prompts: the prompts of the task.
        options: the `tfcaf` group of the configuration.
        model: the language model that plays both roles.
        verify: decides for each source whether it is accepted.

    Raises:
        NoCandidateAccepted: no candidate was accepted.
        UserError: the model cannot be asked.
    """
    return _Procedure(prompts, options, model, verify).run()


class _Memory:
    """The conversation of a role: its system prompt and the last `size` messages."""

    def __init__(self, system: str, size: int) -> None:
        self._system, self._size = message("system", system), size
        self._pairs: list[tuple[Message, Message]] = []

    def add(self, question: str, answer: str) -> None:
        """Append a question with its answer, and drop the oldest pairs beyond the size."""
        self._pairs.append((message("user", question), message("assistant", answer)))
        self._pairs = self._pairs[-(self._size // 2) :]

    def conversation(self, question: str) -> list[Message]:
        """Return the messages to send with a new question."""
        past = [earlier for pair in self._pairs for earlier in pair]
        return [self._system, *past, message("user", question)]


class _Procedure:
    """The state of one run of the procedure; arguments as for `generate`."""

    def __init__(self, prompts: Prompts, options: GenerationConfig, model: LanguageModel, verify: Verifier) -> None:
        self.prompts, self.options, self.model = prompts, options, model
        self.coder = Coder(prompts, options, model, verify)
        self.coder_memory = _Memory(prompts.coder_system, options.memory)
        self.evaluator_memory = _Memory(prompts.evaluator_system, options.memory)
        self.transcript = self.coder.transcript
        self.verdicts: list[str] = []

    def run(self) -> Outcome:
        """Run all rounds."""
        chosen: Candidate | None = None
        for number in range(1, self.options.rounds + 1):
            question = self._question(number, chosen)
            candidates, reasons = self._candidates(number, question)
            if candidates:
                chosen = self._choose(number, candidates)
                self.coder_memory.add(question, chosen.answer)
            elif chosen is None:
                raise NoCandidateAccepted(no_candidate_message(self.options, reasons))
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
        conversation = self.coder_memory.conversation(question)
        numbers = {f"round-{number}-coder-{k}": k for k in range(1, self.options.candidates + 1)}
        accepted, reasons = self.coder.write(dict.fromkeys(numbers, conversation), f"round {number}")
        candidates = [Candidate(numbers[name], new.answer, new.accepted) for name, new in accepted.items()]
        return candidates, [f"candidate {numbers[name]}: {reason}" for name, reason in reasons.items()]

    def _choose(self, number: int, candidates: list[Candidate]) -> Candidate:
        """Choose one of the accepted candidates of a round."""
        if len(candidates) == 1:
            (candidate,) = candidates
            total = f" of {self.options.candidates}" if self.options.candidates > 1 else ""
            self._add_verdict(f"round {number}: candidate {candidate.number}{total}, the only one accepted")
            return candidate
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
        conversation = self.evaluator_memory.conversation(question)
        for request_name in (name, f"{name}-repair"):
            request = Request(tuple(conversation), request_name)
            (reply,) = self.model.ask([request])
            if isinstance(reply, CallFailed):
                self._record(request, reply, f"no answer: {reply}")
                continue
            try:
                value = read(reply.text)
            except Refused as refused:
                self._record(request, reply, f"cannot be read: {refused.reason}")
                if len(reply.text) > MAX_ANSWER:
                    continue
                repair = self.prompts.evaluator_repair(refused.reason)
                conversation = [*conversation, message("assistant", reply.text), message("user", repair)]
                continue
            self._record(request, reply, kind)
            self.evaluator_memory.add(question, reply.text)
            return value
        self._add_verdict(f"{name}: no {kind} could be read")
        return None

    def _record(self, request: Request, reply: Reply | CallFailed, outcome: str) -> None:
        """Append a call of the evaluator to the transcript."""
        self.transcript.append(call_row("evaluator", request, reply, outcome))
