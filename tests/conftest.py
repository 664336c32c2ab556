"""For all tests."""

import os
import signal

# One thread per worker, as a run has: two workers with a thread per core each wait for each other on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
