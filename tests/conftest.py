"""Settings of all tests: their order, threads and signals."""

import os
import signal
from collections.abc import Sequence

import pytest

# The tests that take longest, a minute or more each.
LONGEST = (
    "test_killed_with_its_children_at_twenty_random_moments_a_sweep_ends_with_the_same_numbers",
    "test_a_time_limit_in_mid_run_changes_no_number",
    "test_killed_at_random_moments_and_started_again_gives_the_same_numbers",
    "test_ablation",
)

# One thread per worker, as in a run: on two cores, two workers with a thread per core each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The background jobs of a shell ignore SIGINT, and every process that a test starts and interrupts would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each of the longest tests first among the tests of a worker, so that none of them is left for the end.

    pytest-xdist gives each worker a sequence of neighbouring tests.
    """
    longest: Sequence[pytest.Item] = [item for name in LONGEST for item in items if item.name == name]
    others = [item for item in items if item not in longest]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for number, item in enumerate(longest):
        others.insert(number % workers * (len(items) // workers), item)
    items[:] = others
