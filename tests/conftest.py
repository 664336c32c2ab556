"""For all tests."""

import os

# One thread per worker, as a run has: two workers with a thread per core each wait for each other on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
