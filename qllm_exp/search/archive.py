"""The archive of a search: its functions with their returns, on islands, and the choice of parents. All of it follows from the log.

Functions of several islands do not meet except by migration, so that one early success does not become the parent of all.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from qllm_exp.config.schema import SearchConfig
from qllm_exp.search.search_directory import Row

PLAIN_SUM, QMIX = "vdn", "qmix"
BASELINES = (PLAIN_SUM, QMIX)  # mixers that are trained beside the candidates


@dataclass(frozen=True)
class Member:
    """A function of the archive.

    Attributes:
        key: its key.
        name: of the call that wrote it, e.g. 'generation-2-candidate-1'.
        generation: from 1.
        island: from 0.
        parents: keys of the functions that the coder saw, the one to improve first.
        tuned: whether it is its parent with trained constants.
        returns: mean return over the seeds, by stage; a diverged training counts as -infinity.
    """

    key: str
    name: str
    generation: int
    island: int
    parents: tuple[str, ...]
    tuned: bool
    returns: Mapping[int, float]

    @property
    def label(self) -> str:
        """A short name: generation and number of the candidate, e.g. '2.1'; '2 tuned' for one with trained constants."""
        return f"{self.generation} tuned" if self.tuned else f"{self.generation}.{self.name.rpartition('-')[2]}"

    @property
    def score(self) -> tuple[int, float]:
        """The last stage and the return there: a function of a later stage has won earlier."""
        return (max(self.returns), self.returns[max(self.returns)]) if self.returns else (-1, -math.inf)

    @property
    def rank(self) -> tuple[bool, int, float]:
        """The order of functions: that of the scores, with a function that has diverged below all that have not."""
        stage, value = self.score
        return value > -math.inf, stage, value


def stage_returns(rows: Sequence[Row], function: str) -> dict[int, float]:
    """Return the mean return of a function by stage.

    Args:
        rows: rows of the log.
        function: key of the function, or a baseline.
    """
    values: dict[int, list[float]] = {}
    for row in rows:
        if row["kind"] == "training" and row["function"] == function:
            values.setdefault(row["stage"], []).append(-math.inf if row["return"] is None else row["return"])
    return {stage: fmean(returns) for stage, returns in sorted(values.items())}


class Archive:
    """The functions of a search.

    Args:
        rows: rows of the log.
        options: the `tfcaf.search` group of the configuration.

    Attributes:
        members: all functions, in the order in which they were written.
    """

    def __init__(self, rows: Sequence[Row], options: SearchConfig) -> None:
        self._options, self._rows = options, rows
        self.members = [
            Member(
                row["key"],
                row["name"],
                row["generation"],
                row["island"],
                tuple(row["parents"]),
                row["tuned"],
                stage_returns(rows, row["key"]),
            )
            for row in rows
            if row["kind"] == "candidate" and row["key"]
        ]

    @property
    def best(self) -> Member:
        """The best function; of equal ones the first."""
        return max(self.members, key=_rank)

    def compare(self, member: Member) -> str:
        """Return the last return of a function, with those of the baselines after the same stage."""
        stage, value = member.score
        baselines = [
            f"{name} {returns[stage]:.3f}"
            for name in BASELINES
            if stage in (returns := stage_returns(self._rows, name))
        ]
        beside = f" ({', '.join(baselines)})" if baselines else ""
        return f"best return {value:.3f} after {self._options.steps[stage]:,} steps{beside}"

    def population(self, island: int, generation: int) -> list[Member]:
        """Return the possible parents on an island, the best first.

        Args:
            island: from 0.
            generation: the last generation that counts.
        """
        count, migration = self._options.islands, self._options.migration
        populations: list[list[Member]] = [[] for _ in range(count)]
        room = max(1, self._options.archive // count)
        for number in range(1, generation + 1):
            for member in self.members:
                if member.generation == number:
                    populations[member.island].append(member)
            if migration and number % migration == 0 and count > 1:
                bests = [max(members, key=_rank) if members else None for members in populations]
                for origin, best in enumerate(bests):
                    target = populations[(origin + 1) % count]
                    if best is not None and best not in target:
                        target.append(best)
            populations = [sorted(members, key=_rank, reverse=True)[:room] for members in populations]
        return populations[island]

    def choose_parents(
        self, island: int, generation: int, distances: Mapping[tuple[str, str], float], rng: random.Random
    ) -> list[Member]:
        """Draw the parents of a candidate: a function is more likely, the better its return and the newer what it does.

        The weight of the function on place r, from 1, is (1 + d) / r, with d its distance from the closest other function of the
        island, as a share of the largest of these distances. If the island has no function yet, those of all islands count.

        Args:
            island: of the candidate.
            generation: of the candidate.
            distances: of each pair of functions, by their keys.
            rng: random numbers of the candidate.

        Returns:
            Up to `parents` functions; empty if there is none.
        """
        pool = self.population(island, generation - 1)
        if not pool:
            earlier = [member for member in self.members if member.generation < generation]
            pool = sorted(earlier, key=_rank, reverse=True)[: self._options.archive]
        closest = [min((distances[a.key, b.key] for b in pool if b is not a), default=0.0) for a in pool]
        largest = max(closest, default=0.0) or 1.0
        weights = [(1 + gap / largest) / place for place, gap in enumerate(closest, start=1)]
        parents: list[Member] = []
        while pool and len(parents) < self._options.parents:
            index = rng.choices(range(len(pool)), weights)[0]
            parents.append(pool.pop(index))
            weights.pop(index)
        return parents


def _rank(member: Member) -> tuple[bool, int, float]:
    return member.rank
