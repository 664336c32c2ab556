"""`python -m launch.retry` in a checkout: the same as `qllm-exp retry`."""

import sys

from qllm_exp.cluster.retry import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
