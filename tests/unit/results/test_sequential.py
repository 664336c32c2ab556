"""The group-sequential test: exact at the first look, family-wise error below its level, no need for runs that were not made."""

import numpy as np
import pytest

from qllm_exp.results.statistics.comparison import permutation_test
from qllm_exp.results.statistics.sequential import MAX_METHODS, RELABELLINGS, _partitions, decide_pairs

GROUPS, LEVEL, RUNS = 4, 0.05, 5


def scores_of(means: list[float], seed: int, groups: int = GROUPS) -> dict[str, list[np.ndarray]]:
    random = np.random.default_rng(seed)
    return {
        f"m{number}": [mean + random.standard_normal(RUNS) for _ in range(groups)] for number, mean in enumerate(means)
    }


def test_the_first_look_at_two_methods_is_the_exact_permutation_test_at_its_share_of_the_level() -> None:
    decisions, level = set(), 0.2  # at 0.05 the share is near the smallest p-values of five runs each
    for seed in range(60):
        scores = scores_of([0, 1.5], seed)
        p, _ = permutation_test([scores["m0"][0]], [scores["m1"][0]])
        share = level / GROUPS
        if abs(p - share) < 4 * np.sqrt(share / RELABELLINGS):  # the random relabellings may say either
            continue
        (pair,) = decide_pairs({name: groups[:1] for name, groups in scores.items()}, level, GROUPS)
        assert pair.groups == 1 and pair.decided == (p < share), seed
        decisions.add(pair.decided)
    assert decisions == {True, False}


@pytest.mark.parametrize("means", [[0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 3, 3]])
def test_equal_methods_are_told_apart_no_more_often_than_the_level(means: list[float]) -> None:
    """Over all pairs and looks, also beside methods that do differ."""
    repetitions, errors = 400, 0
    for seed in range(repetitions):
        pairs = decide_pairs(scores_of(means, seed), LEVEL, GROUPS, relabellings=399)
        equal = [pair for pair in pairs if len({means[int(name[1:])] for name in pair.methods}) == 1]
        assert equal
        errors += any(pair.decided for pair in equal)
    assert errors / repetitions < LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / repetitions)


def test_looks_without_a_correction_would_err_more_often() -> None:
    """What the test is for: two standard errors after any of four groups are not a decision at the level of 5 %."""
    repetitions, errors = 400, 0
    for seed in range(repetitions):
        first, second = (np.cumsum([group.sum() for group in groups]) for groups in scores_of([0, 0], seed).values())
        standard_errors = np.sqrt(2 * RUNS * np.arange(1, GROUPS + 1))
        errors += bool((np.abs(first - second) > 1.96 * standard_errors).any())
    assert errors / repetitions > LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / repetitions)


def test_a_method_whose_pairs_are_decided_needs_no_further_groups() -> None:
    whole = scores_of([0, 0.1, 8], 0)
    stopped = whole | {"m2": whole["m2"][:1]}
    pairs = decide_pairs(stopped, LEVEL, GROUPS)
    assert pairs == decide_pairs(whole, LEVEL, GROUPS)
    states = {frozenset(pair.methods): (pair.decided, pair.groups) for pair in pairs}
    assert states[frozenset(("m0", "m2"))] == states[frozenset(("m1", "m2"))] == (True, 1)
    assert states[frozenset(("m0", "m1"))] == (False, GROUPS)
    assert {pair.methods[0] for pair in pairs if pair.decided} == {"m2"}, "the better one comes first"


def test_wide_scores_of_two_methods_do_not_hide_the_difference_of_two_others() -> None:
    rng = np.random.default_rng(0)
    means_and_spreads = {"a": (0.5, 0.02), "b": (0.6, 0.02), "c": (50.0, 3.0), "d": (50.0, 3.0)}
    scores = {name: [rng.normal(mean, spread, 5)] for name, (mean, spread) in means_and_spreads.items()}
    decisions = {pair.methods: pair.decided for pair in decide_pairs(scores, 0.05, 1)}
    assert decisions["b", "a"], decisions
    assert not decisions["c", "d"]


def test_a_look_waits_until_every_undecided_method_has_its_group() -> None:
    scores = scores_of([0, 0, 8], 0)
    short = scores | {"m1": scores["m1"][:2]}
    assert {pair.groups for pair in decide_pairs(short, LEVEL, GROUPS) if not pair.decided} == {2}
    none = {name: [] for name in scores}
    assert {(pair.groups, pair.decided) for pair in decide_pairs(none, LEVEL, GROUPS)} == {(0, False)}


def test_the_order_of_the_methods_does_not_matter_and_equal_scores_are_never_decided() -> None:
    scores = scores_of([0, 1, 1.3], 3)
    assert decide_pairs(scores, LEVEL, GROUPS) == decide_pairs(dict(reversed(scores.items())), LEVEL, GROUPS)
    same = {name: [np.full(RUNS, 0.1)] * GROUPS for name in "ab"}
    assert not decide_pairs(same, LEVEL, GROUPS)[0].decided


def test_the_hypotheses_are_all_partitions_but_that_of_single_methods() -> None:
    bell_numbers = {2: 2, 3: 5, 4: 15, 5: 52}
    for number, bell in bell_numbers.items():
        partitions = list(_partitions(number))
        assert len(set(partitions)) == len(partitions) == bell - 1
        assert all(len(methods) > 1 for partition in partitions for methods in partition)


@pytest.mark.parametrize("number", [1, MAX_METHODS + 1])
def test_too_few_or_too_many_methods_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"{number} methods cannot be compared. Allowed: 2 to 9"):
        decide_pairs(scores_of([0.0] * number, 0, 1), LEVEL, GROUPS)
