"""Progress of a search: a bar and a line below it on a terminal, where the bars of its trainings follow; plain lines elsewhere.

The unit of the bar is the environment step, of which the plan of the search has a known number: candidates that are refused or
diverge make it smaller, never larger.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from qllm_exp.config.schema import GenerationConfig
from qllm_exp.search.archive import BASELINES, Archive
from qllm_exp.search.search_directory import Row, SearchDirectory
from qllm_exp.utils.text import count, duration

log = logging.getLogger(__name__)


class SearchProgress:
    """Shows what a search does, its best return so far, its calls and the time left.

    Args:
        directory: the directory of the search.
        options: the `tfcaf` group of the configuration.
        spent_usd: returns the cost of the calls so far.

    Attributes:
        generation: the generation that is under way, from 1.
    """

    def __init__(self, directory: SearchDirectory, options: GenerationConfig, spent_usd: Callable[[], float]) -> None:
        self._directory, self._options, self._spent_usd = directory, options, spent_usd
        self._begin, self._steps_before = time.monotonic(), steps_done(directory.rows, options)
        self.generation = 1
        self._bars: list[tqdm[NoReturn]] = []  # on a terminal, while the search runs

    @contextmanager
    def on_terminal(self) -> Iterator[None]:
        """On a terminal, have the bar at its end; the messages of the program are printed above it."""
        if not sys.stderr.isatty():
            yield
            return
        self._bars = [
            tqdm(total=1, bar_format="{desc} |{bar}| {percentage:3.0f}%{postfix}", dynamic_ncols=True, leave=False),
            tqdm(total=0, bar_format="  {desc}", dynamic_ncols=True, leave=False),
        ]
        try:
            with logging_redirect_tqdm():
                yield
        finally:
            for bar in reversed(self._bars):
                bar.close()
            self._bars = []

    def show(self, activity: str) -> None:
        """Show what the search does now.

        Args:
            activity: in a few words, e.g. 'stage 1: 6 trainings of 20,000 steps'.
        """
        options, rows = self._options, self._directory.rows
        done = steps_done(rows, options)
        left = steps_left(rows, options, self.generation)
        head = f"search: generation {self.generation} of {options.search.generations}"
        text = "; ".join([activity, *self._facts()])
        budget = "" if options.budget_usd is None else f" of {options.budget_usd:g}"
        cost = f"{self._spent_usd():.4f}{budget} USD"
        if done > self._steps_before and left:
            elapsed = time.monotonic() - self._begin
            cost += f", {duration(elapsed * left / (done - self._steps_before))} left"
        if not self._bars:
            log.info("%s, %s, %s environment steps, %s", head, text, f"{done:,}", cost)
            return
        bar, line = self._bars
        bar.total, bar.n = max(1, done + left), done
        bar.set_description_str(head, refresh=False)
        bar.set_postfix_str(cost)
        line.set_description_str(text)

    def _facts(self) -> Iterator[str]:
        """Yield the best return, and the number of calls with their tokens."""
        archive = Archive(self._directory.rows, self._options.search)
        if any(member.returns for member in archive.members):
            yield archive.compare(archive.best)
        calls = self._directory.of_kind("call")
        tokens = sum(row["tokens_in"] + row["tokens_out"] for row in calls)
        yield f"{count(len(calls), 'call')}, {tokens:,} tokens"


def steps_done(rows: Sequence[Row], options: GenerationConfig) -> int:
    """Return the environment steps of the trainings in a log.

    Args:
        rows: rows of the log.
        options: the `tfcaf` group of the configuration.
    """
    trained = sum(int(row["env_steps"]) for row in rows if row["kind"] == "training")
    # Constants are trained in a run of the last stage, of which the log has the function that came out.
    tuned = [row for row in rows if row["kind"] == "candidate" and row["tuned"] and row["key"]]
    return trained + len(tuned) * options.search.steps[-1]


def steps_left(rows: Sequence[Row], options: GenerationConfig, generation: int) -> int:
    """Return the environment steps that a search still has to train, at most.

    Args:
        rows: rows of the log.
        options: the `tfcaf` group of the configuration.
        generation: the generation that is under way, from 1.
    """
    search = options.search
    candidates = [row for row in rows if row["kind"] == "candidate" and row["generation"] == generation]
    written = [row["key"] for row in candidates if not row["tuned"]]
    functions = sum(map(bool, written)) if written else options.candidates
    keys = {row["key"] for row in candidates}
    with_baselines = search.reflection.baselines and search.reflection.returns
    baselines = BASELINES if with_baselines and generation == 1 else ()
    own = [row for row in rows if row["kind"] == "training" and row["function"] in {*keys, *baselines}]
    own += [row for row in candidates if row["tuned"]]
    planned = _planned(options, functions, len(baselines))
    return max(0, planned - steps_done(own, options)) + (search.generations - generation) * _planned(
        options, options.candidates, 0
    )


def _planned(options: GenerationConfig, functions: int, baselines: int) -> int:
    """Return the environment steps of a generation.

    Args:
        options: the `tfcaf` group of the configuration.
        functions: number of functions that its first stage trains.
        baselines: number of baselines that are trained beside them.
    """
    search, total = options.search, 0
    if not functions:
        return 0
    for steps, seeds in zip(search.steps, search.seeds, strict=True):
        total += (functions + baselines) * seeds * steps
        functions = max(1, math.ceil(search.kept * functions))
    tuning = search.steps[-1] * (1 + search.seeds[-1]) if search.tune == "gradient" else 0
    return total + tuning
