"""What a generation will take, before anybody is asked."""

from qllm_exp.llm import Backend, Message, Request
from qllm_exp.schema import Generation
from qllm_exp.tfcaf.prompt import Prompts

_ANSWER = "x" * 6000  # characters: an ordinary answer of a coder, reasoning included
_SOURCE = "x" * 3500  # the function in it


def requests(prompts: Prompts, options: Generation) -> list[Request]:
    """The calls of a generation in which nothing fails, with answers of ordinary length."""
    calls: list[Request] = []

    def call(name: str, system: str, pairs: int, question: str, answer: str) -> None:
        kept = min(pairs, options.memory // 2)
        past = kept * [_message("user", question), _message("assistant", answer)]
        calls.append(Request((_message("system", system), *past, _message("user", question)), name))

    for number in range(1, options.rounds + 1):
        before = number - 1
        question = prompts.coder_request if number == 1 else prompts.coder_advice("x" * 300)
        if number > 1 and options.evaluator:
            call(f"round-{number}-advice", prompts.evaluator_system, 2 * before, prompts.evaluator_advice(_SOURCE), "")
        for k in range(1, options.candidates + 1):
            call(f"round-{number}-coder-{k}", prompts.coder_system, before, question, _ANSWER)
        if options.evaluator and options.selection == "evaluator" and options.candidates > 1:
            choice = prompts.evaluator_choice([_SOURCE] * options.candidates)
            call(f"round-{number}-choice", prompts.evaluator_system, 2 * before, choice, "")
    return calls


def estimate(prompts: Prompts, options: Generation, backend: Backend) -> str:
    """Number of calls and a bound on their cost, in words."""
    calls = requests(prompts, options)
    coders = options.rounds * options.candidates
    most = (
        len(calls) + options.retries * coders + (len(calls) - coders)
    )  # ... and every evaluator's answer asked for twice
    cost = backend.worst_case_usd(calls)
    price = "no price known"
    if cost is not None:
        price = f"at most about {cost:.4f} USD for these, if each answer is as long as allowed"
    return f"{len(calls)} calls when nothing fails, never more than {most}; {price}"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
