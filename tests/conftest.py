"""Settings of all tests: their order, threads and signals."""

import os
import signal

import pytest

from qllm_exp.utils.start_time import rest_collector, wake_collector

# The files that take longest, the longest first. A worker of pytest-xdist takes whole files, in this order.
LONGEST = (
    "test_slurm",
    "test_sweep_local",
    "test_search",
    "test_notebooks",
    "test_experiments",
    "test_generation",
    "test_stored_function",
    "test_load",
    "test_parity_smax",
    "test_procedure",
    "test_fuzz",
    "test_main_job",
    "test_matrix_games",
    "test_grf",
    "test_llm_online",
    "test_unused",
    "test_allow_list",
    "test_wandb",
    "test_report_browser",
    "test_report",
    "test_parity_lbf",
    "test_sandbox",
    "test_fast_compose",
    "test_fake_gpu",
    "test_wandb_source",
    "test_watch",
    "test_trainer",
    "test_wheel",
)

rest_collector()  # while a worker imports torch and all tests, which takes two thirds of the time then

# One thread per worker, as in a run: on two cores, two workers with a thread per core each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The background jobs of a shell ignore SIGINT, and every process that a test starts and interrupts would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what tests make, and no more at what was imported."""
    wake_collector()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that none is left for the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))
