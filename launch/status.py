"""`python -m launch.status` in a checkout: the same as `qllm-exp status`."""

import sys

from qllm_exp.cluster.status import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
