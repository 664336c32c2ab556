"""The bandit over language models: which model is tried next, and that one ledger has the calls of all."""

import math

import pytest
from searches import Launcher, Model, Searches, searches, shares

from qllm_exp.config.schema import SearchConfig
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.llm import Request
from qllm_exp.search import procedure
from qllm_exp.search.archive import Archive
from qllm_exp.search.models import Models, choose_models
from qllm_exp.search.search_directory import Row

__all__ = ["searches"]  # a fixture


def tried(model: str, number: int, value: float | None, usd: float) -> list[Row]:
    """Return the rows of a candidate: its return, or None if it was refused, and its price."""
    name, key = f"generation-1-candidate-{number}", "" if value is None else f"key{number}"
    row = {"name": name, "generation": 1, "island": 0, "parents": []}
    rows = [
        {"kind": "question", "model": model, **row},
        {"kind": "call", "call": f"{name}-attempt-2", "cost_usd": usd},
        {"kind": "candidate", "key": key, "tuned": False, **row},
    ]
    return [*rows, {"kind": "training", "function": key, "stage": 0, "seed": 0, "return": value}] if key else rows


def chosen(rows: list[Row], count: int, exploration: float = 0.5, dollar_weight: float = 0.0) -> list[str]:
    return choose_models(rows, Archive(rows, SearchConfig()), ["a", "b"], count, exploration, dollar_weight)


def test_every_model_is_tried_and_then_the_one_whose_candidates_win() -> None:
    assert chosen([], 4) == ["a", "b", "a", "b"]
    rows = [*tried("a", 1, 0.1, 0.0), *tried("b", 2, 0.9, 0.0), *tried("a", 3, None, 0.0), *tried("b", 4, 0.8, 0.0)]
    assert chosen(rows, 1, exploration=0.0) == ["b"]
    # Rewards: a has 0 and 0, b has 1 (of two others) and 1/2. After t further tries of b its bonus is c sqrt(2 ln N / n).
    turns = chosen(rows, 8, exploration=1.0)
    first_a = turns.index("a")
    for turn in range(first_a + 1):
        total, n_b = 4 + turn, 2 + turn
        value_a, value_b = math.sqrt(2 * math.log(total) / 2), 0.75 + math.sqrt(2 * math.log(total) / n_b)
        assert (value_a > value_b) == (turn == first_a)


def test_a_model_that_costs_more_must_win_more() -> None:
    rows = [*tried("a", 1, 0.5, 0.001), *tried("b", 2, 0.6, 0.1), *tried("a", 3, 0.7, 0.001), *tried("b", 4, 0.8, 0.1)]
    # Rewards: a 0 and 2/3, b 1/3 and 1; b leads by 1/3 and costs a hundred times as much.
    assert chosen(rows, 1, dollar_weight=0.3) == ["b"] and chosen(rows, 1, dollar_weight=0.4) == ["a"]


def test_a_model_whose_candidates_diverge_late_earns_nothing() -> None:
    rows = [*tried("a", 1, 0.1, 0.0), *tried("b", 2, 0.9, 0.0)]
    rows.append({"kind": "training", "function": "key2", "stage": 1, "seed": 0, "return": None})
    assert chosen(rows, 1, exploration=0.0) == ["a"]


def test_requests_go_to_their_models_and_answers_come_back_in_order() -> None:
    backends = {
        "a": Model(lambda request: f"a {request.name}"),
        "b": Model(lambda request: f"b {request.name}", usd=0.5),
    }
    models = Models(backends, lambda name: "ab"[int(name) % 2])
    requests = [Request(({"role": "user", "content": "x"},), str(number)) for number in range(4)]
    assert [reply.text for reply in models.ask(requests)] == ["a 0", "b 1", "a 2", "b 3"]  # type: ignore[union-attr]
    assert backends["b"].calls == ["1", "3"] and models.worst_case_usd(requests) == pytest.approx(1.02)


def test_a_search_with_two_models_logs_the_model_of_each_candidate(
    searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"folder": Model(shares, usd=0.01), "vllm": Model(shares, usd=0.02)}
    run = searches.config("tfcaf.search.models=[vllm]", "tfcaf.search.generations=2", "tfcaf.search.method=best_of")
    monkeypatch.setattr(procedure.llm, "make_backend", lambda config: models[config.name])
    directory = searches.search(run, Launcher())
    names = [row["model"] for row in directory.of_kind("question")]
    assert names[:3] == ["folder", "vllm", "folder"]
    assert {name: len(model.calls) for name, model in models.items()} == {name: names.count(name) for name in models}
    assert provide.key_for(run) != provide.key_for(
        searches.config("tfcaf.search.generations=2", "tfcaf.search.method=best_of")
    )


def test_a_model_that_cannot_be_called_is_refused(searches: Searches) -> None:
    with pytest.raises(
        UserError, match=r"'opnai' is not allowed\. Did you mean 'openai'\? Allowed, each once, beside llm=folder: "
    ):
        provide.key_for(searches.config("tfcaf.search.models=[opnai]"))
