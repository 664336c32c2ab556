"""`python -m launch.logs` in a checkout: the same as `qllm-exp logs`."""

import sys

from qllm_exp.cluster.logs import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
