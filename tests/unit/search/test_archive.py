"""The archive: what follows from the rows of a log, islands and migration, and the choice of parents."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from qllm_exp.config.schema import SearchConfig
from qllm_exp.search.archive import Archive, stage_returns
from qllm_exp.search.search_directory import Row

OPTIONS = SearchConfig(islands=2, migration=2, archive=6, parents=2)


def candidate(key: str, generation: int, island: int, *returns: float | None) -> list[Row]:
    """Return the rows of a function with one training per stage."""
    row = {"kind": "candidate", "key": key, "name": f"generation-{generation}-{key}", "generation": generation}
    trainings = [
        {"kind": "training", "function": key, "stage": stage, "seed": 0, "return": value}
        for stage, value in enumerate(returns)
    ]
    return [row | {"island": island, "parents": [], "tuned": False}, *trainings]


ROWS = [
    *candidate("a", 1, 0, 0.9),
    *candidate("b", 1, 1, 0.2, 0.1),
    *candidate("c", 2, 0, 0.5, 0.6),
    *candidate("d", 2, 1, None),
    *candidate("e", 3, 1, 0.3),
    {"kind": "candidate", "key": "", "name": "refused", "generation": 3, "island": 0, "parents": [], "tuned": False},
]


def keys(island: int, generation: int, options: SearchConfig = OPTIONS) -> list[str]:
    return [member.key for member in Archive(ROWS, options).population(island, generation)]


def test_a_later_stage_counts_more_than_a_higher_return_and_a_diverged_training_least() -> None:
    archive = Archive(ROWS, OPTIONS)
    assert archive.best.key == "c" and len(archive.members) == 5
    assert [m.key for m in sorted(archive.members, key=lambda m: m.score, reverse=True)] == ["c", "b", "a", "e", "d"]


def test_the_return_of_a_stage_is_the_mean_over_its_seeds() -> None:
    rows = [
        {"kind": "training", "function": "a", "stage": 1, "seed": s, "return": r} for s, r in enumerate((1.0, 2.0, 6.0))
    ]
    assert stage_returns(rows, "a") == {1: 3.0}
    rows.append({"kind": "training", "function": "a", "stage": 1, "seed": 3, "return": None})
    assert stage_returns(rows, "a") == {1: -math.inf}


def test_islands_meet_by_migration_alone() -> None:
    assert (keys(0, 1), keys(1, 1)) == (["a"], ["b"])
    assert (keys(0, 2), keys(1, 2)) == (["c", "b", "a"], ["c", "b", "d"]), "the best of each has gone to the other"
    assert keys(1, 3) == ["c", "b", "e"], "the worst leaves first: an island has 3 of 6 places"
    apart = replace(OPTIONS, migration=0)
    assert (keys(0, 3, apart), keys(1, 3, apart)) == (["c", "a"], ["b", "e", "d"])


def test_parents_are_drawn_by_place_and_distance_without_repetition() -> None:
    rows, draws = [row | {"island": 0} for row in ROWS], 4000
    archive = Archive(rows, replace(OPTIONS, islands=1, migration=0, parents=1))
    near = {(x, y): 0.0 if {x, y} <= {"a", "b"} else 1.0 for x in "abcde" for y in "abcde"}
    times = Counter(archive.choose_parents(0, 3, near, random.Random(i))[0].key for i in range(draws))
    # Places c, b, a, d; c and d are at distance 1 from all others, a and b at 0 from each other.
    weights = {"c": 2.0, "b": 1 / 2, "a": 1 / 3, "d": 2 / 4}
    for key, weight in weights.items():
        assert times[key] / draws == pytest.approx(weight / sum(weights.values()), abs=0.03)
    both = Archive(rows, replace(OPTIONS, islands=1, migration=0, parents=4)).choose_parents(
        0, 3, near, random.Random(0)
    )
    assert sorted(member.key for member in both) == ["a", "b", "c", "d"]


def test_an_island_without_a_function_takes_those_of_all() -> None:
    rows = candidate("a", 1, 0, 0.9)
    assert [m.key for m in Archive(rows, OPTIONS).choose_parents(1, 2, {("a", "a"): 0.0}, random.Random(0))] == ["a"]
    assert Archive([], OPTIONS).choose_parents(0, 1, {}, random.Random(0)) == []


def test_a_function_that_diverged_in_a_later_stage_is_below_one_that_did_not_get_there() -> None:
    rows = [*candidate("a", 1, 0, 0.1, 0.6), *candidate("b", 1, 0, 0.9, 0.9, None), *candidate("c", 1, 0, 0.0)]
    archive = Archive(rows, replace(OPTIONS, islands=1, migration=0))
    assert archive.best.key == "a"
    assert [member.key for member in archive.population(0, 1)] == ["a", "c", "b"]
