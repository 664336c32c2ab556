"""Learning curves are aligned to the steps that all runs have, with a note."""

from pathlib import Path

import pytest

from qllm_exp.errors import UserError
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics.align import align


def record(name: str, *steps: int) -> Record:
    return Record(Path(name), "a/b", "qmix", 0, {}, steps, tuple(float(step) / 10 for step in steps), {})


def test_equal_steps_are_kept() -> None:
    curves = align([record("one", 0, 10, 20), record("two", 0, 10, 20)])
    assert curves.steps == (0, 10, 20) and curves.note == ""
    assert curves.returns.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert align([record("one", 5)]).steps == (5,)


def test_steps_that_a_run_lacks_are_left_out() -> None:
    curves = align([record("one", 0, 5, 10, 15, 20), record("two", 0, 10, 20), record("three", 0, 10, 20, 30)])
    assert curves.steps == (0, 10, 20) and curves.returns.tolist() == [[0, 1, 2]] * 3
    assert curves.note == "evaluations at the 3 of 6 steps that all 3 runs share"
    assert [run.path.name for run in curves.runs] == ["one", "two", "three"]


def test_steps_with_almost_no_overlap_are_refused_naming_two_runs() -> None:
    with pytest.raises(UserError) as refused:
        align([record("one", *range(0, 60, 10)), record("two", *range(0, 60, 5)), record("three", 0, 7, 14)])
    message = str(refused.value)
    assert "one at 6 steps (0, 10, ..., 50)" in message and "three at 0, 7, 14" in message and "share 1" in message
