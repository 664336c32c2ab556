"""Progress of a search: what is done and left, as lines in a log and as a bar on a terminal."""

import io
import logging
import sys

import pytest
from searches import Launcher, Searches, searches, share_of
from tqdm import tqdm

from qllm_exp.config.schema import GenerationConfig, ReflectionConfig, SearchConfig
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.search.progress import steps_done, steps_left
from qllm_exp.sweep.progress import Display

__all__ = ["searches"]  # a fixture


def options(tune: str = "none", baselines: bool = True) -> GenerationConfig:
    reflection = ReflectionConfig(baselines=baselines)
    search = SearchConfig(generations=3, steps=[10, 100], seeds=[1, 2], kept=0.5, tune=tune, reflection=reflection)
    return GenerationConfig(candidates=4, search=search)


def test_steps_left_are_those_of_the_cascade_before_anything_has_happened() -> None:
    generation = 4 * 10 + 2 * 2 * 100
    assert steps_left([], options(baselines=False), 1) == 3 * generation
    assert steps_left([], options(), 1) == 3 * generation + 2 * (10 + 2 * 100)
    assert steps_left([], options("gradient", baselines=False), 3) == generation + 100 + 2 * 100


def test_steps_of_a_generation_that_is_under_way_are_not_left_and_refused_candidates_need_none() -> None:
    rows = [{"kind": "candidate", "generation": 3, "key": key, "tuned": False} for key in ("a", "b", "")] + [
        {"kind": "training", "function": key, "env_steps": 10} for key in ("a", "vdn")
    ]
    assert steps_done(rows, options()) == 20
    assert steps_left(rows, options(), 3) == 10 + 2 * 100
    rows = [{"kind": "candidate", "generation": 3, "key": "", "tuned": False}]
    assert steps_left(rows, options("gradient"), 3) == 0, "nothing was accepted"
    rows = [{"kind": "candidate", "generation": 3, "key": "t", "tuned": True}]
    assert steps_done(rows, options("gradient")) == 100, "the training of the constants"


def test_a_log_has_a_line_for_each_part_of_a_generation(searches: Searches, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        directory = searches.run("tfcaf.search.generations=2", "tfcaf.budget_usd=2")
    lines = [message for message in caplog.messages if message.startswith("search: ")]
    assert (
        lines[0]
        == "search: generation 1 of 2, requests for 3 candidates; 0 calls, 0 tokens, 0 environment steps, 0.0000 of 2 USD"
    )
    calls = "3 calls, 330 tokens, 0 environment steps, 0.0300 of 2 USD"
    assert lines[1] == f"search: generation 1 of 2, stage 1: 5 trainings of 100 steps; {calls}"
    assert "stage 2: 8 trainings of 200 steps; best return 0.594 after 100 steps (vdn 0.450, qmix 0.450)" in lines[2]
    assert (
        lines[3].startswith("search: generation 1 of 2, ended with 3 new functions; best return")
        and " left" in lines[3]
    )
    assert lines[-1].startswith("search: generation 2 of 2, ended with 3 new functions") and " left" not in lines[-1]
    assert caplog.messages[-1].endswith(f"python -m qllm_exp.tfcaf report {directory.path}")


def test_a_terminal_has_a_bar_above_those_of_the_trainings_and_nothing_of_it_stays(
    searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    places: list[int] = []

    def value(directory: RunDirectory) -> float:
        if not places:
            display = Display(2, 2)
            places.extend(abs(bar.pos) for bar in [display.sweep_bar, *display.run_lines])
            display.close()
        return share_of(directory)

    searches.run("tfcaf.search.generations=1", launcher=Launcher(value))
    assert places == [2, 3, 4], "below the two lines of the search"
    assert (
        "search: generation 1 of 1 |" in terminal.getvalue()
        and "stage 2: 8 trainings of 200 steps" in terminal.getvalue()
    )
    assert not tqdm._instances, "all bars are closed"
    Display(2, 2).close()
    assert terminal.getvalue().rstrip(" \r").endswith("\n"), "the bar of a sweep of its own stays"
