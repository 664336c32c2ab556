"""Estimate of the calls and the cost of a generation, before any call is made."""

from dataclasses import replace
from typing import Any

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.generation.prompt_rendering import Prompts
from qllm_exp.llm import Message, Request, make_backend
from qllm_exp.utils.text import count

_ANSWER = "x" * 6000  # a coder's answer of typical length in characters, with its reasoning
_SOURCE = "x" * 3500  # the function in that answer
_ADVICE = "x" * 300  # the evaluator's advice
_ANSWER_TOKENS = 2000  # tokens of a typical answer
_PARENT = "x" * 6000  # a function in a request to improve it, with what training did


def expected_requests(prompts: Prompts, options: GenerationConfig) -> list[Request]:
    """Build the requests of a generation in which nothing fails, with answers of typical length.

    Args:
        prompts: the prompts of the task.
        options: the `tfcaf` group of the configuration.
    """
    requests: list[Request] = []

    def add(name: str, system: str, past_pairs: int, question: str, answer: str) -> None:
        remembered_pairs = min(past_pairs, options.memory // 2)
        past = remembered_pairs * [_message("user", question), _message("assistant", answer)]
        requests.append(Request((_message("system", system), *past, _message("user", question)), name))

    if options.search.method != "none":
        for number in range(1, options.search.generations + 1):
            shown = options.search.parents if options.search.method == "evolve" and number > 1 else 0
            for k in range(1, options.candidates + 1):
                question = prompts.coder_request + shown * _PARENT
                add(f"generation-{number}-candidate-{k}", prompts.coder_system, 0, question, "")
        return requests
    for number in range(1, options.rounds + 1):
        past_rounds = number - 1
        question = prompts.coder_request if number == 1 else prompts.coder_advice(_ADVICE)
        if number > 1 and options.evaluator:
            advice_question = prompts.evaluator_advice(_SOURCE)
            add(f"round-{number}-advice", prompts.evaluator_system, 2 * past_rounds, advice_question, "")
        for k in range(1, options.candidates + 1):
            add(f"round-{number}-coder-{k}", prompts.coder_system, past_rounds, question, _ANSWER)
        if options.evaluator and options.candidates > 1:
            choice_question = prompts.evaluator_choice([_SOURCE] * options.candidates)
            add(f"round-{number}-choice", prompts.evaluator_system, 2 * past_rounds, choice_question, "")
    return requests


def describe_cost(prompts: Prompts, options: GenerationConfig, llm: Any) -> str:
    """Describe the number of calls of a generation, their estimated cost, and an upper bound on each.

    Args:
        prompts: the prompts of the task.
        options: the `tfcaf` group of the configuration.
        llm: the `llm` group of the configuration.
    """
    requests = expected_requests(prompts, options)
    coder_calls = sum("-coder-" in request.name or "-candidate-" in request.name for request in requests)
    evaluator_calls = len(requests) - coder_calls
    max_calls = coder_calls * (1 + options.retries) + 2 * evaluator_calls
    worst_usd = make_backend(llm).worst_case_usd(requests)
    price = "price unknown"
    if worst_usd is not None:
        typical_llm = llm
        if hasattr(llm, "max_tokens"):
            typical_llm = replace(llm, max_tokens=min(llm.max_tokens, _ANSWER_TOKENS))
        typical_usd = make_backend(typical_llm).worst_case_usd(requests) or 0.0
        price = (
            f"about {typical_usd:.4f} USD with answers of {_ANSWER_TOKENS:,} tokens, at most about {worst_usd:.4f} USD with "
            "answers as long as llm.max_tokens allows"
        )
    return f"{count(len(requests), 'call')} if nothing fails, at most {max_calls}; {price}"


def _message(role: str, content: str) -> Message:
    """Build a message of a conversation."""
    return {"role": role, "content": content}
