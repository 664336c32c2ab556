"""Group-sequential test of every pair of methods: which pairs differ, after as few groups of runs as that takes.

AdaStop (Mathieu et al. 2023, arXiv 2306.10882) tests after each of K groups of runs, permutes the labels of runs within each
group, compares differences of sums with a boundary that spends `level`/K of the error at each look, and gives no further
runs to decided pairs. This module keeps all of that. It differs in how pairs are combined: by closed testing, whose family-wise
error holds exactly for any number of runs, where a maximum over separately permuted pairs has it in the limit. And differences are
measured in units of the spread of the scores, see `_standardised_range`.

A hypothesis says which methods are equal: a partition of the methods into sets of equal distribution. Under it the labels within
each set may be permuted. A pair is decided once every hypothesis in which the two are equal is rejected. The true partition is
among these if the two are equal, and is rejected with probability `level` at most: so any pair of equal methods is
decided with that probability at most (Marcus et al. 1976; with looks: Tang and Geller 1999). A method whose pairs are
all decided is alone in each hypothesis that is left. So no test needs the runs that it does not get.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qllm_exp.results.statistics.aggregate import SEED, Array

MAX_METHODS = 9  # 21,147 partitions
RELABELLINGS = 4_999  # random relabellings beside the observed labels

Partition = tuple[tuple[int, ...], ...]  # sets of at least two methods; all other methods are alone


@dataclass(frozen=True)
class PairDecision:
    """The state of the comparison of two methods.

    Attributes:
        methods: the two methods; of a decided pair, the better one first.
        groups: number of groups of runs after which the pair was decided, or tested last; 0: not tested yet.
        decided: whether the methods differ.
    """

    methods: tuple[str, str]
    groups: int
    decided: bool


def decide_pairs(
    scores: Mapping[str, Sequence[Array]], level: float, max_groups: int, relabellings: int = RELABELLINGS
) -> list[PairDecision]:
    """Test every pair of methods on one task after each group of runs that is complete.

    A group is complete if every method with an undecided pair has it. The same scores give the same decisions.

    Args:
        scores: for each method its groups of runs, in order; each group has the scores [runs] of new seeds. The groups of
            one number have equally many runs of each method.
        level: probability of deciding any pair of methods whose scores have the same distribution.
        max_groups: number of groups after which no further runs are made.
        relabellings: number of random relabellings.

    Raises:
        ValueError: fewer than two methods or more than `MAX_METHODS`.
    """
    names = sorted(scores)
    if not 2 <= len(names) <= MAX_METHODS:
        raise ValueError(f"{len(names)} methods cannot be compared. Allowed: 2 to {MAX_METHODS}.")
    groups_of = [scores[name] for name in names]
    pairs = list(itertools.combinations(range(len(names)), 2))
    decided_after: dict[tuple[int, int], int] = {}
    tested = 0
    crossed = {partition: np.zeros(relabellings + 1, bool) for partition in _partitions(len(names))}
    sums: dict[tuple[int, ...], Array] = {}  # by set of methods: relabelled sums of scores [1 + relabellings, methods]
    squares: dict[tuple[int, ...], float] = {}  # by set of methods: squared deviations from the mean of each group
    for group in range(max_groups):
        undecided = [pair for pair in pairs if pair not in decided_after]
        active = {method for pair in undecided for method in pair}
        if not undecided or any(len(groups_of[method]) <= group for method in active):
            break
        tested = group + 1
        ranges: dict[tuple[int, ...], Array] = {}
        for methods in {methods for partition in crossed for methods in partition}:
            values = np.array([groups_of[method][group] for method in methods])
            new_sums = _relabelled_sums(values, relabellings, (SEED, group, *methods))
            sums[methods] = sums[methods] + new_sums if group else new_sums
            squares[methods] = squares.get(methods, 0.0) + float(np.square(values - values.mean()).sum())
            ranges[methods] = _standardised_range(sums[methods], squares[methods])
        allowed = int(level * tested / max_groups * (relabellings + 1) + 1e-9)
        for partition, has_crossed in list(crossed.items()):
            statistic = np.max([ranges[methods] for methods in partition], axis=0)
            _cross(has_crossed, statistic, allowed)
            if has_crossed[0]:  # the observed labels
                del crossed[partition]
        open_pairs = {
            pair for partition in crossed for methods in partition for pair in itertools.combinations(methods, 2)
        }
        decided_after |= {pair: tested for pair in undecided if pair not in open_pairs}
    return [_decision(pair, names, groups_of, decided_after.get(pair), tested) for pair in pairs]


def _standardised_range(sums: Array, squares: float) -> Array:
    """Return the largest difference between the sums of two methods, in units of the spread of all scores of the set.

    Without the unit, two methods with wide scores would hide every other difference that one hypothesis is about. No relabelling
    changes the unit, so the test stays exact.

    Args:
        sums: relabelled sums of scores. [1 + relabellings, methods]
        squares: sum of the squared deviations of the scores from the mean of their group.
    """
    ranges: Array = sums.max(1) - sums.min(1)
    return ranges / math.sqrt(squares) if squares else np.zeros_like(ranges)


def _cross(has_crossed: NDArray[np.bool_], statistic: Array, allowed: int) -> None:
    """Mark the relabellings that cross the boundary at this look.

    At most `allowed` relabellings have crossed at this or an earlier look. The observed labels are exchangeable with the others
    under the hypothesis, so they are among those with probability `allowed` / (1 + relabellings) at most.

    Args:
        has_crossed: which have crossed before; changed in place. [1 + relabellings]
        statistic: value of the statistic. [1 + relabellings]
        allowed: number of relabellings that may have crossed by now.
    """
    remaining = np.sort(statistic[~has_crossed])[::-1]
    budget = allowed - int(has_crossed.sum())
    tolerance = 1e-9 * float(remaining[0])  # equal sums that were added up in another order are ties
    has_crossed |= ~has_crossed & (statistic > remaining[budget] + tolerance)


def _relabelled_sums(values: Array, relabellings: int, seed: Sequence[int]) -> Array:
    """Return the sums of scores by method for the observed labels, which come first, and for random relabellings.

    Args:
        values: scores [methods, runs].
        relabellings: number of random relabellings.
        seed: seed of the relabellings.

    Returns:
        [1 + relabellings, methods].
    """
    flat = np.tile(values.ravel(), (relabellings + 1, 1))
    flat[1:] = np.random.default_rng(seed).permuted(flat[1:], axis=1)
    sums: Array = flat.reshape(relabellings + 1, *values.shape).sum(2)
    return sums


def _partitions(number: int) -> Iterator[Partition]:
    """Yield every partition of so many methods, but for the one in which each is alone, without the sets of one method."""

    def extend(sets: list[tuple[int, ...]], method: int) -> Iterator[list[tuple[int, ...]]]:
        if method == number:
            yield sets
            return
        for index, members in enumerate(sets):
            yield from extend([*sets[:index], (*members, method), *sets[index + 1 :]], method + 1)
        yield from extend([*sets, (method,)], method + 1)

    for sets in extend([], 0):
        partition = tuple(members for members in sets if len(members) > 1)
        if partition:
            yield partition


def _decision(
    pair: tuple[int, int], names: Sequence[str], groups_of: Sequence[Sequence[Array]], decided: int | None, tested: int
) -> PairDecision:
    first, second = pair
    if decided is None:
        return PairDecision((names[first], names[second]), tested, False)
    totals = [sum(float(group.sum()) for group in groups_of[method][:decided]) for method in pair]
    better_first = (first, second) if totals[0] > totals[1] else (second, first)
    return PairDecision((names[better_first[0]], names[better_first[1]]), decided, True)
