"""For all tests."""

import os
import signal
from collections.abc import Sequence

import pytest

# The tests that take longest, a minute and more each.
LONGEST = (
    "test_killed_with_its_children_at_twenty_random_moments_a_sweep_ends_with_the_same_numbers",
    "test_a_time_limit_in_mid_run_changes_no_number",
    "test_killed_at_random_moments_and_started_again_gives_the_same_numbers",
    "test_ablation",
)

# One thread per worker, as a run has: two workers with a thread per core each wait for each other on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests where the workers begin (pytest-xdist gives each a run of neighbours): none is left for the end."""
    longest: Sequence[pytest.Item] = [one for name in LONGEST for one in items if one.name == name]
    others = [one for one in items if one not in longest]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for number, one in enumerate(longest):
        others.insert(number % workers * (len(items) // workers), one)
    items[:] = others
