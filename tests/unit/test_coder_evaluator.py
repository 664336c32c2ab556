"""The coder-evaluator procedure with a scripted model: who is asked what, and what becomes of every answer."""

import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.credit.refused import Refused
from qllm_exp.errors import UserError
from qllm_exp.generation.coder_evaluator import Outcome, generate
from qllm_exp.generation.prompt_rendering import Prompts
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import CallFailed, Reply, Request

PROMPTS = Prompts("You write functions.\n", "Write one.\n", "You judge functions.\n")
DEFAULT = GenerationConfig()


def answer(name: str) -> str:
    return f"Thoughts.\n```python\nsource of {name}\n```\n"


class Model:
    """Answers by the name of the call: a text, an exception to return, or a function of the request."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "-"): value for name, value in answers.items()}
        self.batches: list[list[str]] = []
        self.asked: dict[str, Request] = {}

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        self.batches.append([one.name for one in requests])
        self.asked |= {one.name: one for one in requests}
        return [self._reply(one) for one in requests]

    def _reply(self, request: Request) -> Reply | CallFailed:
        given = self.answers.get(request.name)
        if given is None and "coder" in request.name:
            given = answer(request.name)
        elif given is None and "choice" in request.name:
            number = len(re.findall("Candidate ", request.messages[-1]["content"]))
            given = str([0] * (number - 1) + [1])
        elif given is None:
            given = "Use the distances."
        return given if isinstance(given, CallFailed) else Reply(given, "some-model", 100, 10, 0.01)


def judge(sources: Sequence[str]) -> list[Accepted | Refused]:
    """Accepts everything but what is bad."""
    return [
        Refused("run", f"{one.strip()} has the wrong shape")
        if "bad" in one
        else Accepted(one, "credit_assignment", cast(Any, SimpleNamespace(hash=one)), True, ())
        for one in sources
    ]


def run(model: Model, options: GenerationConfig = DEFAULT, **more: Any) -> Outcome:
    return generate(PROMPTS, options, model, judge, **more)


def test_three_rounds_of_three_candidates_are_fourteen_calls_in_the_order_of_the_paper() -> None:
    model = Model()
    outcome = run(model)
    coders = [[f"round-{r}-coder-{k}" for k in (1, 2, 3)] for r in (1, 2, 3)]
    assert model.batches == [
        *(coders[0], ["round-1-choice"], ["round-2-advice"], coders[1], ["round-2-choice"]),
        *(["round-3-advice"], coders[2], ["round-3-choice"]),
    ]
    assert sum(map(len, model.batches)) == 14 == len(outcome.transcript)
    assert outcome.accepted.source == "source of round-3-coder-3\n"
    assert outcome.verdict.count("chosen by the evaluator") == 3


def test_the_coder_remembers_the_chosen_function_and_hears_the_advice() -> None:
    model = Model(round_1_choice="[0, 1, 0]", round_2_advice="Use the level.")
    run(model)
    messages = model.asked["round-2-coder-1"].messages
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"] == PROMPTS.coder_request and messages[2]["content"] == answer("round-1-coder-2")
    assert "Use the level." in messages[3]["content"]
    assert "source of round-1-coder-2" in model.asked["round-2-advice"].messages[-1]["content"]
    assert all(model.asked[f"round-2-coder-{k}"].messages == messages for k in (2, 3)), "same memory, same question"


@pytest.mark.parametrize(("memory", "coder", "evaluator"), [(10, 6, 10), (4, 4, 4), (2, 2, 2)])
def test_memories_keep_the_last_messages_only(memory: int, coder: int, evaluator: int) -> None:
    model = Model()
    run(model, replace(DEFAULT, rounds=4, memory=memory))
    kept = {name: len(model.asked[name].messages) - 2 for name in ("round-4-coder-1", "round-4-advice")}
    assert kept == {"round-4-coder-1": coder, "round-4-advice": evaluator}
    last = model.asked["round-4-coder-1"].messages
    assert last[0]["content"] == PROMPTS.coder_system and last[-2]["content"] == answer("round-3-coder-3")


def test_the_error_of_a_failed_candidate_goes_back_and_it_is_repaired() -> None:
    model = Model(round_1_coder_2="```python\nbad\n```")
    outcome = run(model, replace(DEFAULT, rounds=1))
    assert model.batches[:2] == [[f"round-1-coder-{k}" for k in (1, 2, 3)], ["round-1-coder-2-attempt-2"]]
    messages = model.asked["round-1-coder-2-attempt-2"].messages
    assert messages[2]["content"] == "```python\nbad\n```" and "bad has the wrong shape" in messages[3]["content"]
    outcomes = {row["call"]: row["outcome"] for row in outcome.transcript}
    assert outcomes["round-1-coder-2"] == "refused (run): bad has the wrong shape"
    assert outcomes["round-1-coder-2-attempt-2"] == "accepted"


def test_without_error_feedback_it_is_asked_afresh() -> None:
    model = Model(round_1_coder_2="prose")
    run(model, replace(DEFAULT, rounds=1, error_feedback=False))
    first, again = (model.asked[f"round-1-coder-2{more}"].messages for more in ("", "-attempt-2"))
    assert first == again


def test_when_all_fail_the_last_reasons_are_shown_and_attempts_are_bounded() -> None:
    bad = {f"round_1_coder_{k}{more}": f"```python\nbad {k}{more}\n```" for k in (1, 2) for more in ("", "_attempt_2")}
    model = Model(**bad)
    with pytest.raises(UserError) as error:
        run(model, replace(DEFAULT, candidates=2, retries=1))
    assert sum(map(len, model.batches)) == 4
    for k in (1, 2):
        assert f"candidate {k}: bad {k}_attempt_2 has the wrong shape" in str(error.value)


def test_a_later_round_without_a_candidate_leaves_the_function_before_and_says_so() -> None:
    model = Model(round_2_coder_1="bad", round_2_coder_2="```python\nbad\n```")
    outcome = run(model, replace(DEFAULT, candidates=2, rounds=2, retries=0))
    assert outcome.accepted.source == "source of round-1-coder-2\n"
    assert "round 2: no candidate was accepted, the function of the round before stays" in outcome.verdict


def test_calls_without_an_answer_are_tried_again_and_shown() -> None:
    model = Model(round_1_coder_1=CallFailed("server error 500"))
    outcome = run(model, replace(DEFAULT, rounds=1, candidates=1))
    assert [row["outcome"] for row in outcome.transcript] == [
        "refused (answer): no answer: server error 500",
        "accepted",
    ]
    assert model.asked["round-1-coder-1-attempt-2"].messages == model.asked["round-1-coder-1"].messages


def test_a_choice_that_cannot_be_read_is_asked_for_once_more() -> None:
    model = Model(round_1_choice="The second.", round_1_choice_repair="[0, 1, 0]")
    outcome = run(model, replace(DEFAULT, rounds=1))
    assert outcome.accepted.source == "source of round-1-coder-2\n"
    assert "0 lists" in model.asked["round-1-choice-repair"].messages[-1]["content"]
    assert outcome.transcript[-2]["outcome"].startswith("cannot be read")


@pytest.mark.parametrize("reply", ["No.", CallFailed("dropped")])
def test_then_the_first_accepted_one_is_taken_and_that_is_recorded(reply: Any) -> None:
    model = Model(round_1_coder_1="prose", round_1_choice="Hm.", round_1_choice_repair=reply)
    outcome = run(model, replace(DEFAULT, rounds=1, retries=0))
    assert outcome.accepted.source == "source of round-1-coder-2\n"
    assert "no choice could be read" in outcome.verdict and "candidate 2, the first one" in outcome.verdict


def test_advice_that_cannot_be_read_is_done_without() -> None:
    model = Model(round_2_advice="```python\nx\n```", round_2_advice_repair="")
    outcome = run(model, replace(DEFAULT, rounds=2))
    assert "no advice could be read" in outcome.verdict
    assert model.asked["round-2-coder-1"].messages[-1]["content"] == PROMPTS.coder_next()


def test_one_accepted_candidate_needs_no_choice() -> None:
    model = Model(round_1_coder_1="prose", round_1_coder_3="prose")
    outcome = run(model, replace(DEFAULT, rounds=1, retries=0))
    assert "round-1-choice" not in model.asked and "candidate 2 of 3, the only one" in outcome.verdict


def test_without_an_evaluator_it_is_never_asked() -> None:
    model = Model()
    outcome = run(model, replace(DEFAULT, evaluator=False))
    assert {row["role"] for row in outcome.transcript} == {"coder"} and len(outcome.transcript) == 9
    assert model.asked["round-2-coder-1"].messages[-1]["content"] == PROMPTS.coder_next()
    assert outcome.verdict.count("candidate 1, the first one accepted") == 3


def test_probing_takes_the_best_return_and_states_its_budget() -> None:
    returns = iter([[0.1, 0.9, 0.5], [0.2, 0.1, 0.0]])
    ranked: list[list[str]] = []

    def rank(candidates: Sequence[Accepted]) -> list[float]:
        ranked.append([one.source for one in candidates])
        return next(returns)

    model = Model()
    outcome = run(model, replace(DEFAULT, rounds=2, selection="probe"), rank=rank)
    assert outcome.accepted.source == "source of round-2-coder-1\n" and len(ranked) == 2
    assert (
        "candidate 2, best return of short training (50,000 steps, 1 seed; 1: 0.100, 2: 0.900, 3: 0.500)"
        in outcome.verdict
    )
    assert "round-1-choice" not in model.asked and "round-2-advice" in model.asked


def test_the_transcript_has_every_call_with_its_cost() -> None:
    outcome = run(Model(), replace(DEFAULT, rounds=1))
    assert [row["call"] for row in outcome.transcript] == [*(f"round-1-coder-{k}" for k in (1, 2, 3)), "round-1-choice"]
    assert all((row["tokens_in"], row["tokens_out"], row["cost_usd"]) == (100, 10, 0.01) for row in outcome.transcript)
    assert all(message["role"] != "system" for row in outcome.transcript for message in row["messages"])
