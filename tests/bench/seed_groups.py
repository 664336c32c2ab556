"""Error rates, power and cost of sweep.seeds=auto by simulation. `python tests/bench/seed_groups.py [REPETITIONS]`

For normal and for bimodal scores, and means in standard deviations: how often two methods of equal distribution are decided, how
often two that differ are, and the runs that are saved. Beside it: a permutation test of every pair after 20 seeds, with the
correction of Holm.
"""

import itertools
import sys

import numpy as np

from qllm_exp.results.statistics.comparison import permutation_test
from qllm_exp.results.statistics.sequential import decide_pairs

LEVEL, SEEDS, GROUPS = 0.05, 5, 4
SETTINGS = ([0, 0], [0, 0, 0, 0], [0, 0, 2], [0, 1], [0, 1.5], [0, 2], [0, 1, 3, 3])


def draw(random: np.random.Generator, mean: float, is_bimodal: bool) -> list[np.ndarray]:
    """Return the groups of scores of a method: standard deviation 1 around its mean."""
    noise = random.standard_normal((GROUPS, SEEDS))
    # Four of five runs end high, the others low, as where some runs find a joint strategy and others do not.
    if is_bimodal:
        noise = (random.random((GROUPS, SEEDS)) < 0.8) * 2.5 + 0.1 * noise - 2.0
    return list(mean + noise)


def holm(p_values: list[float]) -> list[bool]:
    """Return which hypotheses Holm's procedure rejects."""
    order = np.argsort(p_values)
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > LEVEL / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def main(repetitions: int) -> None:
    """Print a table."""
    print("| scores | means | family-wise error | power | power with 20 fixed seeds | runs saved |")
    print("|---|---|---|---|---|---|")
    for is_bimodal, means in itertools.product((False, True), SETTINGS):
        random = np.random.default_rng(0)
        errors, decided, fixed, used = 0, 0, 0, 0
        index_pairs = list(itertools.combinations(range(len(means)), 2))
        differing = sum(means[i] != means[j] for i, j in index_pairs)
        for _ in range(repetitions):
            scores = {str(number): draw(random, mean, is_bimodal) for number, mean in enumerate(means)}
            pairs = decide_pairs(scores, LEVEL, GROUPS, relabellings=999)
            equal = [pair for pair in pairs if means[int(pair.methods[0])] == means[int(pair.methods[1])]]
            errors += any(pair.decided for pair in equal)
            decided += sum(pair.decided for pair in pairs if pair not in equal)
            used += SEEDS * sum(max(pair.groups for pair in pairs if name in pair.methods) for name in scores)
            if differing:
                whole = [np.concatenate(groups) for groups in scores.values()]
                p_values = [permutation_test([whole[i]], [whole[j]])[0] for i, j in index_pairs]
                rejected = holm(p_values)
                fixed += sum(r for r, (i, j) in zip(rejected, index_pairs, strict=True) if means[i] != means[j])
        rates = [
            f"{errors / repetitions:.3f}" if len(index_pairs) > differing else "-",
            f"{decided / repetitions / differing:.2f}" if differing else "-",
            f"{fixed / repetitions / differing:.2f}" if differing else "-",
            f"{100 * (1 - used / repetitions / len(means) / SEEDS / GROUPS):.0f} %",
        ]
        name = "bimodal" if is_bimodal else "normal"
        print(f"| {name} | {', '.join(f'{mean:g}' for mean in means)} | {' | '.join(rates)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
