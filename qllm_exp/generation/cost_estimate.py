"""What a generation will take, before anybody is asked."""

from dataclasses import replace
from typing import Any

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.generation.prompt_rendering import Prompts
from qllm_exp.llm import Message, Request, make_backend

_ANSWER = "x" * 6000  # characters: an ordinary answer of a coder, reasoning included
_SOURCE = "x" * 3500  # the function in it
_ANSWER_TOKENS = 2000  # of such an answer


def requests(prompts: Prompts, options: GenerationConfig) -> list[Request]:
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


def estimate(prompts: Prompts, options: GenerationConfig, llm: Any) -> str:
    """Number of calls, what they cost with answers of ordinary length, and a bound on that, in words.

    Args:
        llm: the `llm` group of the configuration.
    """
    calls = requests(prompts, options)
    coders = options.rounds * options.candidates
    evaluators = len(calls) - coders
    most = coders * (1 + options.retries) + 2 * evaluators
    cost = make_backend(llm).worst_case_usd(calls)
    price = "no price known"
    if cost is not None:
        short = replace(llm, max_tokens=min(llm.max_tokens, _ANSWER_TOKENS)) if hasattr(llm, "max_tokens") else llm
        usual = make_backend(short).worst_case_usd(calls) or 0.0
        price = (
            f"about {usual:.4f} USD with answers of {_ANSWER_TOKENS:,} tokens, at most about {cost:.4f} USD with answers as "
            "long as llm.max_tokens allows"
        )
    return f"{len(calls)} calls when nothing fails, never more than {most}; {price}"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
