"""Learning curves are put on the steps that all runs have, and that is said."""

from pathlib import Path

import pytest

from qllm_exp.errors import UserError
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics.align import align


def record(name: str, *steps: int) -> Record:
    return Record(Path(name), "a/b", "qmix", 0, {}, steps, tuple(float(step) / 10 for step in steps), {})


def test_equal_grids_stay_as_they_are() -> None:
    found = align([record("one", 0, 10, 20), record("two", 0, 10, 20)])
    assert found.steps == (0, 10, 20) and found.note == ""
    assert found.returns.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert align([record("one", 5)]).steps == (5,)


def test_steps_that_a_run_lacks_are_left_out() -> None:
    found = align([record("one", 0, 5, 10, 15, 20), record("two", 0, 10, 20), record("three", 0, 10, 20, 30)])
    assert found.steps == (0, 10, 20) and found.returns.tolist() == [[0, 1, 2]] * 3
    assert found.note == "evaluations at the 3 of 6 steps that all 3 runs share"
    assert [one.path.name for one in found.runs] == ["one", "two", "three"]


def test_grids_that_hardly_meet_are_refused_with_two_of_them() -> None:
    with pytest.raises(UserError) as refused:
        align([record("one", *range(0, 60, 10)), record("two", *range(0, 60, 5)), record("three", 0, 7, 14)])
    message = str(refused.value)
    assert "one at 6 steps (0, 10, ..., 50)" in message and "three at 0, 7, 14" in message and "share 1" in message
