"""The coder-evaluator procedure with a scripted model: the requests to each role, and the handling of every answer."""

import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qllm_exp.config.schema import GenerationConfig, SearchConfig
from qllm_exp.credit.refused import Refused
from qllm_exp.errors import UserError
from qllm_exp.generation.coder_evaluator import Outcome, generate
from qllm_exp.generation.cost_estimate import expected_requests
from qllm_exp.generation.prompt_rendering import MAX_ANSWER, Prompts
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import CallFailed, Reply, Request

PROMPTS = Prompts("You write functions.\n", "Write one.\n", "You judge functions.\n")
DEFAULT = GenerationConfig()


def answer(name: str) -> str:
    return f"Thoughts.\n```python\nsource of {name}\n```\n"


class Model:
    """A language model that answers by the name of the call: a text or a failure."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "-"): value for name, value in answers.items()}
        self.batches: list[list[str]] = []
        self.requests: dict[str, Request] = {}
        self.estimated = False

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        self.batches.append([request.name for request in requests])
        self.requests |= {request.name: request for request in requests}
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply | CallFailed:
        text = self.answers.get(request.name)
        if text is None and "coder" in request.name:
            text = answer(request.name)
        elif text is None and "choice" in request.name:
            n_candidates = len(re.findall("Candidate ", request.messages[-1]["content"]))
            text = str([0] * (n_candidates - 1) + [1])
        elif text is None:
            text = "Use the distances."
        return (
            text if isinstance(text, CallFailed) else Reply(text, "some-model", 100, 10, 0.01, estimated=self.estimated)
        )


def verify(sources: Sequence[str]) -> list[Accepted | Refused]:
    """Refuse sources that contain 'bad', and accept all others."""
    verdicts: list[Accepted | Refused] = []
    for source in sources:
        if "bad" in source:
            verdicts.append(Refused("run", f"{source.strip()} has the wrong shape"))
        else:
            program = cast(Any, SimpleNamespace(hash=source))
            verdicts.append(Accepted(source, "credit_assignment", program, True, ()))
    return verdicts


def run(model: Model, options: GenerationConfig = DEFAULT, **more: Any) -> Outcome:
    return generate(PROMPTS, options, model, verify, **more)


def test_three_rounds_of_three_candidates_are_fourteen_calls_in_the_order_of_the_paper() -> None:
    model = Model()
    outcome = run(model)
    coders = [[f"round-{r}-coder-{k}" for k in (1, 2, 3)] for r in (1, 2, 3)]
    assert model.batches == [
        coders[0],
        ["round-1-choice"],
        ["round-2-advice"],
        coders[1],
        ["round-2-choice"],
        ["round-3-advice"],
        coders[2],
        ["round-3-choice"],
    ]
    assert sum(map(len, model.batches)) == 14 == len(outcome.transcript)
    assert outcome.accepted.source == "source of round-3-coder-3\n"
    assert outcome.verdict.count("chosen by the evaluator") == 3


def test_the_coder_remembers_the_chosen_function_and_receives_the_advice() -> None:
    model = Model(round_1_choice="[0, 1, 0]", round_2_advice="Use the level.")
    run(model)
    messages = model.requests["round-2-coder-1"].messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"] == PROMPTS.coder_request and messages[2]["content"] == answer("round-1-coder-2")
    assert "Use the level." in messages[3]["content"]
    assert "source of round-1-coder-2" in model.requests["round-2-advice"].messages[-1]["content"]
    assert all(model.requests[f"round-2-coder-{k}"].messages == messages for k in (2, 3)), "same memory, same question"


@pytest.mark.parametrize(("memory", "coder", "evaluator"), [(10, 6, 10), (4, 4, 4), (2, 2, 2)])
def test_memories_keep_the_last_messages_only(memory: int, coder: int, evaluator: int) -> None:
    model = Model()
    run(model, replace(DEFAULT, rounds=4, memory=memory))
    lengths = {name: len(model.requests[name].messages) - 2 for name in ("round-4-coder-1", "round-4-advice")}
    assert lengths == {"round-4-coder-1": coder, "round-4-advice": evaluator}
    last = model.requests["round-4-coder-1"].messages
    assert last[0]["content"] == PROMPTS.coder_system and last[-2]["content"] == answer("round-3-coder-3")


def test_a_refused_candidate_is_repaired_with_the_reason() -> None:
    model = Model(round_1_coder_2="```python\nbad\n```")
    outcome = run(model, replace(DEFAULT, rounds=1))
    assert model.batches[:2] == [[f"round-1-coder-{k}" for k in (1, 2, 3)], ["round-1-coder-2-attempt-2"]]
    messages = model.requests["round-1-coder-2-attempt-2"].messages
    assert messages[2]["content"] == "```python\nbad\n```" and "bad has the wrong shape" in messages[3]["content"]
    outcomes = {row["call"]: row["outcome"] for row in outcome.transcript}
    assert outcomes["round-1-coder-2"] == "refused (run): bad has the wrong shape"
    assert outcomes["round-1-coder-2-attempt-2"] == "accepted"


def test_without_error_feedback_the_first_question_is_repeated() -> None:
    model = Model(round_1_coder_2="prose")
    run(model, replace(DEFAULT, rounds=1, error_feedback=False))
    first, second = (model.requests[f"round-1-coder-2{suffix}"].messages for suffix in ("", "-attempt-2"))
    assert first == second


def test_when_all_fail_the_last_reasons_are_shown_and_attempts_are_bounded() -> None:
    bad = {
        f"round_1_coder_{k}{suffix}": f"```python\nbad {k}{suffix}\n```"
        for k in (1, 2)
        for suffix in ("", "_attempt_2")
    }
    model = Model(**bad)
    with pytest.raises(UserError) as error:
        run(model, replace(DEFAULT, candidates=2, retries=1))
    assert sum(map(len, model.batches)) == 4
    for k in (1, 2):
        assert f"candidate {k}: bad {k}_attempt_2 has the wrong shape" in str(error.value)


def test_a_later_round_without_a_candidate_keeps_the_previous_function() -> None:
    model = Model(round_2_coder_1="bad", round_2_coder_2="```python\nbad\n```")
    outcome = run(model, replace(DEFAULT, candidates=2, rounds=2, retries=0))
    assert outcome.accepted.source == "source of round-1-coder-2\n"
    assert "round 2: no candidate was accepted, the function of the previous round is kept" in outcome.verdict


def test_calls_without_an_answer_are_retried_and_recorded() -> None:
    model = Model(round_1_coder_1=CallFailed("server error 500"))
    outcome = run(model, replace(DEFAULT, rounds=1, candidates=1))
    assert [row["outcome"] for row in outcome.transcript] == [
        "refused (answer): no answer: server error 500",
        "accepted",
    ]
    assert model.requests["round-1-coder-1-attempt-2"].messages == model.requests["round-1-coder-1"].messages


def test_a_choice_that_cannot_be_read_is_requested_once_more() -> None:
    model = Model(round_1_choice="The second.", round_1_choice_repair="[0, 1, 0]")
    outcome = run(model, replace(DEFAULT, rounds=1))
    assert outcome.accepted.source == "source of round-1-coder-2\n"
    assert "0 lists" in model.requests["round-1-choice-repair"].messages[-1]["content"]
    assert outcome.transcript[-2]["outcome"].startswith("cannot be read")


def test_a_choice_inside_thoughts_is_read() -> None:
    model = Model(round_1_choice="Perhaps [1, 0, 0]? No, rather the second: [0, 1, 0].\n</think>\n")
    outcome = run(model, replace(DEFAULT, rounds=1))
    assert outcome.accepted.source == "source of round-1-coder-2\n"
    assert (
        "candidate 2 of 3, chosen by the evaluator" in outcome.verdict and "round-1-choice-repair" not in model.requests
    )


def test_an_answer_that_is_too_long_is_not_sent_back() -> None:
    endless = "x" * (MAX_ANSWER + 1)
    model = Model(round_1_coder_1=endless, round_1_choice=endless)
    run(model, replace(DEFAULT, rounds=1))
    for name in ("round-1-coder-1-attempt-2", "round-1-choice-repair"):
        first = model.requests[name.removesuffix("-attempt-2").removesuffix("-repair")]
        assert model.requests[name].messages == first.messages


@pytest.mark.parametrize("reply", ["No.", CallFailed("dropped")])
def test_without_a_readable_choice_the_first_accepted_candidate_is_chosen(reply: Any) -> None:
    model = Model(round_1_coder_1="prose", round_1_choice="Hm.", round_1_choice_repair=reply)
    outcome = run(model, replace(DEFAULT, rounds=1, retries=0))
    assert outcome.accepted.source == "source of round-1-coder-2\n"
    assert "no choice could be read" in outcome.verdict and "candidate 2, the first one" in outcome.verdict


def test_without_readable_advice_the_round_has_none() -> None:
    model = Model(round_2_advice="```python\nx\n```", round_2_advice_repair="")
    outcome = run(model, replace(DEFAULT, rounds=2))
    assert "no advice could be read" in outcome.verdict
    assert model.requests["round-2-coder-1"].messages[-1]["content"] == PROMPTS.coder_next()


def test_a_single_accepted_candidate_needs_no_choice() -> None:
    model = Model(round_1_coder_1="prose", round_1_coder_3="prose")
    outcome = run(model, replace(DEFAULT, rounds=1, retries=0))
    assert "round-1-choice" not in model.requests and "candidate 2 of 3, the only one" in outcome.verdict


def test_an_evaluator_that_is_off_is_never_called() -> None:
    model = Model()
    outcome = run(model, replace(DEFAULT, evaluator=False))
    assert {row["role"] for row in outcome.transcript} == {"coder"} and len(outcome.transcript) == 9
    assert model.requests["round-2-coder-1"].messages[-1]["content"] == PROMPTS.coder_next()
    assert outcome.verdict.count("candidate 1, the first one accepted") == 3


def test_the_transcript_has_every_call_with_its_cost() -> None:
    outcome = run(Model(), replace(DEFAULT, rounds=1))
    assert [row["call"] for row in outcome.transcript] == [*(f"round-1-coder-{k}" for k in (1, 2, 3)), "round-1-choice"]
    assert all((row["tokens_in"], row["tokens_out"], row["cost_usd"]) == (100, 10, 0.01) for row in outcome.transcript)
    assert all("usage" not in row for row in outcome.transcript)
    assert all(message["role"] != "system" for row in outcome.transcript for message in row["messages"])


def test_the_transcript_says_which_tokens_are_estimates() -> None:
    model = Model()
    model.estimated = True
    outcome = run(model, replace(DEFAULT, rounds=1))
    assert all(row["usage"] == "estimated" for row in outcome.transcript)


def test_the_cost_estimate_of_a_search_has_a_call_per_candidate_with_its_parents() -> None:
    search = SearchConfig(method="evolve", generations=3, parents=2)
    requests = expected_requests(PROMPTS, replace(DEFAULT, candidates=4, search=search))
    assert [request.name for request in requests] == [
        f"generation-{g}-candidate-{k}" for g in (1, 2, 3) for k in (1, 2, 3, 4)
    ]
    lengths = [len(request.messages[-1]["content"]) for request in requests]
    assert lengths[:4] == [len(PROMPTS.coder_request)] * 4 and min(lengths[4:]) > 10_000
    assert len(expected_requests(PROMPTS, DEFAULT)) == 14
