"""`python -m launch.watch` in a checkout: the same as `qllm-exp watch`."""

import sys

from qllm_exp.cluster.watch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
