"""The garbage collector rests while a process starts, and works as by default afterwards."""

import gc
from collections.abc import Iterator

import pytest

from qllm_exp.utils.start_time import rest_collector, wake_collector


@pytest.fixture(autouse=True)
def usual_collector() -> Iterator[None]:
    yield
    wake_collector()
    gc.unfreeze()


def test_the_collector_looks_rarely_until_it_is_woken() -> None:
    usual = gc.get_threshold()
    rest_collector()
    assert gc.isenabled() and gc.get_threshold()[0] >= 1_000_000
    wake_collector()
    assert gc.get_threshold() == usual and gc.get_freeze_count() > 0


def test_a_process_that_does_not_rest_keeps_its_objects_collectable() -> None:
    before = gc.get_freeze_count()
    wake_collector()  # a run within a notebook
    assert gc.get_freeze_count() == before
